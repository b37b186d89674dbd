#!/usr/bin/env python3
"""Checkpoints of a running QEMU, one a second: each is restored, and goes on without error.

chain-restore.py BUILD [--count 5] [--every 1s] [--memory memfd|anon]        exit status 0, 1, or 77 without QEMU
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import guests
import qemu
import vmsnap

SIZE = "128M"
QEMU = "qemu-system-x86_64"


class Failed(Exception):
    pass


def checkpoint(args, work):
    """Return: the images, oldest first; the guest is gone then."""
    serial = guests.Serial(f"{work}/serial")
    with qemu.Qemu(guests.multiboot_arguments(args.build, serial.path, size=SIZE, memory=args.memory)) as vm:
        serial.wait_populated()
        subprocess.run([f"{args.build}/tools/vmsnap", "save", "--qemu", vm.sockets[0], f"{work}/chain", "--every",
                        args.every, "--count", str(args.count)], check=True, stdout=subprocess.DEVNULL)
        serial.skip()
        if serial.wait_reports(2)[-1]["errors"]:
            raise Failed("the guest found errors while checkpoints were taken")
    return [f"{work}/chain/{name}" for name in sorted(os.listdir(f"{work}/chain"))]


def exact(args, work, program, image):
    """The write that the image is the state after."""
    raw = f"{work}/ram.raw"
    program.run("export", image, "--format", "raw", "--region", "ram" if args.memory == "memfd" else "pc.ram", "-o", raw)
    result = subprocess.run([f"{args.build}/tests/guest/seqcheck", "--multiboot", raw], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    os.unlink(raw)
    if result.returncode != 0:
        raise Failed(f"{image}: {result.stdout.splitlines()[0]}")
    return guests.parse_line(result.stdout)["N"]


def restore(args, work, program, image):
    n = exact(args, work, program, image)
    serial = guests.Serial(f"{work}/{os.path.basename(image)}.serial")
    command = [QEMU, *guests.multiboot_arguments(args.build, serial.path, size=SIZE, memory=args.memory)]
    with program.restore(image, command):
        first, *_, last = serial.wait_reports(2)
    if last["errors"] or not n < first["N"] < last["N"]:
        raise Failed(f"{image}: taken at N={n}, went on {first['N']} … {last['N']}, {last['errors']} errors")
    print(f"{os.path.basename(image)}: from N={n} to {last['N']}, 0 errors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--every", default="1s")
    parser.add_argument("--memory", default="memfd", choices=["memfd", "anon"])
    args = parser.parse_args()
    if not shutil.which(QEMU):
        print(f"skip: {QEMU} is not installed")
        sys.exit(77)
    work = tempfile.mkdtemp(prefix="chain-restore-", dir=os.environ.get("SNAP_TEST_DIR"))
    try:
        program = vmsnap.Vmsnap(args.build)
        for image in checkpoint(args, work):
            restore(args, work, program, image)
    except (Failed, guests.GuestError, qemu.QmpError, vmsnap.VmsnapError, subprocess.CalledProcessError) as error:
        print(error)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


main()
