# Of benches on hosts that are network namespaces: the machine's rights, the program's cache.
. tests/program/common.sh
. tests/net/hosts.sh
export MOEC_MPI_LIBRARY=$(dirname "$MOEC")/moec_mpi.so XDG_CACHE_HOME=${TMPDIR:-/tmp}/moec-bench-hosts
missing=$(hosts_missing)
[ -z "$missing" ] || { echo "hosts need $missing"; exit 77; }
rate=${1:-1gbit}
