"""The rows about QEMU guests: vmsnap against QEMU's own background-snapshot of the same guest."""
import os
import shlex
import sys

import guests
import qemu
from scenario import MeasureError, Scenario, resident_bytes
from table import Line, format_share, format_us

PAGES_PER_SECOND = 100000  # what the guest is asked for; twice what the table asks
PAGES_WANTED = 50000
SLOW_BYTES_PER_SECOND = 20000000
RIVAL = "background-snapshot"
SLOW_CAT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib", "slow-cat.py")


def start_qemu(scenario, name, size, words):
    """A TCG guest with a shared memfd that runs guest.bin. Return: the QEMU and the guest's serial line."""
    serial = guests.Serial(scenario.bench.path(name + ".serial"))
    if os.path.exists(serial.path):
        os.unlink(serial.path)
    arguments = guests.multiboot_arguments(scenario.bench.build, serial.path, size=size, words=words)
    guest = qemu.Qemu(arguments)
    scenario.guests.append(guest)
    serial.wait_populated()
    return guest, serial


def rival_seconds(bench, guest):
    """QEMU's own snapshot to a file, fsync counted. Return: how long it took."""
    path = bench.path("rival")
    try:
        return qemu.background_snapshot_to_file(guest.qmp, path)
    finally:
        if os.path.exists(path):
            os.unlink(path)
        bench.settle()


class QemuPause(Scenario):
    """The same guest, by us and by QEMU: how long it stands still, and how long it all takes."""
    rows = ("pause", "pause-1ms", "total")

    def start(self):
        self.guest, self.serial = start_qemu(self, "pause", "1G", f"rate={PAGES_PER_SECOND}")
        self.serial.skip()
        rate = self.serial.wait_reports(2)[-1]["rate"]
        if rate < PAGES_WANTED:
            raise MeasureError(f"the guest writes {rate} pages a second only: too slow a machine")

    def pause_us(self, what):
        pause = qemu.longest_pause_us(self.guest.qmp.take_events())
        if pause is None:
            raise MeasureError(f"{what}: QEMU told of no pause")
        return pause

    def round(self):
        self.guest.qmp.take_events()
        result = self.bench.save(qemu=self.guest.sockets[0])
        self.add("pause", self.pause_us("vmsnap"))
        self.add("total", result["wall-s"] * 1e6)
        self.add("rival-total", rival_seconds(self.bench, self.guest) * 1e6)
        self.add("rival-pause", self.pause_us(RIVAL))

    def lines(self):
        s = self.samples
        return [
            Line("pause", "pause, QEMU 1 GiB memfd, 100k pages/s", s["pause"], s["rival-pause"], RIVAL, format_us,
                 at_most=1 / 5),
            Line("pause-1ms", "  the same, on a quiet machine", s["pause"], 1000, "limit", format_us, at_most=1),
            Line("total", "total time of it, with fsync", s["total"], s["rival-total"], RIVAL, format_us,
                 at_most=1 / 2),
        ]


class QemuSparse(Scenario):
    """A guest that has touched 5 % of its memory: what a snapshot makes of that."""
    rows = ("guest-rss",)

    def round(self):
        guest, _serial = start_qemu(self, "sparse", "1G", "populate=5% rate=20000")
        before = resident_bytes(guest.pid)
        self.bench.save(qemu=guest.sockets[0])
        between = resident_bytes(guest.pid)
        rival_seconds(self.bench, guest)
        self.add("growth", between - before)
        self.add("rival-growth", resident_bytes(guest.pid) - between)
        self.add("resident", before)
        self.close()

    def lines(self):
        s = self.samples
        grown = [growth / resident for growth, resident in zip(s["growth"], s["resident"])]
        rival = [growth / resident for growth, resident in zip(s["rival-growth"], s["resident"])]
        return [
            Line("guest-rss", "RSS growth of a QEMU that touched 5 %", grown, 0.01, "limit", format_share, at_most=1),
            Line("guest-rss", "  the same", grown, rival, RIVAL, format_share),
        ]


class QemuSlowSink(Scenario):
    """A sink of 20 MB/s: how much of its speed the guest keeps meanwhile."""
    rows = ("slow-sink-speed",)

    def start(self):
        self.guest, self.serial = start_qemu(self, "slow", "128M", "")

    def speed(self, snapshot):
        """The guest's rate during @snapshot over its rate before."""
        self.serial.skip()
        before = self.serial.wait_reports(2)[-1]["rate"]
        self.serial.skip()
        snapshot()
        during = [report["rate"] for report in self.serial.reports()]
        if not during or not before:
            raise MeasureError("the guest did not report during the snapshot")
        return sum(during) / len(during) / before

    def ours(self):
        self.bench.save(qemu=self.guest.sockets[0],
                        options=["--buffer", "1G", "--max-bandwidth", SLOW_BYTES_PER_SECOND])

    def theirs(self):
        command = shlex.join([sys.executable, SLOW_CAT, str(SLOW_BYTES_PER_SECOND)])
        qemu.background_snapshot(self.guest.qmp, f"{command} >/dev/null")

    def round(self):
        self.add("speed", self.speed(self.ours))
        self.add("rival-speed", self.speed(self.theirs))

    def lines(self):
        return [Line("slow-sink-speed", "guest's speed while the sink takes 20 MB/s", self.samples["speed"],
                     self.samples["rival-speed"], RIVAL, format_share, at_least=2)]
