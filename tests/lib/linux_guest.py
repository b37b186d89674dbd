"""A Linux guest that counts aloud, for a QEMU: get-kernel.sh makes it. And get-*.sh, run from Python.

The guest prints "tick N SUM" once a second, SUM being a checksum of its memory: after a way back it must count on from
where it was, with the same checksum.
"""
import os
import re
import subprocess
import time

import cases

LIB = os.path.dirname(os.path.abspath(__file__))
SEVEN = "qemu-system-x86_64"
SIZE = "256M"


class Failed(Exception):
    pass


def fetch(script, folder):
    """Run a get-*.sh of tests/lib. Return: what it prints. Errors: cases.Skip, it cannot be had."""
    result = subprocess.run([f"{LIB}/{script}", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode == cases.EXIT_SKIP:
        raise cases.Skip(result.stderr.strip())
    if result.returncode != 0:
        raise Failed(f"{script}: {result.stderr.strip()}")
    return result.stdout.strip()


class Linux:
    """The command line of the guest, and what it says on its serial line."""

    def __init__(self, case, cache, work):
        self.work = work
        self.programs = {"7": SEVEN}
        fetch("get-kernel.sh", f"{cache}/kernel")
        if "10" in (case.get("from"), case.get("to")):
            self.programs["10"] = fetch("get-qemu10.sh", f"{cache}/qemu10")
        self.arguments = ["-accel", "tcg", "-m", SIZE, "-display", "none", "-kernel", f"{cache}/kernel/vmlinuz",
                          "-initrd", f"{cache}/kernel/initrd.gz", "-append", "console=ttyS0 quiet",
                          *case.get("args", []), *self._memory(case)]

    def _memory(self, case):
        if "backend" not in case:
            return ["-M", case["machine"]] if "machine" in case else []
        kind, _, rest = case["backend"].replace("FILE", f"/dev/shm/{os.path.basename(self.work)}").partition(",")
        backend = f"{kind},id=ram,size={SIZE}" + (f",{rest}" if rest else "")
        return ["-object", backend, "-machine", f"{case.get('machine', 'pc')},memory-backend=ram"]

    def serial(self, name):
        return ["-serial", f"file:{self.work}/{name}"]

    def ticks(self, name):
        """All "tick N SUM" so far: [(N, SUM), …]."""
        try:
            with open(f"{self.work}/{name}", "rb") as f:
                text = f.read().decode(errors="replace")
        except FileNotFoundError:
            return []
        if re.search(r"Oops|Kernel panic|BUG:", text):
            raise Failed(f"the guest's kernel complains: {text[-300:]}")
        return [(int(n), total) for n, total in re.findall(r"^tick (\d+) ([0-9a-f]{32})\r?$", text, re.M)]

    def wait_ticks(self, name, count, what, child=None, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if len(self.ticks(name)) >= count:
                return self.ticks(name)
            if child and child.poll() is not None:
                break
            time.sleep(0.05)
        raise Failed(f"{what}: the guest does not count, it said {self.ticks(name)}")


def check_counts_on(before, after, what):
    """A tick may have been begun before the copy and ended after it."""
    first, total = after[0]
    if total != before[-1][1]:
        raise Failed(f"{what}: the checksum of the guest's memory is {total}, it was {before[-1][1]}")
    numbers = [n for n, _ in before]
    if first not in range(numbers[0], numbers[-1] + 3):
        raise Failed(f"{what}: the guest counts from {first}, it had counted {numbers}")
    if [n for n, _ in after] != list(range(first, first + len(after))):
        raise Failed(f"{what}: the guest counts {after}")
