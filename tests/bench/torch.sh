#!/bin/bash
# torch.sh train|gate [OPTION...]: runs train_torch.py or gate_torch.py in a virtual environment, which it makes where there
# is none: $MOEC_TORCH (default: build/torch).  Some gigabytes; pip is configured as the user has it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${MOEC_TORCH:-$here/../../build/torch}
script=$here/${1:-}_torch.py
[ -f "$script" ] || { echo "torch.sh train|gate [OPTION...]" >&2; exit 2; }
shift
if ! "$venv/bin/python" -c 'import torch, transformers' 2>/dev/null; then
    echo "installing PyTorch and transformers into $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r "$here/requirements.txt"
fi
exec "$venv/bin/python" "$script" "$@"
