#!/usr/bin/env bash
# What doc/cluster.md tells to do works: the batch script under a Slurm that is pretended, the manifest, host files, --dry-run.
. "$(dirname "$0")/common.sh"

# ---- Kubernetes
manifest=scripts/cluster/mpijob.yaml
if python3 -c 'import yaml' 2>/dev/null; then
    valid() { python3 tests/cluster/check_manifest.py tests/cluster/mpijob.schema.json "$1"; }
    claim 'the MPIJob is as its definition says' valid "$manifest"
    wrong() { # SED-SCRIPT WHAT
        sed "$1" "$manifest" >"$work/wrong.yaml"
        exits 1 "found: $1" valid "$work/wrong.yaml"
        prints "$2" "told: $2"
    }
    wrong 's/cleanPodPolicy: Running/cleanPodPolicy: Runing/' 'cleanPodPolicy: is "Runing", must be one of None, Running, All'
    wrong 's/slotsPerWorker: 4/slotsPerWorker: "4"/' 'slotsPerWorker: is "4", must be integer'
    wrong 's/terminationGracePeriodSeconds/terminationGracePeriod/' 'there is no terminationGracePeriod'
    wrong 's/image: .*/imagePullPolicy: Always/' 'image is missing'
    wrong 's/claimName: moec-runs/claim: moec-runs/' 'claimName is missing'
    wrong 's/--ranks 8/--ranks 4/' 'is not the 8 slots'
    # its command, with a moec that only tells what it was given
    mkdir "$work/bin"
    printf '#!/bin/sh\necho "$@"\n' >"$work/bin/moec"
    chmod +x "$work/bin/moec"
    python3 -c 'import sys, yaml
