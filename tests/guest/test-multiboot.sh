#!/bin/bash
# The multiboot guest, stopped five times while it writes: its physical memory is the state after one write. Then it is
# saved and restored by QEMU's own migration, goes on, and has found no error.
#
# It stands while it is saved: QEMU 7.2 saving a guest that runs under TCG on several processors loses the last writes
# to a page now and then (1 of 109 runs of this guest, on a busy machine, and without anything of ours).
#
#     test-multiboot.sh GUEST SEQCHECK ACCEL SMP MEMORY-MIB [WORDS]     exit status 77: no QEMU, no KVM
set -u
guest=$1 seqcheck=$2 accel=$3 smp=$4 mib=$5 words=${6:-}
command -v qemu-system-x86_64 >/dev/null || { echo "skip: qemu-system-x86_64 is missing"; exit 77; }
[ "$accel" != kvm ] || [ -w /dev/kvm ] || { echo "skip: /dev/kvm is missing"; exit 77; }
dir=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill -9 $qemu; rm -rf "$dir"' EXIT

fail() {
    echo "FAILED: $*"
    cat "$dir"/serial*
    exit 1
}

# start NAME ARGUMENT…: QEMU with its monitor on a pipe, for hmp.
start() {
    local name=$1 firmware=()
    shift
    [ ! -e /usr/share/qemu/qboot.rom ] || firmware=(-bios /usr/share/qemu/qboot.rom -M "pc,acpi=off")
    mkfifo "$dir/$name.in" "$dir/$name.out"
    qemu-system-x86_64 -accel "$accel" -smp "$smp" -m "${mib}M" "${firmware[@]}" -display none -nic none -no-reboot \
        -serial "file:$dir/serial.$name" -chardev "pipe,id=m,path=$dir/$name" -mon m \
        -kernel "$guest" -append "$words" "$@" &
    qemu=$!
    exec {to_qemu}>"$dir/$name.in" {from_qemu}<"$dir/$name.out"
    read -r -t 60 -d ')' -u "$from_qemu" || fail "QEMU does not start"
}

# hmp COMMAND: until the next prompt, "(qemu) ".
hmp() {
    echo "$1" >&"$to_qemu"
    read -r -t 60 -d ')' -u "$from_qemu" answer || fail "no answer to $1"
    [[ $answer != *Error* ]] || fail "$1: $answer"
}

# reports NAME COUNT: wait until the guest has reported so often.
reports() {
    for _ in {1..1200}; do
        [ "$(grep -c '^N=' "$dir/serial.$1" 2>/dev/null)" -ge "$2" ] 2>/dev/null && return
        sleep 0.1
    done
    fail "the guest does not report"
}

check() {
    hmp stop
    hmp "pmemsave 0 $((mib << 20)) \"$dir/ram\""
    "$seqcheck" --multiboot "$dir/ram" || fail "physical memory is not the state after one write"
}

start first
reports first 1
for _ in {1..5}; do
    check
    hmp cont
    sleep "0.$((RANDOM % 5))"
done
hmp stop
hmp "migrate \"exec:cat >$dir/stream\""
kill -9 $qemu
wait $qemu 2>/dev/null
start second -incoming "exec:cat $dir/stream"
for _ in {1..600}; do
    hmp "info status"
    [[ $answer == *inmigrate* ]] || break
    read -r -t 60 -d ')' -u "$from_qemu" # "paused (inmigrate)", and the prompt is still to come
    sleep 0.1
done
hmp cont
reports second 2
check
grep -h . "$dir"/serial.*
grep -q ERROR "$dir"/serial.* && fail "the guest found an error"
exit 0
