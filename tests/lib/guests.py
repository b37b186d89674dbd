"""The test guests: memguest, a process; guest.bin, a kernel for QEMU. See tests/guest/README.md for their lines."""
import os
import signal
import subprocess
import time

import children


class GuestError(Exception):
    pass


def parse_line(line):
    """"word NAME=VALUE …" as a dictionary; values are numbers where they are."""
    fields = {}
    for part in line.split():
        name, separator, value = part.partition("=")
        if not separator:
            continue
        try:
            fields[name] = float(value) if "." in value else int(value, 0)
        except ValueError:
            fields[name] = value
    return fields


class Memguest(children.Child):
    """memguest from BUILD; options as of its command line, with _ for -: size="1G", prefill=True, rate=20000.

    @user: the number of the user whose process it is.
    """

    def __init__(self, build, cpu=None, user=None, **options):
        command = [f"{build}/tests/guest/memguest"]
        if cpu is not None:
            command = ["taskset", "-c", str(cpu), *command]
        for name, value in options.items():
            command.append("--" + name.replace("_", "-"))
            if value is not True:
                command.append(str(value))
        rights = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        super().__init__(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **rights)
        line = self.process.stdout.readline()
        if not line.startswith("ready"):
            why = self.process.stderr.read().strip()
            self.close()
            raise GuestError(f"memguest did not start: {why}")
        self.ready = parse_line(line)
        self.arena = self.ready["arena"]

    def report(self):
        """What it did since the last report: n, rate, stall-us, p50-us, p99-us, p999-us, errors."""
        self.process.send_signal(signal.SIGUSR1)
        line = self.process.stdout.readline()
        if not line:
            raise GuestError("memguest ended")
        return parse_line(line)

    def end(self):
        """Let it end by itself. Return: its last line: errors, writes, longest-stall-us."""
        self.process.send_signal(signal.SIGTERM)
        last = self.process.stdout.readlines()[-1]
        self.process.wait()
        return parse_line(last)


def multiboot_arguments(build, serial, size="1G", accel="tcg", words="", memory="memfd"):
    """The command line of a QEMU that runs guest.bin. @serial: the file it reports to. @memory: memfd or anon."""
    arguments = ["-accel", accel, "-m", size, "-nodefaults", "-display", "none", "-serial", f"file:{serial}",
                 "-kernel", f"{build}/tests/guest/guest.bin", "-append", words]
    if memory == "memfd":
        backend = f"memory-backend-memfd,id=ram,size={size},share=on"
        return [*arguments, "-object", backend, "-machine", "pc,memory-backend=ram"]
    return [*arguments, "-machine", "pc"]


class Serial:
    """The file that guest.bin reports to, once a second."""

    def __init__(self, path):
        self.path = path
        self._at = 0

    def _read(self):
        with open(self.path, "rb") as f:
            f.seek(self._at)
            data = f.read()
        return data[:data.rfind(b"\n") + 1]

    def skip(self):
        """Forget what is there."""
        if os.path.exists(self.path):
            self._at += len(self._read())

    def reports(self):
        """The lines N=… errors=… rate=… stall-us=… since skip(). A guest that complains raises GuestError."""
        reports = []
        for line in self._read().decode(errors="replace").splitlines():
            if line.startswith(("ERROR", "FATAL")):
                raise GuestError(f"the guest says: {line}")
            if line.startswith("N="):
                reports.append(parse_line(line))
        return reports

    def wait_reports(self, count, seconds=60):
        """The next COUNT reports since skip()."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            reports = self.reports() if os.path.exists(self.path) else []
            if len(reports) >= count:
                return reports
            time.sleep(0.05)
        raise GuestError(f"the guest does not report on {self.path}")

    def ready(self, seconds=60):
        """The line with which it starts."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.path.exists(self.path):
                with open(self.path, encoding="ascii", errors="replace") as f:
                    for line in f:
                        if line.startswith("ready") and line.endswith("\n"):
                            return parse_line(line)
                        if line.startswith("FATAL"):
                            raise GuestError(f"the guest says: {line.strip()}")
            time.sleep(0.02)
        raise GuestError("the guest does not start")

    def wait_populated(self, seconds=120):
        """Until every page that it touches was written once."""
        touched = self.ready()["touched"]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            reports = self.reports()
            if reports and reports[-1]["N"] >= touched:
                return reports[-1]
            time.sleep(0.05)
        raise GuestError("the guest does not write its memory")
