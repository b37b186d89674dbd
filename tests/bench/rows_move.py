"""The rows about migration: the floors of a socket, limits, and QEMU moving the same guest."""
import os
import time

import children
import guests
import qemu
from scenario import MeasureError, Scenario
from table import Line, format_rate, format_share, format_us

LIMIT_MS = 30
RATE = 20000  # pages that the guest writes a second
SIZE = "1G"


class FirstRound(Scenario):
    """A gibibyte that nobody writes: how fast it goes over, against a loop that sends and one that receives it."""
    rows = ("move-first-round", "move-first-round-tcp")

    def round(self):
        for name, options in (("unix", []), ("tcp", ["--tcp"])):
            self.add(f"{name}", self.bench.floor("move-cost", "first-round", *options)["bytes-per-second"])
            floor = self.bench.floor("move-cost", "stream", *options)
            self.add(f"{name}-placed", floor["placed-bytes-per-second"])
            self.add(f"{name}-dropped", floor["dropped-bytes-per-second"])

    def lines(self):
        s = self.samples
        lines = []
        for row, name in (("move-first-round", "unix"), ("move-first-round-tcp", "tcp")):
            lines += [Line(row, f"first round of a move, 1 GiB, {name}", s[name], s[f"{name}-placed"],
                           "bare loop into memory", format_rate, at_least=0.75),
                      Line(row, "  the same", s[name], s[f"{name}-dropped"], "bare loop into one buffer", format_rate)]
        return lines


class Postcopy(Scenario):
    """A touch of a page that is still at the source, while others come in the background at 20 MB/s."""
    rows = ("postcopy-fault",)

    def round(self):
        self.add("floor", self.bench.floor("move-cost", "pingpong")["p50-us"])
        touch = self.bench.floor("move-cost", "postcopy")
        self.add("p50", touch["p50-us"])
        self.add("p99", touch["p99-us"])

    def lines(self):
        s = self.samples
        return [Line("postcopy-fault", "post-copy: touch of a missing page, p50", s["p50"], s["floor"],
                     "bare request and page", format_us, at_most=2),
                Line("postcopy-fault", "  p99 of these", s["p99"], s["floor"], "bare request and page", format_us)]


class Replicate(Scenario):
    """A program that writes 1 % of a gibibyte every 100 ms, alone and replicated in epochs of so long."""
    rows = ("replicate-slowdown",)

    def round(self):
        result = self.bench.floor("move-cost", "replicate")
        self.add("slowdown", max(result["slowdown"], 0))
        self.add("pause", result["pause-us"])

    def lines(self):
        s = self.samples
        return [Line("replicate-slowdown", "slowdown by replication, 100 ms epochs, 1 % dirty each", s["slowdown"], 0.05,
                     "limit", format_share, at_most=1),
                Line("replicate-slowdown", "  pause of an epoch", s["pause"], 5000, "5 % of an epoch", format_us)]


class Machine(children.Child):
    """A microvm that runs guest.bin, or waits for it."""

    def __init__(self, bench, number, words, incoming=None):
        self.path = bench.path(f"microvm{number}")
        self.serial = guests.Serial(f"{self.path}.serial")
        command = [f"{bench.build}/tools/microvm", "--qmp", f"unix:{self.path}.qmp", "-m", SIZE,
                   "--kernel", f"{bench.build}/tests/guest/guest.bin", "--append", words, "--serial", self.serial.path]
        super().__init__(command + (["--incoming", incoming] if incoming else []))
        end = time.monotonic() + 30
        while not os.path.exists(f"{self.path}.qmp"):
            if self.process.poll() is not None or time.monotonic() > end:
                raise MeasureError("microvm did not start")
            time.sleep(0.01)
        self.qmp = qemu.Qmp(f"{self.path}.qmp")

    def close(self):
        self.qmp.close()
        super().close()


class Rival(qemu.Qemu):
    """A QEMU with KVM that runs it."""

    def __init__(self, bench, number, words, incoming=None):
        self.serial = guests.Serial(bench.path(f"qemu{number}.serial"))
        arguments = ["-accel", "kvm", "-m", SIZE, "-nodefaults", "-display", "none", "-machine", "pc,acpi=off",
                     "-bios", "qboot.rom", "-serial", f"file:{self.serial.path}",
                     "-kernel", f"{bench.build}/tests/guest/guest.bin", "-append", words]
        super().__init__(arguments + (["-incoming", incoming] if incoming else []))


class Moves(Scenario):
    """The same guest, moved by us and by QEMU, from one machine to the next and on; the other one stands meanwhile."""
    rows = ("move-downtime", "move-limit", "move-total")
    kinds = (("ours", Machine), ("qemu", Rival))

    def start(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise MeasureError("there is no /dev/kvm")
        self.words = f"rate={RATE}"
        self.number = 0
        self.at = {}
        for name, kind in self.kinds:
            self.at[name] = kind(self.bench, self.number, self.words)
        for name, _kind in self.kinds:
            self.at[name].serial.wait_populated()
            self.at[name].qmp.command("stop")

    def close(self):
        for machine in getattr(self, "at", {}).values():
            machine.close()
        super().close()

    def move(self, name, kind):
        source, self.number = self.at[name], self.number + 1
        uri = f"unix:{self.bench.path(f'move{self.number}')}"
        destination = kind(self.bench, self.number, self.words, incoming=uri)
        self.at[name] = destination
        try:
            source.qmp.command("migrate-set-parameters", downtime_limit=LIMIT_MS, max_bandwidth=1 << 40)
            source.qmp.command("cont")
            time.sleep(1)
            source.qmp.take_events()
            source.qmp.command("migrate", uri=uri)
            state = self.wait_completed(name, source)
            destination.qmp.wait_event("RESUME")
            stop = [event for event in source.qmp.take_events() if event["event"] == "STOP"]
            resumed = [event for event in destination.qmp.take_events() if event["event"] == "RESUME"]
            self.add(f"{name}-downtime", (qemu.event_seconds(resumed[-1]) - qemu.event_seconds(stop[-1])) * 1e6)
            self.add(f"{name}-total", state["total-time"] * 1e3)
            destination.serial.wait_reports(1)
            destination.qmp.command("stop")
        finally:
            source.close()

    @staticmethod
    def wait_completed(name, source, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = source.qmp.command("query-migrate")
            if state["status"] == "completed":
                return state
            if state["status"] in ("failed", "cancelled"):
                raise MeasureError(f"{name}: {state.get('error-desc', state['status'])}")
            time.sleep(0.01)
        raise MeasureError(f"{name}: no end of it after {seconds} s")

    def round(self):
        for _ in range(2):
            for name, kind in self.kinds:
                self.move(name, kind)

    def lines(self):
        s = self.samples
        within = [sum(us <= LIMIT_MS * 1000 for us in s["ours-downtime"]) / len(s["ours-downtime"])]
        return [Line("move-downtime", f"downtime, 1 GiB, {RATE} pages/s", s["ours-downtime"], LIMIT_MS * 1000, "limit",
                     format_us, at_most=1),
                Line("move-downtime", "  the same", s["ours-downtime"], s["qemu-downtime"], "QEMU", format_us, at_most=1),
                Line("move-limit", f"  moves within downtime-limit, {LIMIT_MS} ms", within, 0.9, "9 of 10", format_share,
                     at_least=1),
                Line("move-total", "total time of such a move", s["ours-total"], s["qemu-total"], "QEMU", format_us,
                     at_most=1)]
