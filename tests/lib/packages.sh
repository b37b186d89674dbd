# shellcheck shell=bash
# Install the Debian packages of packages.txt that are missing. To be sourced.
#
#     install_packages        returns 0 when all are there; says what to do and returns 1 when they cannot be had

packages_list="$(dirname "${BASH_SOURCE[0]}")/packages.txt"

missing_packages() {
    local package
    while read -r package _; do
        case $package in '' | '#'*) continue ;; esac
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done <"$packages_list"
}

install_packages() {
    if ! command -v dpkg-query >/dev/null; then
        echo "This is no Debian: make sure that these are there: $packages_list" >&2
        return 0
    fi
    local -a missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "Missing packages; as root: apt-get install ${missing[*]}" >&2
        return 1
    fi
    echo "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -y --no-install-recommends install "${missing[@]}" </dev/null >/dev/null 2>&1 && return 0
    # The package lists may be old, or not there at all.
    apt-get -q update </dev/null >/dev/null 2>&1
    apt-get -q -y --no-install-recommends install "${missing[@]}" </dev/null
}
