# scripts/lib.sh - what the other scripts share: packages and the build. Sourced, not run.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACKAGES_BUILD="gcc make pkg-config libc6-dev libjansson-dev libmicrohttpd-dev libonig-dev libutf8proc-dev liburing-dev libxxhash-dev libopenmpi-dev openmpi-bin"
PACKAGES_TEST="libcmocka-dev g++ clang clang-tidy cppcheck libclang-rt-dev python3 python3-numpy iproute2"
PYTHON=/usr/bin/python3 # Debian's own, which sees Debian's python3-numpy

# Installs those of the given Debian packages that are missing; says which. Does nothing else.
need_packages() {
    local missing=() name sudo=
    for name in "$@"; do
        case $(dpkg-query -W -f='${Status}' "$name" 2>/dev/null) in
        "install ok installed") ;;
        *) missing+=("$name") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "Installing from Debian's packages: ${missing[*]}" >&2
    if [ "$(id -u)" != 0 ]; then
        sudo=$(command -v sudo) || {
            echo "These packages are missing, and neither root nor sudo is at hand: ${missing[*]}" >&2
            exit 1
        }
    fi
    $sudo apt-get update -qq >&2
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" >/dev/null
}

# Builds quietly: nothing is printed unless something is built or fails.
build() {
    make -j"$(nproc)" --no-print-directory "$@" | grep -v "Nothing to be done" >&2 || true
    return "${PIPESTATUS[0]}"
}
