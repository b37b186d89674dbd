#!/usr/bin/env python3
"""Snapshots of a QEMU whose guest writes at full rate: each equals the guest's RAM at exactly one write.

exact-qemu.py BUILD [--accel tcg|kvm] [--memory KIND] [--cpus N] [--times T] [--size 128M]

Every image is verified, its RAM checked against the write sequence, and deleted; at the end the guest itself must have
found no error. Exit status 0, 1, or 77 when this machine cannot run that guest.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import guests
import huge
import qemu

SKIP = 77
BACKENDS = {
    "memfd": "memory-backend-memfd,share=on",
    "memfd-private": "memory-backend-memfd,share=off",
    "shm-file": "memory-backend-file,share=on,mem-path={dir}/ram",
    "hugetlb": "memory-backend-memfd,hugetlb=on,share=on",
    "hugetlb-private": "memory-backend-memfd,hugetlb=on,share=off",
}


def arguments(args, work, shm):
    command = ["-accel", args.accel, "-m", args.size, "-smp", str(args.cpus), "-nodefaults", "-display", "none",
               "-serial", f"file:{work}/serial", "-kernel", f"{args.build}/tests/guest/guest.bin"]
    machine = "pc"
    if args.accel == "kvm":
        command += ["-bios", "qboot.rom"]  # SeaBIOS takes 13 s and more where KVM emulates the guest's kernel mode
        machine = "pc,acpi=off"
    if args.memory == "anon":
        return [*command, "-machine", machine]
    backend = BACKENDS[args.memory].format(dir=shm)
    return [*command, "-object", f"{backend},id=ram,size={args.size}", "-machine", f"{machine},memory-backend=ram"]


def run(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: status {result.returncode}: {result.stdout.strip()}")


def one_snapshot(args, vm, image):
    vmsnap = f"{args.build}/tools/vmsnap"
    ram = "pc.ram" if args.memory == "anon" else "ram"
    run([vmsnap, "save", "--qemu", vm.sockets[0], image])
    run([vmsnap, "verify", image])
    run([f"{args.build}/tests/guest/seqcheck", "--multiboot", f"{image}/ram/{ram}.img"])
    run([vmsnap, "delete", image])


def check(args, work, shm):
    serial = guests.Serial(f"{work}/serial")
    with qemu.Qemu(arguments(args, work, shm)) as vm:
        serial.wait_populated()
        for _ in range(args.times):
            one_snapshot(args, vm, f"{work}/image")
        serial.skip()
        last = serial.wait_reports(2)[-1]
        if last["errors"]:
            raise AssertionError(f"the guest found {last['errors']} errors")
    print(f"{args.accel}, {args.memory}, {args.cpus} processors: {args.times} snapshots exact; "
          f"the guest at N={last['N']}, {last['rate']} writes/s, no error")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--accel", default="tcg", choices=["tcg", "kvm"])
    parser.add_argument("--memory", default="anon", choices=["anon", *BACKENDS])
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--size", default="128M")
    args = parser.parse_args()
    if args.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("skip: /dev/kvm is not usable")
        sys.exit(SKIP)
    if not shutil.which("qemu-system-x86_64"):
        print("skip: qemu-system-x86_64 is not installed")
        sys.exit(SKIP)
    if args.memory.startswith("hugetlb"):
        huge.reserve(int(args.size.rstrip("M")) // 2 + 32)
    work = tempfile.mkdtemp(prefix="exact-qemu-", dir=os.environ.get("SNAP_TEST_DIR"))
    shm = tempfile.mkdtemp(prefix="exact-qemu-", dir="/dev/shm")
    try:
        check(args, work, shm)
    except (AssertionError, guests.GuestError, qemu.QmpError) as error:
        print(error)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(shm, ignore_errors=True)


main()
