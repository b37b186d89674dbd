#!/usr/bin/env python3
"""A QEMU that writes all the time: snapshotted, checked, killed, brought back; then QEMU's own way, for comparison."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import children  # noqa: E402
import guests  # noqa: E402
import qemu  # noqa: E402
from scenario import resident_bytes  # noqa: E402
from table import format_bytes, format_rate, format_us  # noqa: E402
from vmsnap import Vmsnap, VmsnapError  # noqa: E402

SIZE = "1G"
GO_ON_SECONDS = 5  # so long the restored guest has to run without an error
QEMU = "qemu-system-x86_64"


class DemoError(Exception):
    pass


def say(what, text):
    print(f"  {what:<10}{text}", flush=True)


def title(text):
    print(f"\n{text}", flush=True)


class Demo:
    def __init__(self, build, work):
        self.build, self.work = build, work
        self.vmsnap = Vmsnap(build)
        self.image = f"{work}/image"
        self.ours, self.theirs = {}, {}

    def start_guest(self, name):
        """Return: the QEMU, its guest's serial line and its last report, all memory written once."""
        serial = guests.Serial(f"{self.work}/{name}.serial")
        guest = qemu.Qemu(guests.multiboot_arguments(self.build, serial.path, size=SIZE))
        return guest, serial, serial.wait_populated()

    def measure(self, guest, serial, snapshot):
        """What a snapshot does to its guest: pause, longest write, growth of QEMU."""
        serial.skip()
        guest.qmp.take_events()
        before = resident_bytes(guest.pid)
        snapshot()
        pause = qemu.longest_pause_us(guest.qmp.take_events())
        if pause is None:
            raise DemoError("QEMU told of no pause")
        stall = max(report["stall-us"] for report in serial.wait_reports(2))
        return {"pause": pause, "stall": stall, "growth": max(0, resident_bytes(guest.pid) - before)}

    # ---- the steps, in order ----

    def run_guest(self):
        guest, serial, report = self.start_guest("guest")
        version = guest.qmp.command("query-version")["qemu"]
        title("A guest that writes")
        say("QEMU", f"{version['major']}.{version['minor']}.{version['micro']}, TCG, {SIZE} of shared memfd")
        say("writes", f"{report['rate']:,} pages a second, in a known sequence; N = {report['N']:,}")
        return guest, serial

    def snapshot(self, guest, serial):
        def save():
            self.ours.update(self.vmsnap.save(self.image, qemu=guest.sockets[0]))
        title("Snapshot while it writes")
        self.ours.update(self.measure(guest, serial, save))
        say("pause", f"{format_us(self.ours['pause'])}, then it writes on")
        say("took", f"{format_us(self.ours['wall-s'] * 1e6)}, on disk: {format_bytes(self.ours['bytes-written'])}")
        pages = self.ours["pages"]
        say("saved", f"{pages['by-fault']:,} pages before the guest changed them, {pages['by-sweep']:,} by the way")

    def check(self):
        """Return: the one N that the image is the state after."""
        title("Is it right?")
        self.vmsnap.run("verify", self.image)
        say("verify", "every byte has its checksum")
        raw = f"{self.work}/ram.raw"
        self.vmsnap.run("export", self.image, "--format", "raw", "--region", "ram", "-o", raw)
        result = subprocess.run([f"{self.build}/tests/guest/seqcheck", "--multiboot", raw], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)
        os.unlink(raw)
        if result.returncode != 0:
            raise DemoError(f"the image is not the guest's state at any instant: {result.stdout.splitlines()[0]}")
        n = guests.parse_line(result.stdout)["N"]
        say("exact", f"all memory is what it was after write N = {n:,}")
        return n

    def restore(self, n):
        title("Back from the image")
        serial = guests.Serial(f"{self.work}/restored.serial")
        command = [QEMU, *guests.multiboot_arguments(self.build, serial.path, size=SIZE)]
        with self.vmsnap.restore(self.image, command) as restored:
            self.ours["ready-ms"] = restored.result["ready-ms"]
            say("runs", f"after {format_us(self.ours['ready-ms'] * 1e3)}")
            end = time.monotonic() + GO_ON_SECONDS
            reports = serial.wait_reports(2)
            while time.monotonic() < end:
                time.sleep(0.1)
                reports = serial.reports()
            self.judge(n, reports)

    def judge(self, n, reports):
        first, last = reports[0], reports[-1]
        if last["errors"]:
            raise DemoError(f"the restored guest found {last['errors']} wrong words")
        if not n < first["N"] < last["N"]:
            raise DemoError(f"the restored guest did not go on from N = {n}: {first['N']} … {last['N']}")
        say("goes on", f"from N = {n:,} to {last['N']:,}, checking each page: 0 errors")

    def compare(self):
        title("The same by QEMU's own background-snapshot")
        guest, serial, _report = self.start_guest("rival")
        path = f"{self.work}/rival"

        def save():
            self.theirs["total"] = qemu.background_snapshot_to_file(guest.qmp, path) * 1e6
        with guest:
            self.theirs.update(self.measure(guest, serial, save))
        self.theirs["bytes"] = os.path.getsize(path)
        os.unlink(path)
        self.print_comparison()

    def print_comparison(self):
        ours, theirs, faults = self.ours, self.theirs, self.ours["fault-latency-us"]
        rate = ours["bytes-written"] / (ours["total-ms"] - ours["prepare-ms"]) * 1e3
        rows = [
            ("", "vmsnap", "QEMU"),
            ("pause", format_us(ours["pause"]), format_us(theirs["pause"])),
            ("longest write of the guest", format_us(ours["stall"]), format_us(theirs["stall"])),
            ("total, on disk", format_us(ours["wall-s"] * 1e6), format_us(theirs["total"])),
            ("throughput", format_rate(rate), format_rate(theirs["bytes"] / theirs["total"] * 1e6)),
            ("fault served, half within", format_us(faults["p50"]), "not told"),
            ("fault served, 99 % within", format_us(faults["p99"]), "not told"),
            ("memory of the snapshotter", format_bytes(ours["peak-rss-bytes"]), "inside QEMU"),
            ("growth of QEMU", format_bytes(ours["growth"]), format_bytes(theirs["growth"])),
        ]
        for what, left, right in rows:
            print(f"  {what:<28}{left:>12}{right:>14}")


def run(demo):
    guest, serial = demo.run_guest()
    with guest:
        demo.snapshot(guest, serial)
        n = demo.check()
    title("The guest is killed")
    say("gone", "its memory with it")
    demo.restore(n)
    demo.compare()
    print(f"\nPASS: a copy of a running guest, exact at write {n:,}, and running again from it.")


def main():
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--build", default="build", help=argparse.SUPPRESS)
    options = parser.parse_args()
    children.end_by_signal()
    build = os.path.abspath(options.build)
    work = tempfile.mkdtemp(prefix="demo-", dir=build)
    try:
        run(Demo(build, work))
        return 0
    except (DemoError, VmsnapError, guests.GuestError, qemu.QmpError, OSError) as error:
        print(f"\nFAIL: {error}")
        return 1
    except KeyboardInterrupt:
        print("\nFAIL: interrupted")
        return 1
    finally:
        children.stop_all()
        shutil.rmtree(work, ignore_errors=True)


sys.exit(main())
