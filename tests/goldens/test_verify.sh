#!/usr/bin/env bash
# What verify says of directories that are damaged, of other models, or wrong: a message and status 1, never a crash.
set -u
source=tests/goldens/hf/llama
passed=0 failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# damaged TEXT PATTERN COMMAND...: in a copy of the directory the command spoils something; verify says so
damaged() {
    text=$1 pattern=$2 status=0
    shift 2
    rm -rf "$work/llama"
    cp -r "$source" "$work/llama"
    (cd "$work/llama" && "$@")
    "$MOEC" verify --target ref "$work/llama" ${options[@]+"${options[@]}"} >"$work/log" 2>&1 || status=$?
    if [ $status = 1 ] && grep -qE -- "$pattern" "$work/log"; then
        passed=$((passed + 1))
        echo "ok   $text"
    else
        failed=$((failed + 1))
        echo "FAIL $text: status $status, expected 1 and '$pattern' in:"
        tail -n 12 "$work/log"
    fi
    options=()
}

# put FILE TENSOR OFFSET BYTES: bytes (as printf writes them) into the data of a tensor
put() {
    header=$(od -An -t u8 -N 8 "$1" | tr -d ' ')
    at=$(head -c $((8 + header)) "$1" | tail -c +9 | grep -oE "\"$2\":\{[^}]*\}" | sed -E 's/.*"data_offsets":\[([0-9]+),.*/\1/')
    printf "$4" | dd of="$1" bs=1 seek=$((8 + header + at + $3)) conv=notrunc status=none
}

options=()
damaged 'a file cut off' 'the file is truncated' truncate -s 100000 model.safetensors
damaged 'a reference cut off' 'the file is truncated' truncate -s 100000 reference.safetensors
damaged 'an empty file' 'model.safetensors' truncate -s 0 model.safetensors
damaged 'no config.json' 'config.json: No such file' rm config.json
damaged 'no weights' 'holds neither model.safetensors' rm model.safetensors
damaged 'no reference' 'reference.safetensors: No such file' rm reference.safetensors
damaged 'broken JSON' 'config.json:[0-9]+:' sh -c 'echo "{\"model_type\":" >config.json'
damaged 'an unknown family' 'no model of models/ reads model_type "gpt9"' sed -i 's/"model_type": "llama"/"model_type": "gpt9"/' config.json
damaged 'another activation' 'hidden_act is "relu"; this model cannot represent it' sed -i 's/"silu"/"relu"/' config.json
damaged 'another scaling' 'rope_scaling.rope_type is "dynamic"; this model cannot represent it' sed -i 's/"llama3"/"dynamic"/' config.json
damaged 'another scaling, by its older name' 'rope_scaling.type is "dynamic"; this model cannot represent it' sed -i 's/"rope_type": "llama3"/"type": "dynamic"/' config.json
damaged 'another size' "model.norm.weight: the file's tensor is \[64\], this is \[60\]" sed -i 's/"hidden_size": 64/"hidden_size": 60/' config.json
damaged 'one layer more' 'found nowhere in the file: layers.2' sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' config.json
damaged 'a tensor of another name' 'found nowhere in the file: norm.g' sed -i 's/model.norm.weight/model.morn.weight/' model.safetensors
damaged 'NaN in the weights' 'element 2 of layers.0.ffn.gate.w is -?nan; weights must be finite' put model.safetensors model.layers.0.mlp.gate_proj.weight 8 '\0\0\300\177'
damaged 'NaN in the reference' '^logits .* nan .*FAIL' put reference.safetensors logits 8 '\0\0\300\177'
damaged 'an id beyond the vocabulary' 'input_ids is 300; ids go from 0 to 255' put reference.safetensors input_ids 0 '\54\1\0\0'
damaged 'a wrong weight' '^llama: 27 of 29 tensors FAIL' put model.safetensors model.norm.weight 0 '\0\0\200\100'
damaged 'a wrong gradient' '^llama: 1 of 29 tensors FAIL.*grad.model.norm.weight' put reference.safetensors grad.model.norm.weight 0 '\0\0\200\100'
damaged 'a wrong token' '^greedy_ids .*FAIL' put reference.safetensors greedy_ids 40 '\1\0\0\0'
damaged 'a tensor nobody knows' '^xidden.0 .*FAIL: nothing is known' sed -i 's/"hidden.0"/"xidden.0"/' reference.safetensors
damaged 'what the reference lacks' '^hidden.0 +not in the reference' sed -i 's/"hidden.0"/"xidden.0"/' reference.safetensors
options=(--set eps=1e-2)
damaged 'another hyper-parameter' '^llama: 29 of 29 tensors FAIL' true
options=(--set train.nothing=1)
damaged 'a setting that does not exist' "'nothing'" true
options=(--model models/mixtral.moe)
damaged 'a model of another family' 'error' true
options=(--train)
damaged 'no batches' 'batches.safetensors: No such file' true
echo "$passed passed, $failed failed"
[ $failed = 0 ]
