#!/bin/sh
# Unpack Debian's backported QEMU 10 beside the installed QEMU: nothing outside DIR is changed.
#
#     get-qemu10.sh DIR        prints the program to run; a second run finds what the first one left
#
# apt works on sources, lists and a cache of its own below DIR, resolves what the installed system lacks, and downloads
# it; dpkg -x unpacks it. DIR/qemu is a wrapper that finds the unpacked libraries and the firmware (-L).
# Exit status: 0 done, 77 it cannot be had here (no Debian 12, no network), 2 usage.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
# Of two at once the second finds what the first has unpacked.
exec 9>"$dir/lock"
flock 9
if [ -x "$dir/qemu" ] && "$dir/qemu" --version >/dev/null 2>&1; then
    echo "$dir/qemu"
    exit 0
fi

skip() {
    echo "skip: QEMU 10: $*" >&2
    exit 77
}

command -v apt-get >/dev/null || skip "apt-get is needed"
command -v dpkg >/dev/null || skip "dpkg is needed"
# shellcheck source=/dev/null
. /etc/os-release
[ "${VERSION_CODENAME:-}" = bookworm ] || skip "made for Debian 12, this is ${PRETTY_NAME:-unknown}"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keyring ] || skip "$keyring is missing"
# The mirror that this machine uses anyway.
mirror=$(sed -n 's/^URIs: *\(.*\/debian\)\/*$/\1/p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\(http[^ ]*\/debian\)\/* .*/\2/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}

apt=$dir/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/empty"
cat >"$apt/sources.list" <<END
deb [signed-by=$keyring] $mirror bookworm main
deb [signed-by=$keyring] $mirror bookworm-backports main
END

private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts="$apt/empty" \
        -o Dir::Etc::preferencesparts="$apt/empty" -o Dir::State::lists="$apt/lists" \
        -o Dir::State::extended_states="$apt/extended_states" -o Dir::Cache="$apt/cache" \
        -o APT::Sandbox::User=root -o Debug::NoLocking=true "$@"
}

private_apt update >"$apt/log" 2>&1 || skip "apt-get update failed, see $apt/log"
private_apt install -y --download-only --no-install-recommends --reinstall -t bookworm-backports \
    qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu >>"$apt/log" 2>&1 ||
    skip "the packages could not be downloaded, see $apt/log"

rm -rf "$dir/root"
mkdir "$dir/root"
for deb in "$apt"/cache/archives/*.deb; do
    dpkg -x "$deb" "$dir/root"
done

cat >"$dir/qemu.tmp" <<END
#!/bin/sh
LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu QEMU_MODULE_DIR=$dir/root/usr/lib/x86_64-linux-gnu/qemu \\
exec $dir/root/usr/bin/qemu-system-x86_64 -L $dir/root/usr/share/qemu -L $dir/root/usr/share/seabios -L $dir/root/usr/lib/ipxe/qemu "\$@"
END
chmod +x "$dir/qemu.tmp"
version=$("$dir/qemu.tmp" --version 2>&1 | head -n 1) || skip "it does not run: $version"
mv "$dir/qemu.tmp" "$dir/qemu"
rm -rf "$apt/cache"
echo "$dir/qemu"
