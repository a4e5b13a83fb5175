# Sourced by scripts/quickstart and scripts/test: installs what is missing (Debian 12 and 13, Ubuntu 24.04), says what; builds.
# Everything that is needed to build moec and to run its tests stands in these lists, once.

packages_build="gcc libc6-dev cmake ninja-build pkg-config flex bison libjansson-dev libpcre2-dev libxxhash-dev llvm-dev"
packages_test="libcmocka-dev libopenmpi-dev openmpi-bin python3-yaml iproute2"       # without Open MPI moec trains on one rank; ip, tc: tests/net
llvm_versions="19 20 21 18"     # llvm-dev is the first of these that is installed or can be; as in CMakeLists.txt

is_installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }
is_offered() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | grep 'Candidate:' | grep -qv '(none)'; }

# What apt writes must be readable by all, whatever the caller's umask.
apt_get() {
    local sudo=sudo
    [ "$(id -u)" != 0 ] || sudo=""
    $sudo sh -c 'umask 022; DEBIAN_FRONTEND=noninteractive exec apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"' sh "$@" </dev/null
}

install_missing() { # PACKAGE...
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || {
        echo "moec: there is no apt here; what is needed, by its Debian names: $*" >&2
        return 0                                                     # cmake tells what is not there
    }
    local p v log missing="" llvm=""
    for p in "$@"; do
        if [ "$p" = llvm-dev ]; then
            for v in $llvm_versions; do is_installed "llvm-$v-dev" && continue 2; done
            llvm=wanted
        else is_installed "$p" || missing="$missing${missing:+ }$p"
        fi
    done
    [ -n "$missing$llvm" ] || return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        echo "moec: root must install what is missing, and there is no sudo here: $missing${llvm:+ llvm-19-dev}" >&2
        exit 1
    fi
    echo "missing: $missing${llvm:+ llvm-dev}; asking apt for its lists ..."
    log=$(mktemp)
    apt_get update >"$log" 2>&1 || { grep '^[EW]:' "$log" >&2 || cat "$log" >&2; }      # old lists may do
    if [ -n "$llvm" ]; then
        for v in $llvm_versions; do
            if is_offered "llvm-$v-dev"; then llvm=llvm-$v-dev; break; fi
        done
        if [ "$llvm" = wanted ]; then
            echo "moec: this system offers none of the LLVM versions $llvm_versions (package llvm-VERSION-dev)" >&2
            rm -f "$log"
            exit 1
        fi
        missing="$missing${missing:+ }$llvm"
    fi
    echo "installing: $missing"
    # shellcheck disable=SC2086
    apt_get install --no-install-recommends $missing >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        rm -f "$log"
        echo "moec: apt could not install: $missing" >&2
        exit 1
    }
    rm -f "$log"
}

build() { # BUILD-FOLDER [CMAKE-OPTION...]
    local folder=$1 log=$1/build.log
    shift
    mkdir -p "$folder"
    echo "building in $folder/ ..."
    cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        echo "moec: cmake failed" >&2
        exit 1
    }
    ninja -C "$folder" >"$log" 2>&1 || {
        # from the first failure on, without the steps that went well
        sed -n '/^FAILED/,$ { /^\[/d; p }' "$log" | sed -n 1,80p >&2
        grep -q '^FAILED' "$log" || tail -n 20 "$log" >&2
        echo "moec: the build failed; all its output is in $log" >&2
        exit 1
    }
}
