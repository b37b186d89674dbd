#!/bin/sh
# QEMU's own Python client for QMP, out of Debian's source package of QEMU: nothing outside DIR is changed.
#
#     get-qemu-python.sh DIR        prints the folder for PYTHONPATH; a second run finds what the first one left
#
# apt works on sources, lists and a cache of its own below DIR; only python/qemu/qmp is unpacked, and the rest removed.
# Exit status: 0 done, 77 it cannot be had here (no Debian, no network), 2 usage.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -r "$dir/python/qemu/qmp/__init__.py" ]; then
    echo "$dir/python"
    exit 0
fi

skip() {
    echo "skip: QEMU's Python client: $*" >&2
    exit 77
}

command -v apt-get >/dev/null || skip "apt-get is needed"
command -v tar >/dev/null || skip "tar is needed"
command -v xz >/dev/null || skip "xz is needed (package xz-utils)"
# shellcheck source=/dev/null
. /etc/os-release
[ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] || skip "made for Debian, this is ${PRETTY_NAME:-unknown}"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keyring ] || skip "$keyring is missing"
# The mirror that this machine uses anyway.
mirror=$(sed -n 's/^URIs: *\(.*\/debian\)\/*$/\1/p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\(http[^ ]*\/debian\)\/* .*/\2/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}

apt=$dir/apt
rm -rf "$apt"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/empty" "$apt/source" "$apt/root"
echo "deb-src [signed-by=$keyring] $mirror $VERSION_CODENAME main" >"$apt/sources.list"

private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/empty" \
        -o Dir::Etc::preferencesparts="$apt/empty" -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" \
        -o APT::Sandbox::User=root -o Debug::NoLocking=true "$@"
}

private_apt update >"$dir/log" 2>&1 || skip "apt-get update failed, see $dir/log"
(cd "$apt/source" && private_apt source --download-only qemu) >>"$dir/log" 2>&1 ||
    skip "the source package could not be downloaded, see $dir/log"
for archive in "$apt"/source/qemu_*.orig.tar.*; do
    tar -C "$apt/root" --wildcards -xf "$archive" '*/python/qemu/qmp/*' >>"$dir/log" 2>&1 ||
        skip "the source package has no python/qemu/qmp, see $dir/log"
done
rm -rf "$dir/python"
mv "$apt"/root/*/python "$dir/python"
rm -rf "$apt"
echo "$dir/python"
