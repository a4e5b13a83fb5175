#!/bin/bash
# gemm_peer.sh [OPTION...]: `moec bench gemm` with Debian's OpenBLAS beside it, timed in turns in one process.  Installs
# libopenblas0-pthread where it is missing.  MOEC names the program (default: build/bin/moec).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
find_library() { find /usr/lib -path '*openblas-pthread/libopenblas.so.0' 2>/dev/null | head -n 1; }
library=$(find_library)
if [ -z "$library" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    echo "installing libopenblas0-pthread" >&2
    $sudo apt-get install -y -q libopenblas0-pthread >&2
    library=$(find_library)
fi
exec "${MOEC:-$here/../../build/bin/moec}" bench gemm --peer "$library" "$@"
