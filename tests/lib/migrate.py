"""VMMs that a guest is moved between, and what must be true of it afterwards.

    with Journal(folder) as journal, ThreadVm(build, folder, "a", journal) as source, \\
            ThreadVm(build, folder, "b", journal, incoming="unix:…") as destination:
        source.migrate("unix:…")
        source.wait_status("completed")
        destination.check_guest(exact=True)
        journal.check()

ThreadVm is tests/migrate/thread-vm, whose guest is threads; Microvm runs guest.bin on KVM. Both have the same
commands. The journal is what proves that at no time two VMMs ran the guest: see tests/migrate/journal.h.
"""
import errno
import os
import re
import signal
import subprocess
import threading
import time

import badday
import cases
import children
import guests
import qmpd

ENDED = ("completed", "failed", "cancelled")
STEP_S = 0.01
CAPABILITIES = ("auto-converge", "multifd", "pause-before-switchover", "postcopy-ram")


class Vm(children.Child):
    """A VMM with a QMP socket. @log(): what it said on standard error."""

    def __init__(self, folder, name, command, **popen):
        self.folder, self.name = folder, name
        self.path = f"{folder}/{name}.qmp"
        self.serial = guests.Serial(f"{folder}/{name}.serial")
        self.qmp = None
        self._lock = threading.Lock()
        self._log = open(f"{folder}/{name}.log", "w+b")
        environment = {**os.environ, "G_DEBUG": "fatal-warnings"}
        super().__init__([*map(str, command)], stdout=subprocess.DEVNULL, stderr=self._log, env=environment, **popen)
        try:
            badday.wait_until(self._connect, 20, f"{name} listens")
        except BaseException:
            self.close()
            raise

    def _connect(self):
        if self.process.poll() == cases.EXIT_SKIP:
            raise cases.Skip(self.log())
        assert self.process.poll() is None, f"{self.name} ended: {self.process.returncode}, {self.log()}"
        try:
            self.qmp = qmpd.Client(self.path).negotiate()
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def log(self):
        with open(f"{self.folder}/{self.name}.log", errors="replace") as file:
            return file.read().strip()

    # ---- commands ----

    def command(self, name, **arguments):
        with self._lock:
            return self.qmp.command(name, **arguments)

    def set_capabilities(self, *names):
        """These, and no others."""
        self.command("migrate-set-capabilities", capabilities=[{"capability": name, "state": name in names}
                                                               for name in CAPABILITIES])

    def set_parameters(self, **parameters):
        self.command("migrate-set-parameters", **parameters)

    def migrate(self, uri, **arguments):
        self.command("migrate", uri=uri, **arguments)

    def migration(self):
        """What query-migrate says."""
        return self.command("query-migrate")

    def status(self):
        """Of the migration; None when there is none; "ended" when the VMM has gone."""
        try:
            return self.migration().get("status")
        except (qmpd.Closed, BrokenPipeError, ConnectionResetError):
            return "ended"

    def wait_status(self, *wanted, seconds=30):
        """Until it is one of WANTED, or ended otherwise, which fails. Return: what query-migrate says."""
        end = time.monotonic() + seconds
        while True:
            found = self.migration()
            status = found.get("status")
            if status in wanted:
                return found
            assert status not in ENDED, f"{self.name}: {status} instead of {wanted}: {found.get('error-desc')}"
            assert time.monotonic() < end, f"{self.name}: {status}, and after {seconds} s not {wanted}: {found}"
            time.sleep(STEP_S)

    def run_state(self):
        """"running", "paused", "inmigrate", "postmigrate"; "ended" when the VMM has gone."""
        try:
            return self.command("query-status")["status"]
        except (qmpd.Closed, BrokenPipeError, ConnectionResetError):
            return "ended"

    def why(self):
        """What it says went wrong: to query-migrate, where it may come a moment after the status, or at its end on
        standard error."""
        end = time.monotonic() + 1
        try:
            while True:
                text = self.migration().get("error-desc", "")
                if text or time.monotonic() > end:
                    return text
                time.sleep(STEP_S)
        except (qmpd.Closed, BrokenPipeError, ConnectionResetError):
            self.process.wait(5)
            return self.log()

    def threads(self):
        """The names of all, sorted, but for those that come and go with clients."""
        names = [badday.read_proc(self.pid, f"task/{tid}/comm").strip() for tid in os.listdir(f"/proc/{self.pid}/task")]
        return sorted(name for name in names if not name.startswith(("pool-", "writer-")))

    def check_tidy(self, descriptors, threads, seconds=5):
        """It has no more of them than it had."""
        badday.wait_until(lambda: len(badday.descriptors(self.pid)) <= len(descriptors), seconds,
                          f"no more descriptors than {descriptors}")
        badday.wait_until(lambda: self.threads() == threads, seconds, f"no other threads than {threads}")

    def memory_bytes(self):
        """What it has in memory, shared or not; 0 when it has ended."""
        found = re.search(r"^VmRSS:\s+(\d+)", badday.read_proc(self.pid, "status"), re.MULTILINE)
        return int(found.group(1)) << 10 if found else 0

    # ---- the guest ----

    def wait_writes(self, seconds=10):
        """Until the guest has reported twice more; it has found nothing wrong. Return: the last report."""
        self.serial.skip()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            reports = [report for report in self.serial.reports() if report["rate"] > 0]
            if reports:
                assert reports[-1]["errors"] == 0, reports[-1]
                return reports[-1]
            time.sleep(0.02)
        raise AssertionError(f"{self.name}: the guest does not go on: {self.log()}")

    def check_complaints(self):
        """It has said nothing that only a broken program says."""
        assert not badday.NOISE.search(self.log()), f"{self.name} says: {self.log()}"

    # ---- its end ----

    def end(self, status=0):
        """By quit."""
        try:
            self.command("quit")
        except (qmpd.Closed, BrokenPipeError, ConnectionResetError):
            pass
        self.process.wait(20)
        assert self.process.returncode == status, f"{self.name}: {self.process.returncode}, {self.log()}"
        self.check_complaints()

    def close(self):
        super().close()
        if self.qmp:
            self.qmp.close()
        if not self._log.closed:
            self._log.close()


