#!/usr/bin/env bash
# Ranks that are processes of MPI do what ranks that are threads do; a job with a rank that differs or is silent ends.
. "$(dirname "$0")/../program/common.sh"
test_comm=${MOEC_TESTS:?names the folder of the test programs}/test_comm
claim 'threads, at length' timeout 600 "$test_comm" long

export MOEC_MPI_LIBRARY=/nowhere/moec_mpi.so
exits 77 'without MPI there is one rank' "$test_comm" mpi
says 'more than one rank needs MPI.*/nowhere/moec_mpi.so' 'and it says why'

export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so
if ! [ -f "$MOEC_MPI_LIBRARY" ] || ! command -v mpirun >/dev/null; then
    skip 'MPI (libopenmpi-dev openmpi-bin)'
    finish
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0:${ASAN_OPTIONS:-}   # Open MPI keeps some
# in a folder of its own: what a job leaves when it is killed goes with it
ranks() { TMPDIR=$work timeout 300 mpirun --oversubscribe --mca mpi_yield_when_idle 1 "$@"; }

for n in 1 2 3 4 8; do
    claim "$n ranks over shared memory" ranks -n $n "$test_comm" mpi
done
claim '4 ranks over TCP' ranks --mca btl tcp,self --mca btl_tcp_if_include lo -n 4 "$test_comm" mpi
claim '2 ranks, at length' ranks -n 2 "$test_comm" mpi long

exits 77 'a launcher of another MPI' env PMI_SIZE=3 "$test_comm" mpi
says 'started as one of 3 ranks, but MPI knows 1' 'is noticed'

exits 1 'a rank runs another program' ranks -n 4 "$test_comm" mpi differs
says 'tree_reduce \(layer 3, m.moe:12; node 2; #2 of group 0\)' 'what one does ..'
says 'rank 1: tree_reduce \(layer 3, m.moe:12; node 3; #2 of group 0\)' '.. and the other'
exits 1 'a sum of another size' ranks -n 2 "$test_comm" mpi size
says 'of another size' 'is named'
exits 1 'more rows than were due' ranks -n 2 "$test_comm" mpi rows
says 'rank 1, .*rank 0 sent more than 32 bytes where 32 are due' 'are named'
exits 76 'a rank that does not come' ranks -n 4 "$test_comm" mpi absent
says 'nothing moved for 0.5 s; it waits for .* from rank' 'is waited for in vain'
says 'rank 1: last completed tree_reduce .layer 3, m.moe:12; node 1; #1 of group 0., computes' 'and named with its last'
exits 76 'a lost message' ranks -n 2 "$test_comm" mpi lost
exits 1 'a rank that gives up ends all' ranks -n 4 "$test_comm" mpi aborts
finish
