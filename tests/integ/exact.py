#!/usr/bin/env python3
"""Snapshots of memguest at full write rate: each equals the guest's memory at exactly one write.

exact.py BUILD [--memory KIND] [--threads N] [--times T] [--events LIST] [--size SIZE] [--save OPTION...]

BUILD is the build directory. Every snapshot is verified, checked against the write sequence, and deleted; at the end
the guest itself must have found no error. Prints a line for the whole run. Exit status 0, 1, or 77 when this machine
cannot map that kind of memory.
"""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import huge

SKIP = 77


def start_guest(args):
    command = [f"{args.build}/tests/guest/memguest", "--memory", args.memory, "--size", args.size,
               "--threads", str(args.threads)]
    if args.events:
        command += ["--events", args.events]
    guest = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ready = guest.stdout.readline()
    if not ready.startswith("ready"):
        print("skip: memguest:", guest.stderr.read().strip())
        sys.exit(SKIP)
    return guest, re.search(r"arena=0x([0-9a-f]+)", ready).group(1)


def run(command, what):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        raise AssertionError(f"{what}: {' '.join(command)}: status {result.returncode}: {result.stdout.strip()}")
    return result.stdout


def one_snapshot(args, guest, arena, image):
    vmsnap = f"{args.build}/tools/vmsnap"
    preload = ["env", f"LD_PRELOAD={args.preload}"] if args.preload else []
    run([*preload, vmsnap, "save", "--pid", str(guest.pid), image] + args.save, "save")
    run([vmsnap, "verify", image], "verify")
    run([f"{args.build}/tests/integ/imagecheck", image, arena], "check")
    run([vmsnap, "delete", image], "delete")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--memory", default="anon")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--events")
    parser.add_argument("--preload", help="a library that vmsnap save is started with")
    parser.add_argument("--size", default="64M")
    parser.add_argument("--save", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    if args.memory.startswith("hugetlb"):
        huge.reserve(64)
    work = tempfile.mkdtemp(prefix="exact-", dir=os.environ.get("SNAP_TEST_DIR"))
    guest, arena = start_guest(args)
    done = 0
    try:
        for done in range(args.times):
            one_snapshot(args, guest, arena, f"{work}/image")
        done = args.times
        guest.send_signal(signal.SIGTERM)
        end = guest.communicate(timeout=30)[0].strip()
        if guest.returncode != 0:
            raise AssertionError(f"the guest found errors: {end}")
        print(f"{args.memory}, {args.threads} threads: {done} snapshots exact; {end}")
    except AssertionError as error:
        print(f"after {done} good snapshots: {error}")
        sys.exit(1)
    finally:
        guest.kill()
        shutil.rmtree(work, ignore_errors=True)


main()