class ThreadVm(Vm):
    """tests/migrate/thread-vm, or what SNAP_TEST_THREAD_VM names; @options as of its command line, with _ for -."""

    def __init__(self, build, folder, name, journal, incoming=None, **options):
        self.build, self.journal = build, journal
        program = os.environ.get("SNAP_TEST_THREAD_VM", "thread-vm")
        command = [f"{build}/tests/migrate/{program}", "--qmp", f"unix:{folder}/{name}.qmp", "--name", name,
                   "--serial", f"{folder}/{name}.serial", "--journal", journal.path, "--snapshot-dir", folder]
        prefix = options.pop("prefix", [])
        for option, value in {"incoming": incoming, **options}.items():
            if value is None or value is False:
                continue
            command.append("--" + option.replace("_", "-"))
            if value is not True:
                command.append(value)
        super().__init__(folder, name, [*prefix, *command])
        self.arena = self.serial.ready()["arena"]

    def counter(self):
        """The number of the guest's last write, from its memory; 0 while that page is still at the source."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.arena + badday.COUNTER_OFFSET)
            try:
                return int.from_bytes(memory.read(8), "little")
            except OSError as error:
                if error.errno == errno.EIO:
                    return 0
                raise

    def wait_counter(self, seconds=10):
        """Until it writes."""
        before = self.counter()
        badday.wait_until(lambda: self.counter() > before, seconds, f"the guest of {self.name} writes")

    def kill(self):
        """kill -9; what it ran until is in the journal."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.journal.add(self.name, "killed")

    def check_guest(self, exact=True):
        """It runs and writes, nobody watches its memory, it has counted no error, and with EXACT: every byte is right."""
        assert self.run_state() == "running", f"{self.name}: {self.run_state()}"
        self.wait_counter()
        badday.wait_until(lambda: not badday.watched_mappings(self.pid), 2, f"{self.name} has let go of its memory")
        if exact:
            self.check_memory()
        self.check_complaints()

    def check_memory(self):
        """Stop it, and check every byte; it runs again afterwards."""
        self.command("stop")
        try:
            badday.check_tool(self.build, "tests/guest/seqcheck", "--pid", self.pid, "--address", self.arena)
        finally:
            self.command("cont")


class Microvm(Vm):
    """The microvm with guest.bin. @words: of its command line."""

    def __init__(self, build, folder, name, _journal=None, incoming=None, words="", size="64M", memory="anon"):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise cases.Skip("no /dev/kvm that may be used")
        self.build = build
        command = [f"{build}/tools/microvm", "--qmp", f"unix:{folder}/{name}.qmp", "--name", name, "--kernel",
                   f"{build}/tests/guest/guest.bin", "--append", words, "-m", size, "--memory", memory, "--serial",
                   f"{folder}/{name}.serial", "--snapshot-dir", folder]
        super().__init__(folder, name, [*command, *(["--incoming", incoming] if incoming else [])])

    def check_guest(self, exact=True):
        assert self.run_state() == "running", f"{self.name}: {self.run_state()}"
        self.wait_writes()
        if exact:
            self.check_memory()
        self.check_complaints()

    def check_memory(self):
        """A snapshot of it is right in every byte."""
        image = f"{self.folder}/{self.name}-check"
        with self._lock:
            self.qmp.run_job("snapshot-save", path=image)
        badday.check_tool(self.build, "tests/guest/seqcheck", "--multiboot", f"{image}/ram/ram.img")
        subprocess.run([f"{self.build}/tools/vmsnap", "delete", image], check=True, capture_output=True)


