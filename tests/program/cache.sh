#!/usr/bin/env bash
# What the scripts behind it share in MOEC_TEST_CACHE: this machine's rates and compiled code.  Another build begins anew.
set -eu
kept=$MOEC_TEST_CACHE/moec/machine.json
[ "$kept" -nt "$MOEC" ] && exit
rm -rf "$MOEC_TEST_CACHE"
mkdir -p "$MOEC_TEST_CACHE"
XDG_CACHE_HOME=$MOEC_TEST_CACHE "$MOEC" bench machine --quiet
