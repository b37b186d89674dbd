"""The rows about the dirty log and incremental snapshots: vmsnap and the library against the bare kernel."""
import json
import shutil
import subprocess

import children
import guests
from scenario import MeasureError, Scenario
from table import Line, format_bytes, format_share, format_us

DIRTY = ("0", "1", "10", "100")


def format_ns(ns):
    return format_us(ns / 1e3)


def format_ms(ms):
    return format_us(ms * 1e3)


def format_kib(kib):
    return format_bytes(kib * 1024)


class Scan(Scenario):
    """scan-floor takes turns between a bare PAGEMAP_SCAN loop and the library itself, on the same 2 GiB."""
    rows = tuple(f"scan-{percent}" for percent in DIRTY)

    def round(self):
        output = subprocess.run([f"{self.bench.build}/tests/bench/scan-floor", "--library", "--size", "2G", "--rounds",
                                 "5", "--dirty", ",".join(DIRTY)], stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in output.splitlines():
            fields = guests.parse_line(line)
            self.add(f"ours-{fields['dirty-percent']}", fields["library-us"])
            self.add(f"bare-{fields['dirty-percent']}", fields["bare-us"])

    def lines(self):
        return [Line(f"scan-{percent}", f"scan and protect 2 GiB, {percent} % dirty", self.samples[f"ours-{percent}"],
                     self.samples[f"bare-{percent}"], "bare PAGEMAP_SCAN", format_us, at_most=1.15)
                for percent in DIRTY]


class FirstWrite(Scenario):
    rows = ("first-write",)

    def round(self):
        fields = self.bench.floor("first-write", "--size", "128M", "--rounds", "1")
        for name in ("async", "mprotect", "sync"):
            self.add(name, fields[f"{name}-ns"])

    def lines(self):
        s = self.samples
        return [Line("first-write", "first write to a page that is logged", s["async"], s["mprotect"],
                     "mprotect + SIGSEGV", format_ns, at_most=1 / 4),
                Line("first-write", "  the same", s["async"], s["sync"], "sync log", format_ns)]


class Arm(Scenario):
    rows = ("arm",)

    def round(self):
        fields = self.bench.floor("arm-cost", "--size", "1G", "--rounds", "1")
        self.add("ours", fields["library-ms-per-gib"])
        self.add("uffdio", fields["uffdio-ms-per-gib"])

    def lines(self):
        return [Line("arm", "arming 1 GiB of 4 KiB pages", self.samples["ours"], self.samples["uffdio"],
                     "UFFDIO_WRITEPROTECT", format_ms, at_most=1 / 2)]


class Sparse(Scenario):
    """sparse-cost takes turns between the library's tracker and the bare calls, each on fresh memory."""
    rows = ("sparse-arm", "sparse-scan", "sparse-tables", "sparse-sync")
    limit_ms, tables_limit_kib = 20, 64

    def round(self):
        for how in ("async", "sync"):
            fields = self.bench.floor("sparse-cost", "--how", how, "--rounds", "3")
            for name in fields.keys() - {"how"}:
                self.add(f"{how}-{name}", fields[name])

    def lines(self):
        s = self.samples
        return [Line("sparse-arm", "arming 16 TiB with 1000 pages in it", s["async-arm-ms"], self.limit_ms, "limit",
                     format_ms, at_most=1),
                Line("sparse-arm", "  the same", s["async-arm-ms"], s["async-bare-arm-ms"], "bare PAGEMAP_SCAN",
                     format_ms),
                Line("sparse-scan", "scan and protect it, 10 % of them dirty", s["async-scan-ms"], self.limit_ms,
                     "limit", format_ms, at_most=1),
                Line("sparse-scan", "  the same", s["async-scan-ms"], s["async-bare-scan-ms"], "bare PAGEMAP_SCAN",
                     format_ms),
                Line("sparse-tables", "page tables that both add", s["async-tables-kib"], self.tables_limit_kib,
                     "limit", format_kib, at_most=1),
                Line("sparse-sync", "sync: arming 64 GiB with 1000 pages in it", s["sync-arm-ms"], s["sync-all-ms"],
                     "UFFDIO_WRITEPROTECT", format_ms),
                Line("sparse-sync", "  the same", s["sync-arm-ms"], s["sync-blocks-ms"], "bare, of what is filled",
                     format_ms),
                Line("sparse-sync", "  page tables that it adds", s["sync-tables-kib"], s["sync-all-tables-kib"],
                     "UFFDIO_WRITEPROTECT", format_kib)]


class Incremental(Scenario):
    """A process of 2 GiB that writes the same 1 % of its pages again and again, all of them in each period."""
    rows = ("incremental-time", "incremental-bytes", "incremental-pause")

    def start(self):
        self.guests.append(guests.Memguest(self.bench.build, memory="anon", size="2G", prefill=True, hot=0.01,
                                           rate=20000))

    def round(self):
        chain = self.bench.path("chain")
        command = [f"{self.bench.build}/tools/vmsnap", "save", "--pid", str(self.guests[0].pid), chain, "--every", "1s",
                   "--count", "4", "--json"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if result.returncode != 0:
            raise MeasureError(result.stderr.strip())
        full, *rest = [json.loads(line) for line in result.stdout.splitlines()]
        for name in ("total-ms", "bytes-written", "pause-us"):
            self.add(f"full-{name}", full[name])
            for image in rest:
                self.add(name, image[name])
        shutil.rmtree(chain)
        self.bench.settle()

    def lines(self):
        s = self.samples
        return [Line("incremental-time", "incremental snapshot, 1 % of 2 GiB dirty", s["total-ms"], s["full-total-ms"],
                     "full snapshot", format_ms, at_most=1 / 20),
                Line("incremental-bytes", "  its bytes", s["bytes-written"], s["full-bytes-written"], "full snapshot",
                     format_bytes, at_most=1 / 50),
                Line("incremental-pause", "  its pause", s["pause-us"], s["full-pause-us"], "full snapshot", format_us)]


class Slowdown(Scenario):
    """Seconds of a program's work with vmsnap track, and without, in turns."""
    rows = ("track-slowdown",)

    def start(self):
        self.writer = children.Child([f"{self.bench.build}/tests/bench/steady-writer"], stdout=subprocess.PIPE, text=True)
        self.guests.append(self.writer)
        self.writer.process.stdout.readline()
        self.seconds(1)

    def seconds(self, n):
        return [guests.parse_line(self.writer.process.stdout.readline())["pages-per-second"] for _ in range(n)]

    def round(self):
        for rate in self.seconds(3):
            self.add("alone", rate)
        command = [f"{self.bench.build}/tools/vmsnap", "track", "--pid", str(self.writer.process.pid), "--interval", "100"]
        tracker = children.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.seconds(1)  # in which it starts
        rates = self.seconds(3)
        children.end(tracker)
        for rate in rates:
            self.add("tracked", rate)
        self.seconds(1)  # in which it ends

    def lines(self):
        s = self.samples
        lost = [max(1 - rate / (sum(s["alone"]) / len(s["alone"])), 0) for rate in s["tracked"]]
        return [Line("track-slowdown", "slowdown of a writer under track, 100 ms rounds", lost, 0.06, "limit",
                     format_share, at_most=1)]