class Journal:
    """Who ran when: lines NS NAME EVENT WORDS. One a guest, however many VMMs it passes through."""

    def __init__(self, folder, name="journal"):
        self.path = f"{folder}/{name}"
        open(self.path, "a").close()

    def add(self, name, event):
        with open(self.path, "ab", buffering=0) as file:
            file.write(f"{time.clock_gettime_ns(time.CLOCK_MONOTONIC)} {name} {event}\n".encode())

    def lines(self):
        """(ns, name, event, fields), in the order of time."""
        found = []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                ns, name, event, *rest = line.split(" ", 3)
                found.append((int(ns), name, event.strip(), guests.parse_line(rest[0]) if rest else {}))
        return sorted(found, key=lambda entry: entry[0])

    def events(self, name, event):
        return [entry for entry in self.lines() if entry[1] == name and entry[2] == event]

    def intervals(self):
        """(begin, end, name) of all times in which somebody ran it; end is None where it still runs."""
        found, begins = [], {}
        for ns, name, event, _fields in self.lines():
            if event == "run":
                assert name not in begins, f"{name} runs twice: {self.text()}"
                begins[name] = ns
            elif event in ("stand", "killed") and name in begins:
                found.append((begins.pop(name), ns, name))
        return found + [(begin, None, name) for name, begin in begins.items()]

    def running(self):
        """The names of those that run it now."""
        return [name for _begin, end, name in self.intervals() if end is None]

    def text(self):
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return "\n" + file.read()

    def check(self, exact=0):
        """No two ran it at once, nothing forbidden was tried, nobody has found a wrong byte.

        @exact: so often at least was all of its memory checked before it was started somewhere.
        """
        before_end, before_name = 0, None
        for begin, end, name in sorted(self.intervals()):
            assert before_end is not None and begin >= before_end, f"{before_name} and {name} ran: {self.text()}"
            before_end, before_name = end, name
        lines = self.lines()
        for _ns, name, event, fields in lines:
            assert event not in ("VIOLATION", "WRONG"), f"{name}: {event}: {self.text()}"
            assert fields.get("errors", 0) == 0, f"{name}: {event}: {fields}: {self.text()}"
        found = sum(event == "exact" for _ns, _name, event, _fields in lines)
        assert found >= exact, f"checked {found} times instead of {exact}: {self.text()}"

    def check_goes_on(self):
        """Wherever it runs on, it does so with the write at which it last stood."""
        last = None
        for _ns, name, event, fields in self.lines():
            if event == "run" and last is not None:
                assert fields["n"] == last, f"{name} runs from {fields['n']}, it stood at {last}: {self.text()}"
            if event in ("run", "stand"):
                last = fields["n"]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass


def pair(build, folder, journal, source=None, destination=None, uri=None, **options):
    """Two ThreadVms of the same options, the second to come at unix:FOLDER/way-in. Return: both."""
    uri = uri or f"unix:{folder}/way-in"
    vms = []
    try:
        vms.append(ThreadVm(build, folder, "source", journal, **{**options, **(source or {})}))
        vms.append(ThreadVm(build, folder, "destination", journal, incoming=uri,
                            **{"verify": True, **options, **(destination or {})}))
    except BaseException:
        for vm in vms:
            vm.close()
        raise
    return vms


class Vms:
    """@vms, in @folder: closed at the end; where a case fails, what they leave behind is shown."""

    def __enter__(self):
        return self

    def __exit__(self, kind, _error, _trace):
        if kind is not None:
            keep(self.folder, "the move")
        for vm in self.vms:
            vm.close()


def keep(folder, why):
    """What a failed case leaves behind, for people: the folder's small files, as text."""
    print(f"---- {folder}: {why}")
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}"
        if os.path.isfile(path) and re.search(r"journal|\.log$|\.serial$", name):
            with open(path, encoding="utf-8", errors="replace") as file:
                print(f"---- {name}\n{file.read()[-3000:]}")