print(yaml.safe_load(open(sys.argv[1]))["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]["command"][2])' \
        "$manifest" | sed "s|/runs|$work/runs|g" >"$work/command.sh"
    exits 0 'the launcher begins' env PATH="$work/bin:$PATH" sh "$work/command.sh"
    prints '^train .*--out .*/runs/mixtral --ranks 8 --hostfile /etc/mpi/hostfile' 'a run anew'
    mkdir -p "$work/runs/mixtral"
    exits 0 'the launcher begins again' env PATH="$work/bin:$PATH" sh "$work/command.sh"
    prints '/runs/mixtral --resume --ranks 8' 'and goes on'
else skip 'the manifest: python3-yaml is not installed'; fi

# ---- a dry run of one process
dry() { "$MOEC" train "$model" "${tiny[@]}" --threads 1 --dry-run "$@"; }
exits 0 'a dry run' dry --out "$work/new/run"
for what in 'model +tiny_mixtral: 72,352 parameters' 'step +8 sequences of 32 tokens = 1 wave x 8 lanes' 'layout +1 rank = dp 1 x ep 1 x tp 1' \
    'memory +[0-9.]+ MB a rank at most: weights 0.3 MB, ' 'host +[^ ]+, 1 rank' 'ok: data: 4,404,412 tokens' 'ok: output: .* [GM]B free; 4 checkpoints of 0.9 MB take 3.5 MB' 'nothing is missing'; do
    prints "$what" "prints $what"
done
claim 'it makes nothing' test ! -e "$work/new"
exits 0 'of ranks that are threads' dry --local 4 --set parallel.ep=2 --out "$work/new"
prints 'layout +4 ranks \(threads of one process\) = dp 2 x ep 2' 'with their layout'
exits 1 'data that is not there' dry --out "$work/new" --set "data.source=text(\"$work/none.txt\")"
prints 'error: .*none.txt: No such file' 'is an error'
prints 'not all is there' 'and the last word'
: >"$work/file"
exits 1 'an output that can not be' dry --out "$work/file/run"
prints 'error: --out .*file/run: cannot write in .*file: Not a directory' 'is an error'
exits 1 'a model that is wrong' dry --set D=33 --out "$work/new"
mkdir "$work/small"
if mount -t tmpfs -o size=1m tmpfs "$work/small" 2>/dev/null; then
    exits 1 'a disk too small' dry --out "$work/small/run"
    prints 'error: .*small has 1.0 MB free; 4 checkpoints of 0.9 MB take 3.5 MB' 'is an error'
    umount "$work/small"
else skip 'a small disk: mount is not allowed'; fi

# ---- several hosts, one of which is all that is here
needs_mpi
printf 'localhost slots=2\n' >"$work/hosts"
steps=(--threads 1 --set 'train.length=8 steps' --set 'train.save_every=4 steps')
exits 0 'a dry run with a host file' dry --ranks 2 --hostfile "$work/hosts" --set parallel.ep=2 --restarts 3 --out "$work/new"
prints "command +mpirun --hostfile $work/hosts .*-x MOEC_SUPERVISOR .*-n 2 .*moec train .*--out $work/new" 'prints the command'
prints 'layout +2 ranks = dp 1 x ep 2' 'and the layout'
prints 'host +[^ ]+, 2 ranks, the first is 0' 'and what each host has'
exits 1 'no data on a host' dry --ranks 2 --hostfile "$work/hosts" --set "data.source=text(\"$work/none.txt\")" --out "$work/new"
prints 'error: .*none.txt: No such file' 'is told'
claim 'nothing is made' test ! -e "$work/new"
claim 'trained with a host file' train "$work/hosted" "${steps[@]}" --ranks 2 --hostfile "$work/hosts" --set parallel.ep=2
claim 'one process' train "$work/one" "${steps[@]}"
claim 'the same weights' same_tensors "$work/one" "$work/hosted"

# ---- Slurm: its commands, pretended
mkdir "$work/slurm"
cat >"$work/slurm/srun" <<'SH'
#!/bin/bash
[ "$1 $2" = '--mpi=pmix -n' ] || { echo "srun: $*" >&2; exit 1; }
exec mpirun --oversubscribe -n "$3" "${@:4}"
SH
cat >"$work/slurm/scontrol" <<SH
#!/bin/bash
echo "\$@" >>$work/scontrol
SH
chmod +x "$work"/slurm/*
job=(env PATH="$work/slurm:$PATH" MOEC="$MOEC" SLURM_NTASKS=2 SLURM_CPUS_PER_TASK=1 SLURM_JOB_ID=17 bash scripts/cluster/train.sbatch
    "$model" "$work/batch" "${tiny[@]}" --set parallel.ep=2 --set 'train.length=200 steps' --set 'train.save_every=50 steps')
claim 'the batch script is one' bash -n scripts/cluster/train.sbatch
for name in requeue signal=TERM@120; do claim "it has --$name" grep -q "^#SBATCH --$name" scripts/cluster/train.sbatch; done
"${job[@]}" >"$work/job.log" 2>&1 &
pid=$!
children+=($pid)
wait_for 60 has_lines "$work/batch/metrics.jsonl" 3
kill -TERM $(of_run "$work/batch" | tail -n 1)                        # as Slurm does: to the ranks
wait $pid
claim 'ranks are signalled: the job ends with status 75' test $? = 75
claim 'and is queued again' test "$(cat "$work/scontrol")" = 'requeue 17'
"${job[@]}" >"$work/job.log" 2>&1 &
pid=$!
children+=($pid)
before=$(steps_of "$work/batch" | tail -n 1)
wait_for 60 has_lines "$work/batch/metrics.jsonl" $((before + 3))
kill -TERM $pid                                                          # to the shell
wait $pid
claim 'the shell is signalled: the same' test $? = 75
exits 0 'the third goes to the end' "${job[@]}"
claim 'which is not queued again' test "$(wc -l <"$work/scontrol")" = 2
claim 'every step once' diff <(seq 200) <(steps_of "$work/batch")
finish
