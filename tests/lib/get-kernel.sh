#!/bin/sh
# Debian's cloud kernel, unpacked, and an initrd of busybox that counts: a real Linux guest in two small files.
#
#     get-kernel.sh DIR        makes DIR/vmlinuz and DIR/initrd.gz; a second run finds what the first one left
#
# The guest prints "guest ready" and then, every second, "tick N SUM": SUM is the checksum of a file in its memory, so
# a restored guest shows that it goes on counting and that its memory is what it was.
# Exit status: 0 done, 77 it cannot be had here (no Debian, no network, no busybox), 2 usage.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
[ -r "$dir/vmlinuz" ] && [ -r "$dir/initrd.gz" ] && exit 0

skip() {
    echo "skip: guest kernel: $*" >&2
    exit 77
}

command -v apt-get >/dev/null || skip "apt-get is needed"
command -v dpkg >/dev/null || skip "dpkg is needed"
busybox=$(command -v busybox) || skip "busybox is needed (package busybox-static or busybox)"
command -v cpio >/dev/null || cpio="$busybox cpio"
cpio=${cpio:-cpio}

work=$(mktemp -d "$dir/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: *//p' | head -n 1)
[ -n "$package" ] || skip "apt knows no linux-image-cloud-amd64 (apt-get update?)"
(cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package") >"$dir/log" 2>&1 ||
    skip "$package could not be downloaded, see $dir/log"
mkdir "$work/kernel"
dpkg -x "$work"/*.deb "$work/kernel"
mv "$work"/kernel/boot/vmlinuz-* "$dir/vmlinuz"

# busybox of Debian's package "busybox" is dynamic: its libraries come along.
root=$work/root
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
cp "$busybox" "$root/bin/busybox"
for library in $(ldd "$busybox" 2>/dev/null | grep -o '/[^ ]*'); do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
cat >"$root/init" <<'END'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
echo "guest ready $(uname -r)"
n=0
while :; do
    n=$((n + 1))
    echo "tick $n $(md5sum </tmp/data | cut -c 1-32)"
    sleep 1
done
END
chmod +x "$root/init"
(cd "$root" && find . | $cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd.gz"
mv "$work/initrd.gz" "$dir/initrd.gz"
