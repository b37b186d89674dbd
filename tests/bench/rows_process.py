"""The rows about process guests: vmsnap against fork(), gcore and the floor programs."""
import os
import signal
import subprocess
import time

import children
import guests
from scenario import GIB, MeasureError, Scenario, available_bytes
from table import Line, format_bytes, format_rate, format_us
from vmsnap import Vmsnap

RSS_LIMIT_BYTES = 96 << 20
RATE = 20000  # writes a second of a guest under load, each to another page
SLOW_BYTES_PER_SECOND = 20000000
SETTLE_SECONDS = 0.2  # for a guest that went on just now


class Sizes(Scenario):
    """A guest of 8 GiB beside one of 1 GiB, and beside a fork() of so much. One of them runs at a time."""
    rows = ("pause-size", "pause-fork", "rss")

    def start(self):
        self.big = 8
        while self.big > 2 and available_bytes() < (2 * self.big + 2) * GIB:
            self.big //= 2
        start = dict(memory="anon", rate=RATE, prefill=True)
        self.small_guest = self.start_stopped(size="1G", **start)
        self.big_guest = self.start_stopped(size=f"{self.big}G", **start)
        self.forker = children.Child([f"{self.bench.build}/tests/bench/fork-pause", f"{self.big}G"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.guests.append(self.forker)
        self.forker.process.stdout.readline()

    def start_stopped(self, **options):
        guest = guests.Memguest(self.bench.build, **options)
        self.guests.append(guest)
        guest.process.send_signal(signal.SIGSTOP)
        return guest

    def save(self, guest):
        guest.process.send_signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        try:
            return self.bench.save(pid=guest.pid)
        finally:
            guest.process.send_signal(signal.SIGSTOP)

    def fork_us(self):
        self.forker.process.stdin.write("\n")
        self.forker.process.stdin.flush()
        return guests.parse_line(self.forker.process.stdout.readline())["fork-us"]

    def round(self):
        big, small = self.save(self.big_guest), self.save(self.small_guest)
        self.add("fork", self.fork_us())
        self.add("big", big["pause-us"])
        self.add("small", small["pause-us"])
        self.add("rss", max(big["peak-rss-bytes"], small["peak-rss-bytes"]))

    def lines(self):
        s = self.samples
        return [
            Line("pause-size", f"pause, process of {self.big} GiB", s["big"], s["small"], "with 1 GiB", format_us,
                 at_most=1.3),
            Line("pause-fork", "  the same", s["big"], s["fork"], f"fork() of {self.big} GiB", format_us,
                 at_most=1 / 20),
            Line("rss", f"vmsnap's RSS at 1 and {self.big} GiB", s["rss"], RSS_LIMIT_BYTES, "limit", format_bytes,
                 at_most=1),
        ]


class Faults(Scenario):
    """The guest on one CPU, who serves its faults on another; the ping-pong the same, with as much memory.

    The sink is slow enough for most pages to be saved by fault, and the guest small enough for the buffers.
    """
    rows = ("fault-anon", "fault-memfd")
    kinds = ("anon", "memfd")
    size, bytes_per_second, faults = "40M", "40M", 10000

    def start(self):
        cpus = sorted(os.sched_getaffinity(0))
        self.guest_cpu, self.our_cpu = cpus[0], cpus[-1]
        self.vmsnap = Vmsnap(self.bench.build, cpu=self.our_cpu)

    def ours(self, kind):
        guest = guests.Memguest(self.bench.build, cpu=self.guest_cpu, memory=kind, size=self.size, prefill=True,
                                rate=100000)
        with guest:
            result = self.bench.save(vmsnap=self.vmsnap, pid=guest.pid,
                                     options=["--max-bandwidth", self.bytes_per_second])
        if result["faults"] < 500:
            raise MeasureError(f"{kind}: {result['faults']} faults are too few to tell")
        return result["fault-latency-us"]["p50"]

    def theirs(self, kind):
        line = self.bench.floor("uffd-pingpong", "--memory", kind, "--writer-cpu", self.guest_cpu,
                                "--handler-cpu", self.our_cpu, "--size", self.size, "--faults", self.faults)
        return line["service-p50-us"]

    def round(self):
        for kind in self.kinds:
            self.add(kind, self.ours(kind))
            self.add(kind + "-floor", self.theirs(kind))

    def lines(self):
        return [Line(f"fault-{kind}", f"fault service, half within, {kind}", self.samples[kind],
                     self.samples[kind + "-floor"], "bare ping-pong", format_us, at_most=1.25)
                for kind in self.kinds]


class SlowSink(Scenario):
    """The longest write of a guest, in a time span with a snapshot to a slow sink, or with one to a fast sink."""
    rows = ("slow-sink",)

    def start(self):
        self.guest = guests.Memguest(self.bench.build, memory="anon", size="64M", prefill=True, rate=RATE)
        self.guests.append(self.guest)

    def stall_us(self, *options, seconds=0):
        self.guest.report()
        start = time.monotonic()
        self.bench.save(pid=self.guest.pid, options=["--buffer", "1G", *options])
        time.sleep(max(0, start + seconds - time.monotonic()))
        return self.guest.report()["stall-us"], time.monotonic() - start

    def round(self):
        slow, seconds = self.stall_us("--max-bandwidth", str(SLOW_BYTES_PER_SECOND))
        fast, _ = self.stall_us(seconds=seconds)
        self.add("slow", slow)
        self.add("fast", fast)

    def lines(self):
        return [Line("slow-sink", "longest write, sink takes 20 MB/s", self.samples["slow"], self.samples["fast"],
                     "fast sink", format_us, at_most=1.5)]


class Stall(Scenario):
    """A process of 2 GiB that works on: how long it is held up."""
    rows = ("stall",)

    def start(self):
        self.guest = guests.Memguest(self.bench.build, memory="anon", size="2G", prefill=True, rate=RATE)
        self.guests.append(self.guest)

    def gcore(self):
        core = self.bench.path("core")
        result = subprocess.run(["gcore", "-o", core, str(self.guest.pid)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        written = f"{core}.{self.guest.pid}"
        if not os.path.exists(written):
            raise MeasureError(f"gcore: {result.stdout.strip()}")

    def save(self):
        self.bench.vmsnap.save(self.bench.path("image"), pid=self.guest.pid)

    def stall_us(self, snapshot):
        """The window closes before files are removed: to free gigabytes of a file holds a CPU for long, too."""
        self.guest.report()
        snapshot()
        stall_us = self.guest.report()["stall-us"]
        self.bench.clean()
        return stall_us

    def round(self):
        start = time.monotonic()
        self.add("ours", self.stall_us(self.save))
        seconds = time.monotonic() - start
        self.add("gcore", self.stall_us(self.gcore))
        self.add("nothing", self.stall_us(lambda: time.sleep(seconds)))

    def lines(self):
        s = self.samples
        return [
            Line("stall", "longest write, process of 2 GiB", s["ours"], s["gcore"], "gcore", format_us,
                 at_most=1 / 500),
            Line("stall", "  the same", s["ours"], s["nothing"], "no snapshot at all", format_us),
        ]


class Throughput(Scenario):
    """A guest that does next to nothing, so that only the way to the disk is measured."""
    rows = ("throughput",)

    def start(self):
        self.guest = guests.Memguest(self.bench.build, memory="anon", size="1G", prefill=True, rate=1000)
        self.guests.append(self.guest)

    def floor(self, size_bytes, depth):
        rate = self.bench.floor("odirect-write", self.bench.path("floor"), size_bytes, depth)["bytes-per-second"]
        self.bench.settle()
        return rate

    def round(self):
        ours = self.bench.save(pid=self.guest.pid)
        size_bytes = ours["bytes-written"]
        self.add("ours", size_bytes / (ours["total-ms"] - ours["prepare-ms"]) * 1e3)
        self.add("floor", max(self.floor(size_bytes, depth) for depth in (1, 16)))

    def lines(self):
        return [Line("throughput", "throughput to disk", self.samples["ours"], self.samples["floor"],
                     "O_DIRECT write", format_rate, at_least=0.8)]
