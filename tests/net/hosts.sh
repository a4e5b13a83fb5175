# Hosts on one machine: network namespaces that a bridge joins, each with a host name of its own, so that MPI takes them for
# machines.  Sourced by the tests of this folder, behind program/common.sh.  What it makes has this process's number in its name.
hosts=() relay=${MOEC_TESTS:-$(dirname "$MOEC")/../tests}/net_relay bridge=mb$$ net=10.$((64 + $$ / 250 % 64)).$(($$ % 250))

hosts_down() {
    for h in "${hosts[@]}"; do ip netns del "$h" 2>/dev/null; done
    ip link del "$bridge" 2>/dev/null
}

# Why there can be no hosts here; nothing: there can.
hosts_missing() {
    command -v mpirun >/dev/null && [ -f "$MOEC_MPI_LIBRARY" ] || { echo 'MPI (libopenmpi-dev openmpi-bin)'; return; }
    command -v ip >/dev/null && command -v tc >/dev/null || { echo 'ip and tc (iproute2)'; return; }
    local probe=mp$$
    ip netns add $probe 2>/dev/null || { echo 'the right to make network namespaces (root)'; return; }
    ip netns exec $probe unshare --uts hostname $probe 2>/dev/null || echo 'the right to name hosts'
    ip netns exec $probe tc qdisc add dev lo root tbf rate 1gbit burst 64kb latency 50ms 2>/dev/null || echo 'tc tbf (sch_tbf)'
    ip netns del $probe
}

# Why there can be no delay between them.
delay_missing() {
    [ -x "$relay" ] || echo "$relay (cmocka was missing)"
    [ -w /dev/net/tun ] || echo '/dev/net/tun'
}

# Host i's eth0, to a bridge of the kernel.
wire() { ip link add mv$$-"$1" type veth peer name eth0 netns "$2" && ip link set mv$$-"$1" master "$bridge" up; }
# To the relay, which made the device.
plug() { ip link set mv$$-"$1" netns "$2" && ip netns exec "$2" ip link set mv$$-"$1" name eth0; }

# start_relay N MICROSECONDS: in the bridge's place
start_relay() {
    local names=() line
    for i in $(seq "$1"); do names+=("mv$$-$i"); done
    coproc RELAY { exec "$relay" "$2" "$bridge" "${names[@]}"; }
    children+=("$RELAY_PID")
    disown "$RELAY_PID"                          # no word of its end
    read -r -t 10 line <&"${RELAY[0]}" && [ "$line" = ready ]
}

# hosts_up N [MICROSECONDS]: host 1 to N; between any two a delay
hosts_up() {
    local join=wire
    trap 'hosts_down; cleanup' EXIT
    if [ "${2:-}" ]; then join=plug && start_relay "$1" "$2"; else ip link add "$bridge" type bridge; fi || return 1
    ip addr add $net.254/24 dev "$bridge" && ip link set "$bridge" up || return 1
    for i in $(seq "$1"); do
        local h=mh$$-$i
        hosts+=($h)
        ip netns add $h && $join $i $h && ip netns exec $h ip addr add $net.$i/24 dev eth0 && ip netns exec $h ip link set eth0 up &&
            ip netns exec $h ip link set lo up || return 1
    done
    # mpirun reaches a host by this instead of ssh: AGENT [-OPTION]... HOST COMMAND...
    cat >"$work/agent" <<'AGENT'
#!/bin/bash
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
exec ip netns exec "$host" unshare --uts bash -c "hostname $host; $*"
AGENT
    chmod +x "$work/agent"
}

# hosts_rate RATE: what each host can send (1gbit); none: no limit
hosts_rate() {
    for h in "${hosts[@]}"; do
        ip netns exec "$h" tc qdisc del dev eth0 root 2>/dev/null
        [ "$1" = none ] || ip netns exec "$h" tc qdisc add dev eth0 root tbf rate "$1" burst 128kb latency 50ms || return 1
    done
}

# on_hosts PER COMMAND...: PER ranks on each host
on_hosts() {
    local per=$1 list=""
    shift
    for h in "${hosts[@]}"; do list+=${list:+,}$h:$per; done
    # btl: TCP between hosts, shared memory inside; a waiting rank leaves its core to others; no binding, for each host's
    # daemon would bind its first rank to core 0
    TMPDIR=$work OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 200 mpirun --host "$list" -n $((per * ${#hosts[@]})) \
        --map-by ppr:"$per":node --oversubscribe --bind-to none --mca plm_rsh_agent "$work/agent" --mca mpi_yield_when_idle 1 --mca pml ob1 \
        --mca btl tcp,vader,self --mca oob_tcp_if_include $net.0/24 --mca btl_tcp_if_include $net.0/24 \
        -x MOEC_MPI_LIBRARY -x XDG_CACHE_HOME -x LC_ALL "$@"
}
