#!/bin/sh
# Makes this machine a runner of @URL@: installs Updraft from there, offline, and joins.
# The token comes in UPDRAFT_JOIN_TOKEN or on standard input, or is asked for; never in an argument,
# which every user of this machine could read.  UPDRAFT_VENV: where to install.  Arguments are those
# of `updraft runner join`, as in: (curl …) | sh -s -- --name node7
set -eu

url='@URL@'
fingerprint='@FINGERPRINT@'
pin='@PIN@'

fail() {
    printf 'updraft: %s\n' "$*" >&2
    exit 1
}

fetch() {
    if [ -n "$pin" ]; then
        curl --pinnedpubkey "$pin" -k -sSf -o "$2" "$url/$1"
    else
        curl -sSf -o "$2" "$url/$1"
    fi
}

find_python() {
    for each in python3.13 python3.12 python3.11 python3; do
        if command -v "$each" >/dev/null 2>&1 &&
            "$each" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
        then
            command -v "$each"
            return
        fi
    done
}

read_token() {
    token=${UPDRAFT_JOIN_TOKEN:-}
    unset UPDRAFT_JOIN_TOKEN
    if [ -z "$token" ] && [ ! -t 0 ]; then
        IFS= read -r token || true
    fi
    if [ -z "$token" ] && (: </dev/tty) 2>/dev/null; then
        printf 'Join token: ' >/dev/tty
        stty -echo </dev/tty
        IFS= read -r token </dev/tty || true
        stty echo </dev/tty
        printf '\n' >/dev/tty
    fi
    [ -n "$token" ] || fail "a join token is needed, in UPDRAFT_JOIN_TOKEN; make one: updraft runner token POOL"
}

# In a function, called within a group, so that nothing is done when only a part of this text arrived.
main() {
    umask 022
    command -v curl >/dev/null 2>&1 || fail "curl is needed; install it"
    python=$(find_python)
    [ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 with venv is needed; install it, as python3 and python3-venv"
    read_token
    if [ -n "${UPDRAFT_VENV:-}" ]; then
        folder=$UPDRAFT_VENV
    elif [ "$(id -u)" = 0 ]; then
        folder=/opt/updraft
    else
        folder=${XDG_DATA_HOME:-${HOME:?"is not set; name a folder in UPDRAFT_VENV"}/.local/share}/updraft-venv
    fi

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    fetch wheels/ "$work/index" || fail "cannot get the list of wheels from $url"
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    machine=$(uname -m)
    sed -n 's/^<a href="\([A-Za-z0-9_][A-Za-z0-9_.+!-]*\.whl\)">.*/\1/p' "$work/index" >"$work/names"
    while IFS= read -r name; do
        case $name in
        *-none-any.whl | *-"$tag"-*_"$machine".whl | *-abi3-*_"$machine".whl)
            fetch "wheels/$name" "$work/$name" </dev/null || fail "cannot get $name from $url"
            ;;
        esac
    done <"$work/names"

    # Without pip of its own: Debian's Python has none to give without another package.
    # What is made here is the runner's own, and may be replaced by an upgrade.
    [ -x "$folder/bin/python" ] || { "$python" -m venv --without-pip "$folder" && : >"$folder/installed-by-its-server"; } ||
        fail "cannot make $folder"
    for pip in "$work"/pip-*.whl; do :; done
    "$folder/bin/python" "$pip/pip" --disable-pip-version-check install --quiet --upgrade --no-index \
        --no-cache-dir --find-links "$work" --root-user-action ignore updraft-cloud </dev/null ||
        fail "cannot install from the wheels of $url for $tag on $machine; its admin makes more: updraft admin wheelhouse"
    # printf is the shell's own: the token is in nobody's arguments.
    if [ -n "$fingerprint" ]; then
        set -- --fingerprint "$fingerprint" "$@"
    fi
    printf '%s\n' "$token" | "$folder/bin/updraft" runner join "$@" "$url"
}

{ main "$@"; }
