#!/bin/sh
# Make .venv with statefs in it, and install the system packages that are missing.
#
#   scripts/setup.sh            what statefs needs to run
#   scripts/setup.sh --tests    and what its checks need
#
# Running it again is harmless, and quick when nothing changed: .venv remembers what it was made
# from. Looks for abilities (a compiler, a header), not for packages, so a machine set up in
# another way is left alone.
set -eu

cd "$(dirname "$0")/.."
venv=.venv
with_tests=no
case "${1:-}" in
    "") ;;
    --tests) with_tests=yes ;;
    *) echo "usage: scripts/setup.sh [--tests]" >&2; exit 2 ;;
esac

say() { printf '%s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- becoming root, only for the package manager -------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else
        # Without a terminal nobody can type a password: fail instead of hanging.
        if [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
    fi
}
can_be_root() {
    [ "$(id -u)" = 0 ] || { have sudo && { [ -t 0 ] || sudo -n true 2>/dev/null; }; }
}

apt_updated=no
apt_install() {
    if [ "$apt_updated" = no ]; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update ||
            say "setup: apt-get update failed; trying with the package lists that are here"
        apt_updated=yes
    fi
    # --no-remove: better a missing test program than a package taken from this machine.
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-remove --no-install-recommends install "$@" >/dev/null
}

# --- Python --------------------------------------------------------------------------------------

usable_python() { # 3.11 or newer, can make a virtual environment, can compile extensions
    "$1" -c '
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))' 2>/dev/null
}

# The system's own Python comes first: one that a version manager put into PATH may be gone or
# another one tomorrow, and the packages below complete the system's.
find_python() {
    for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
        if have "$candidate" && usable_python "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

new_enough() { have "$1" && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# --- system packages -----------------------------------------------------------------------------

can_compile() { have cc && printf '#include <stdio.h>\n' | cc -E - >/dev/null 2>&1; }

missing_abilities() {
    have fusermount3 || echo fuse3
    { have pkg-config && pkg-config --exists fuse3; } || echo libfuse3-dev
    have pkg-config || echo pkg-config
    can_compile || echo compiler
    find_python >/dev/null || echo python
}

package_names() { # package_names SYSTEM ABILITY...
    system=$1
    shift
    for ability in "$@"; do
        case "$system:$ability" in
            apt:compiler) echo gcc libc6-dev ;;
            apt:python) echo python3 python3-dev python3-venv ;;
            dnf:libfuse3-dev) echo fuse3-devel ;;
            dnf:pkg-config) echo pkgconf-pkg-config ;;
            dnf:compiler) echo gcc ;;
            dnf:python) echo python3 python3-devel ;;
            pacman:libfuse3-dev) echo fuse3 ;;
            pacman:pkg-config) echo pkgconf ;;
            pacman:compiler) echo gcc ;;
            pacman:python) echo python ;;
            apk:libfuse3-dev) echo fuse3-dev ;;
            apk:pkg-config) echo pkgconf ;;
            apk:compiler) echo gcc musl-dev linux-headers ;;
            apk:python) echo python3 python3-dev ;;
            *) echo "$ability" ;;
        esac
    done | tr '\n' ' '
}

install_missing() {
    missing=$(missing_abilities)
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086  # a list of words, on purpose
    if have apt-get; then
        packages=$(package_names apt $missing)
        can_be_root || die "please install, as root: apt-get install $packages"
        say "Installing $packages(apt)"
        apt_install $packages || die "apt-get install $packages failed"
    elif have dnf; then
        die "please install, as root: dnf install $(package_names dnf $missing)"
    elif have pacman; then
        die "please install, as root: pacman -S --needed $(package_names pacman $missing)"
    elif have apk; then
        die "please install, as root: apk add $(package_names apk $missing)"
    else
        die "please install: libfuse 3 with its headers and fusermount3, pkg-config," \
            "a C compiler, Python 3.11 or newer with its headers and venv"
    fi
    if ! find_python >/dev/null; then
        if new_enough python3; then
            die "$(python3 --version) lacks its headers or venv, and the packages did not bring them"
        fi
        die "Python 3.11 or newer is needed, with its headers and venv;" \
            "Debian 12 and Ubuntu 24.04 bring one, an older system needs it installed by hand"
    fi
    left=$(missing_abilities | tr '\n' ' ')
    [ -z "$left" ] || die "still missing after the installation: $left"
}

