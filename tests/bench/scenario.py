"""What the rows have in common: a place to work in, the programs, and rounds of measuring in turns."""
import os
import shutil
import subprocess

import guests
from vmsnap import Vmsnap

GIB = 1 << 30


class MeasureError(Exception):
    pass


class Bench:
    """@build: the build directory. @work: an empty folder on the file system that images are written to."""

    def __init__(self, build, work):
        self.build, self.work = build, work
        self.vmsnap = Vmsnap(build)

    def path(self, name):
        return f"{self.work}/{name}"

    def settle(self):
        """What one program left for the disk to do is not the next one's burden."""
        os.sync()

    def clean(self):
        """Remove what was written, images and cores alike."""
        for entry in os.scandir(self.work):
            shutil.rmtree(entry) if entry.is_dir() else os.unlink(entry)
        self.settle()

    def floor(self, program, *arguments):
        """Run a floor program. Return: the fields of its line."""
        result = subprocess.run([f"{self.build}/tests/bench/{program}", *map(str, arguments)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if result.returncode != 0:
            raise MeasureError(result.stderr.strip() or f"{program}: status {result.returncode}")
        return guests.parse_line(result.stdout)

    def save(self, name="image", vmsnap=None, **target):
        """vmsnap save, and the image away again: with options, e.g. options=["--buffer", "1G"]."""
        image = self.path(name)
        try:
            return (vmsnap or self.vmsnap).save(image, *target.pop("options", []), **target)
        finally:
            shutil.rmtree(image, ignore_errors=True)
            self.settle()


class Scenario:
    """Some guests, and rounds of measuring: ours, theirs, ours, theirs, as the machine is never the same for long.

    A subclass names the @rows that it yields, starts its guests in start(), measures each thing once in round(),
    by self.add(), and makes lines of it in lines(). What start() opens is put on self.guests.
    """
    rows = ()

    def __init__(self, bench):
        self.bench = bench
        self.guests = []
        self.samples = {}

    def add(self, name, value):
        self.samples.setdefault(name, []).append(value)

    def start(self):
        pass

    def round(self):
        raise NotImplementedError

    def lines(self):
        raise NotImplementedError

    def close(self):
        while self.guests:
            self.guests.pop().close()

    def run(self, runs):
        try:
            self.start()
            for _ in range(runs):
                self.round()
        finally:
            self.close()
        return self.lines()


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def resident_bytes(pid):
    """Of a process, page tables aside."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        for line in f:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise MeasureError(f"process {pid} has no memory")
