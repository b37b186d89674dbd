"""The rows about the helper: how long its clients wait for an answer, against QEMU and against a limit."""
import os
import subprocess
import time

import badday
import guests
import qemu
import qmpd
from scenario import MeasureError, Scenario
from table import Line, format_us

OOB_LIMIT_US = 5000


class Helper:
    """A vmsnapd with one process as its target, and a client of our own."""

    def __init__(self, bench, **guest):
        folder = bench.path("helper")
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.guest = guests.Memguest(bench.build, **guest)
        self.server = qmpd.Vmsnapd(bench.build, folder)
        self.path = self.server.path
        self.client = self.server.client()
        self.client.add_process("guest", self.guest.pid)

    def close(self):
        self.client.close()
        self.server.close()
        self.guest.close()


class Roundtrip(Scenario):
    """The same client at a QEMU 7.2 whose guest stands, and at vmsnapd; of query-status a process is the target."""
    rows = ("qmp-roundtrip",)
    commands = ("query-version", "query-status")

    def start(self):
        self.qemu = qemu.Qemu(["-S", "-machine", "none", "-nodefaults", "-display", "none"])
        self.guests.append(self.qemu)
        self.helper = Helper(self.bench, memory="anon", size="4M", rate=100)
        self.guests.append(self.helper)
        version = self.qemu.qmp.command("query-version")["qemu"]
        self.against = f"QEMU {version['major']}.{version['minor']}"

    def round(self):
        for command in self.commands:
            for name, path in (("ours", self.helper.path), ("qemu", self.qemu.sockets[0])):
                fields = self.bench.floor("qmp-pingpong", path, command, "--count", 5000)
                self.add(f"{name}-{command}", fields["p50-us"])

    def lines(self):
        s = self.samples
        return [Line("qmp-roundtrip", f"QMP round trip, {command}", s[f"ours-{command}"], s[f"qemu-{command}"],
                     self.against, format_us, at_most=1.2) for command in self.commands]


class OutOfBand(Scenario):
    """exec-oob query-targets a thousand times a second, from the begin to the end of saves without a limit of a guest
    whose writers keep both processors busy. The client is the only one on this machine that waits for nothing else."""
    rows = ("qmp-oob",)

    def start(self):
        self.helper = Helper(self.bench, memory="anon", size="2G", threads=2, prefill=True)
        self.guests.append(self.helper)

    def round(self):
        client, image = self.helper.client, f"{self.helper.folder}/image"
        program = [f"{self.bench.build}/tests/bench/qmp-pingpong", self.helper.path, "query-targets", "--oob",
                   "--interval-us", "1000", "--count", "3000"]
        client.command("snapshot-save", job_id="save", target="guest", path=image)
        badday.wait_until(lambda: badday.disk_bytes(f"{image}/ram") > 0 or self.has_ended(client), 30, "the save writes")
        begin = time.monotonic()
        result = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        covered = self.has_ended(client)
        seconds = time.monotonic() - begin
        statistics = client.wait_job("save")
        if result.returncode != 0 or "error" in statistics:
            raise MeasureError(result.stderr.strip() or statistics.get("error"))
        if covered and seconds * 1000 > 2 * statistics["elapsed-ms"]:
            raise MeasureError(f"the save took {statistics['elapsed-ms']:.0f} ms only")
        fields = guests.parse_line(result.stdout)
        for name in ("p50-us", "p99-us", "max-us"):
            self.add(name, fields[name])
        self.bench.vmsnap.delete(image)
        self.bench.settle()

    @staticmethod
    def has_ended(client):
        return client.job("save")["status"] == "concluded"

    def lines(self):
        s = self.samples
        return [Line("qmp-oob", "QMP out of band, while a save keeps disk and CPUs busy: p99", s["p99-us"], OOB_LIMIT_US,
                     "limit", format_us, at_most=1),
                Line("qmp-oob", "  the longest", s["max-us"], OOB_LIMIT_US, "limit", format_us, at_most=1),
                Line("qmp-oob", "  half of them", s["p50-us"], OOB_LIMIT_US, "limit", format_us)]


class TwoGuests(Scenario):
    """Two guests saved through one helper: one after the other, and both at once, while both run all the time."""
    rows = ("qmp-two-guests",)

    def start(self):
        self.helper = Helper(self.bench, memory="memfd", size="256M", rate=20000)
        self.guests.append(self.helper)
        self.other = guests.Memguest(self.bench.build, memory="memfd", size="256M", rate=20000)
        self.guests.append(self.other)
        self.helper.client.add_process("other", self.other.pid)

    def save(self, targets):
        client = self.helper.client
        for target in targets:
            client.command("snapshot-save", job_id=target, target=target, path=f"{self.helper.folder}/{target}")
        pauses = []
        for target in targets:
            badday.wait_until(lambda: client.job(target)["status"] == "concluded", 60, f"{target} is saved")
            pauses.append(client.command("query-job-statistics", id=target)[0]["save"]["pause-us"])
            client.command("job-dismiss", id=target)
            self.bench.vmsnap.delete(f"{self.helper.folder}/{target}")
        self.bench.settle()
        return pauses

    def round(self):
        for target in ("guest", "other"):
            self.add("alone", self.save([target])[0])
        for pause in self.save(["guest", "other"]):
            self.add("both", pause)

    def lines(self):
        s = self.samples
        return [Line("qmp-two-guests", "pause of two guests saved at once by one helper", s["both"], s["alone"], "alone",
                     format_us)]