# --- programs that tests drive ---------------------------------------------------------------------

# The administrator's programs are not in every user's PATH.
have_admin() { have "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

postgres_here() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || have initdb; }

missing_programs() {
    have setfattr || echo attr
    have setfacl || echo acl
    have rsync || echo rsync
    have git || echo git
    have sqlite3 || echo sqlite3
    have crun || echo crun
    have node || echo nodejs
    have busybox || echo busybox-static
    have fio || echo fio
    have stress-ng || echo stress-ng
    have dbench || echo dbench
    have_admin mkfs.ext4 || echo e2fsprogs
    have_admin mkfs.btrfs || echo btrfs-progs
    postgres_here || echo postgresql
}

install_postgres() {
    # Debian's package makes a database cluster and starts it. The tests make their own: tell it
    # not to, for the time of the installation.
    settings=/etc/postgresql-common/createcluster.d
    as_root mkdir -p "$settings"
    echo "create_main_cluster = off" | as_root tee "$settings/statefs-tests.conf" >/dev/null
    installed=0
    apt_install postgresql || installed=$?
    as_root rm -f "$settings/statefs-tests.conf"
    return $installed
}

install_test_programs() {
    for program in $(missing_programs); do
        skipped="setup: $program is not installed; the tests that need it will be skipped"
        if ! have apt-get || ! can_be_root; then say "$skipped"; continue; fi
        say "Installing $program for the tests (apt)"
        if [ "$program" = postgresql ]; then
            install_postgres || say "$skipped"
        else
            apt_install "$program" || say "$skipped"
        fi
    done
}

# --- the virtual environment -----------------------------------------------------------------------

fingerprint() { cat pyproject.toml constraints.txt | cksum; }

# A virtual environment holds absolute paths: one that was moved or copied here is made anew.
venv_works() {
    $venv/bin/python -c 'import pip' 2>/dev/null && grep -qF "$PWD/$venv/bin/python" $venv/bin/pip
}

venv_is_current() { # venv_is_current EXTRA ("" or "dev")
    [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(fingerprint)" ] &&
        [ -x $venv/bin/statefs ] && venv_works && $venv/bin/python -c 'import pyfuse3' 2>/dev/null
}

install_statefs() { # install_statefs EXTRA
    if ! venv_works; then
        python=$(find_python)
        say "Making $venv with $("$python" --version)"
        "$python" -m venv --clear $venv
    fi
    say "Installing statefs into $venv (a minute or two: pyfuse3 is compiled)"
    # Constraints reach the builds of source packages by these variables only: by the first one
    # in older pips, by the second in newer ones.
    # The warnings hidden are those of setuptools about editable installations.
    PIP_CONSTRAINT=$PWD/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/constraints.txt \
        PYTHONWARNINGS=ignore \
        $venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".${1:+[$1]}"
    fingerprint >"$venv/.installed-"
    [ -z "$1" ] || fingerprint >"$venv/.installed-$1"
}

extra=
if [ $with_tests = yes ]; then
    extra=dev
    install_test_programs
fi
if ! venv_is_current "$extra" || ! have fusermount3; then
    install_missing
    install_statefs "$extra"
fi
# Who runs statefs may not be allowed to write here, or may not want to (PYTHONDONTWRITEBYTECODE):
# each command and each daemon would compile all of it again.
$venv/bin/python -m compileall -q statefs ||
    say "setup: statefs could not be compiled ahead; its commands start more slowly"
