#!/bin/sh
# Which folder may include which.  Everything else is an error.  Also: every header compiles alone.
bad=0
allow() { # FOLDER ALLOWED-PREFIX...
    folder=$1
    shift
    for f in $(find "$folder" -name '*.[chly]' -o -name '*.def'); do
        for inc in $(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$f"); do
            ok=0
            for p in "$@"; do case $inc in $p*) ok=1 ;; esac done
            [ $ok = 1 ] || { echo "$f includes $inc, but $folder/ may only include: $*"; bad=1; }
        done
    done
}
allow ir/base ir/base/
allow ir ir/ runtime/abi.h runtime/philox.h
allow passes passes/ ir/ runtime/abi.h
allow codegen codegen/ ir/ runtime/abi.h runtime/philox.h
allow runtime runtime/
allow planner planner/ passes/ ir/ runtime/
for f in frontend/*.[chly]; do
    case $f in frontend/main.c | frontend/cmd_*) continue ;; esac
    for inc in $(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$f"); do
        case $inc in frontend/* | ir/* | runtime/abi.h | runtime/philox.h) ;; *) echo "$f includes $inc, but frontend/ may only include: frontend/ ir/ runtime/abi.h"; bad=1 ;; esac
    done
done
for h in $(find ir passes codegen runtime planner frontend -name '*.h'); do
    echo "#include \"$h\"" | ${CC:-cc} -std=gnu11 -fsyntax-only -I. ${LLVM_INCLUDE:+-isystem "$LLVM_INCLUDE"} -x c - 2>/dev/null || { echo "$h does not compile alone"; bad=1; }
done
exit $bad
