#!/usr/bin/env python3
"""check_manifest.py SCHEMA FILE.yaml: every place where the file is not as the schema has it, one a line."""
import json, re, sys
import yaml

TYPES = {'object': dict, 'array': list, 'string': str, 'integer': int, 'boolean': bool}

def is_type(value, name):
    return isinstance(value, TYPES[name]) and (name == 'boolean' or not isinstance(value, bool))

def check(value, schema, root, at):
    if '$ref' in schema: schema = root['definitions'][schema['$ref']]
    types = schema.get('type', [])
    types = [types] if isinstance(types, str) else types
    if types and not any(is_type(value, t) for t in types):
        yield f'{at}: is {json.dumps(value)}, must be {" or ".join(types)}'
        return
    if 'enum' in schema and value not in schema['enum']:
        yield f'{at}: is {json.dumps(value)}, must be one of {", ".join(schema["enum"])}'
    if 'pattern' in schema and not re.search(schema['pattern'], str(value)):
        yield f'{at}: {json.dumps(value)} does not match {schema["pattern"]}'
    if 'minimum' in schema and value < schema['minimum']:
        yield f'{at}: is {value}, must be at least {schema["minimum"]}'
    if isinstance(value, list):
        if len(value) < schema.get('minItems', 0): yield f'{at}: has {len(value)} items'
        for i, item in enumerate(value): yield from check(item, schema.get('items', {}), root, f'{at}[{i}]')
    if isinstance(value, dict):
        for key in schema.get('required', []):
            if key not in value: yield f'{at}: {key} is missing'
        for key, item in value.items():
            other = schema.get('additionalProperties', True)
            of_key = schema.get('properties', {}).get(key, other)
            if of_key is False: yield f'{at}: there is no {key}'
            elif of_key is not True: yield from check(item, of_key, root, f'{at}.{key}')

def mounts(job):
    """What a schema can't say: every mount has its volume, and ranks have a slot each."""
    replicas = job['spec']['mpiReplicaSpecs']
    for name, replica in replicas.items():
        pod = replica['template']['spec']
        volumes = {v['name'] for v in pod.get('volumes', [])}
        for c in pod['containers']:
            for m in c.get('volumeMounts', []):
                if m['name'] not in volumes: yield f'{name}: there is no volume {m["name"]}'
    text = ' '.join(replicas['Launcher']['template']['spec']['containers'][0]['command'])
    ranks, slots = re.search(r'--ranks (\d+)', text), replicas['Worker']['replicas'] * job['spec']['slotsPerWorker']
    if not ranks or int(ranks[1]) != slots: yield f'Launcher: --ranks is not the {slots} slots of the workers'

schema = json.load(open(sys.argv[1]))
job = yaml.safe_load(open(sys.argv[2]))
wrong = list(check(job, schema, schema, 'job')) or list(mounts(job))
print('\n'.join(wrong))
sys.exit(bool(wrong))
