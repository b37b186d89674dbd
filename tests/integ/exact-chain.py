#!/usr/bin/env python3
"""A chain of snapshots of a guest at full load: each image, read through its parents, is the guest at one write.

exact-chain.py BUILD [--memory anon] [--threads 2] [--events …] [--count 6] [--keep N] [--merge]   a process
exact-chain.py BUILD --replicate [--memory anon] …          a process again: each image is an epoch of a replication
exact-chain.py BUILD --qemu tcg|kvm [--cpus 2] [--count 6] [--keep N]                        QEMU, shared memfd

Exit status 0, 1, or 77 where this machine cannot run that guest.
"""
import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday
import children
import guests
import huge
import qemu
import qmpd

SKIP = 77


class Failed(Exception):
    pass


def run(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise Failed(f"{' '.join(command)}: status {result.returncode}: {result.stdout.strip()}")
    return result.stdout


def save_chain(args, target, chain):
    """Twice, so that the second run goes on with what the first left, without a log."""
    for _ in range(2):
        command = [f"{args.build}/tools/vmsnap", "save", *target, chain, "--every", "300ms", "--count", str(args.count)]
        run(command + (["--keep", str(args.keep)] if args.keep else []))
    images = sorted(os.listdir(chain))
    wanted = args.keep or 2 * args.count
    if len(images) != wanted:
        raise Failed(f"{len(images)} images, not {wanted}: {images}")
    return [f"{chain}/{name}" for name in images]


def replicate_chain(args, pid, folder):
    """Epochs by the helper, as fast as they can be made."""
    with qmpd.Vmsnapd(args.build, folder) as server, server.client() as client:
        client.add_process("g", pid)
        client.command("replicate", path="chain", interval=args.interval, **({"keep": args.keep} if args.keep else {}))

        def state():
            now = client.command("query-migrate")
            if now["status"] not in ("setup", "active", "colo"):
                raise Failed(f"the replication has ended: {now}")
            return now

        badday.wait_until(lambda: state().get("epoch", 0) >= args.count, 600, f"{args.count} epochs")
        client.command("migrate_cancel")
        badday.wait_until(lambda: client.command("query-migrate")["status"] == "cancelled", 20, "it is cancelled")
    images = sorted(os.listdir(f"{folder}/chain"))
    if len(images) != args.keep if args.keep else len(images) < args.count:
        raise Failed(f"{len(images)} images: {images}")
    return [f"{folder}/chain/{name}" for name in images]


def check_merged(args, image, work):
    """The chain as one image holds the same, region by region; read by mapping its files, without any parent."""
    merged = f"{work}/merged"
    run([f"{args.build}/tools/vmsnap", "merge", image, merged])
    run([f"{args.build}/tools/vmsnap", "verify", merged])
    for part in (image, merged):
        run([f"{args.build}/tools/vmsnap", "export", part, "--format", "elf", "-o", f"{part}.core"])
    if not filecmp.cmp(f"{image}.core", f"{merged}.core", shallow=False):
        raise Failed("the merged image is not the chain")
    return merged


def check_process(args, work):
    command = [f"{args.build}/tests/guest/memguest", "--memory", args.memory, "--size", "64M", "--threads",
               str(args.threads)] + (["--rate", str(args.rate)] if args.rate else [])
    if args.events:
        command += ["--events", args.events]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as guest:
        try:
            ready = guest.stdout.readline()
            if not ready.startswith("ready"):
                print("skip: memguest:", guest.stderr.read().strip())
                sys.exit(SKIP)
            arena = re.search(r"arena=0x([0-9a-f]+)", ready).group(1)
            images = replicate_chain(args, guest.pid, work) if args.replicate else \
                save_chain(args, ["--pid", str(guest.pid)], f"{work}/chain")
            for image in images:
                run([f"{args.build}/tools/vmsnap", "verify", image])
                print(os.path.basename(image), run([f"{args.build}/tests/integ/imagecheck", image, arena]).strip())
            if args.merge:
                merged = check_merged(args, image, work)
                print("merged", run([f"{args.build}/tests/integ/imagecheck", merged, arena]).strip())
        finally:
            guest.terminate()
            last = guest.stdout.read().strip().splitlines()[-1:]
    if not last or "errors=0" not in last[0]:
        raise Failed(f"the guest: {last}")


def check_qemu(args, work):
    command = ["-accel", args.qemu, "-m", "128M", "-smp", str(args.cpus), "-nodefaults", "-display", "none",
               "-serial", f"file:{work}/serial", "-kernel", f"{args.build}/tests/guest/guest.bin",
               "-object", "memory-backend-memfd,share=on,id=ram,size=128M"]
    if args.qemu == "kvm":
        command += ["-bios", "qboot.rom"]
    command += ["-machine", ("pc,acpi=off" if args.qemu == "kvm" else "pc") + ",memory-backend=ram"]
    serial = guests.Serial(f"{work}/serial")
    with qemu.Qemu(command) as vm:
        serial.wait_populated()
        for image in save_chain(args, ["--qemu", vm.sockets[0]], f"{work}/chain"):
            run([f"{args.build}/tools/vmsnap", "verify", image])
            raw = f"{work}/ram.raw"
            run([f"{args.build}/tools/vmsnap", "export", image, "--format", "raw", "--region", "ram", "-o", raw])
            print(os.path.basename(image), run([f"{args.build}/tests/guest/seqcheck", "--multiboot", raw]).strip())
            os.unlink(raw)
        serial.skip()
        last = serial.wait_reports(2)[-1]
        if last["errors"]:
            raise Failed(f"the guest found {last['errors']} errors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--memory", default="anon")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=int)
    parser.add_argument("--events")
    parser.add_argument("--qemu", choices=["tcg", "kvm"])
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--keep", type=int)
    parser.add_argument("--replicate", action="store_true", help="epochs of a replication instead of snapshots")
    parser.add_argument("--interval", type=int, default=50, help="milliseconds from epoch to epoch")
    parser.add_argument("--merge", action="store_true", help="and merge the chain into one image")
    args = parser.parse_args()
    if args.qemu and not shutil.which("qemu-system-x86_64"):
        print("skip: qemu-system-x86_64 is not installed")
        sys.exit(SKIP)
    if args.qemu == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("skip: /dev/kvm is not usable")
        sys.exit(SKIP)
    if args.memory.startswith("hugetlb"):
        huge.reserve(64)
    work = tempfile.mkdtemp(prefix="exact-chain-", dir=os.environ.get("SNAP_TEST_DIR"))
    try:
        (check_qemu if args.qemu else check_process)(args, work)
    except (Failed, AssertionError, guests.GuestError, qemu.QmpError, qmpd.Refused) as error:
        print(error)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    children.end_by_signal()
    main()
