# Sourced by scripts/quickstart and scripts/test: installs what is missing on Debian 12 or Ubuntu 24.04, says what, and builds.
# Everything that is needed to build moec and to run its tests stands in this list, once.

packages_build="gcc libc6-dev cmake ninja-build pkg-config flex bison llvm-19-dev libjansson-dev libpcre2-dev libxxhash-dev"
packages_test="libcmocka-dev clang-19 libclang-rt-19-dev jq"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else
        echo "moec: these need root, and there is no sudo here: $*" >&2
        exit 1
    fi
}

install_missing() { # PACKAGE...
    missing=""
    for p in "$@"; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "moec: install these packages (Debian names) and run this again:$missing" >&2
        exit 1
    fi
    echo "installing:$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

build() { # BUILD-FOLDER [CMAKE-OPTION...]
    folder=$1
    shift
    cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release "$@" >"$folder.log" 2>&1 ||
        { cat "$folder.log"; exit 1; }
    ninja -C "$folder" >"$folder.log" 2>&1 || { grep -v '^\[' "$folder.log" | tail -60; exit 1; }
    rm -f "$folder.log"
}
