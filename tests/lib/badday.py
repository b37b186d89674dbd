"""Bad days: a save that goes wrong, and what must be true afterwards.

    guest = ProcessUnderTest(build, memory="anon")     or QemuUnderTest(build)
    save = Save(build, guest, f"{folder}/image", "--max-bandwidth", "4M")
    save.wait_sweeping()
    …                                                  something bad happens
    save.check_failed("no space")                      exit status 1, one line that holds these words
    guest.check_released()                             runs, is un-protected, has no descriptor left
    check_incomplete(build, f"{folder}/image")
"""
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time

import cases
import children
import guests
import qemu

RELEASE_S = 1.0           # in which a guest must be un-protected
RATE = 20000              # writes a second that a guest is given to do: little work, and slowness shows
COUNTER_OFFSET = 64       # of the header: see tests/guest/README.md
MULTIBOOT_ARENA = 16 << 20
UFFD_FLAGS = {"uw", "um", "ui"}
NOISE = re.compile(r"GLib|CRITICAL|WARNING|Assertion|assertion|\*\*|backtrace|Segmentation|core dumped|AddressSan")


def wait_until(condition, seconds, what):
    """Until CONDITION() is true; its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(0.005)


# ---- what a process looks like from outside ------------------------------------------------------------------


def read_proc(pid, name):
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()


def descriptors(pid):
    """Number → what it is, of all that are open."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def watched_mappings(pid):
    """Mappings that a userfaultfd watches."""
    found, head = [], ""
    for line in read_proc(pid, "smaps").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            head = line
        elif line.startswith("VmFlags:") and UFFD_FLAGS & set(line.split()[1:]):
            found.append(head)
    return found


def blocked_threads(pid):
    """Threads that wait for somebody to serve a fault of theirs."""
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            if read_proc(pid, f"task/{tid}/wchan") == "handle_userfault":
                found.append(tid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def stopped_threads(pid):
    """Threads that are stopped, traced or dead."""
    found = []
    for tid in os.listdir(f"/proc/{pid}/task"):
        try:
            text = read_proc(pid, f"task/{tid}/status")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state = re.search(r"^State:\s+(\S)", text, re.MULTILINE).group(1)
        tracer = re.search(r"^TracerPid:\s+(\d+)", text, re.MULTILINE).group(1)
        if state not in "RSDI" or tracer != "0":
            found.append(f"{tid}: {state}, traced by {tracer}")
    return found


def is_traced(pid):
    """Somebody is attached to its main thread."""
    return "TracerPid:\t0\n" not in read_proc(pid, "status")


def catch_traced(save, traced=True):
    """Until somebody is, or is not, attached to the guest's main thread; looks as often as it can.

    Return: False when the save ended without.
    """
    status = os.open(f"/proc/{save.guest.pid}/status", os.O_RDONLY)
    try:
        while save.runs():
            for _ in range(50):
                if (b"TracerPid:\t0\n" not in os.pread(status, 4096, 0)) == traced:
                    return True
        return False
    finally:
        os.close(status)


def catches(pid, number):
    """PID has a handler for this signal."""
    try:
        caught = re.search(r"^SigCgt:\s+(\S+)", read_proc(pid, "status"), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return caught is not None and int(caught.group(1), 16) >> (number - 1) & 1 == 1


def processes_of(build):
    """Processes of this test that run the program under test: vmsnap, and what it forked."""
    program, found = os.path.realpath(f"{build}/tools/vmsnap"), []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/exe") == program and \
                    children.is_ours(name):
                found.append(int(name))
        except OSError:
            pass
    return found


def kill_quietly(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def check_no_process_left(build, seconds=RELEASE_S):
    wait_until(lambda: not processes_of(build), seconds, f"no process of vmsnap left: {processes_of(build)}")


def troubles(pid):
    """What still holds PID; empty when it was let go."""
    found = [f"watched: {mapping}" for mapping in watched_mappings(pid)]
    found += [f"thread {tid} waits for a fault to be served" for tid in blocked_threads(pid)]
    return found + [f"thread {text}" for text in stopped_threads(pid)]


class UnderTest:
    """What both kinds of guests have in common: @pid, counter(), and a picture of the descriptors to compare with."""

    def remember(self):
        """Now nobody looks at it: so it must be again."""
        self.descriptors_before = descriptors(self.pid)
        assert not troubles(self.pid), troubles(self.pid)

    def check_runs(self):
        """It writes at its own speed; on a busy machine not always."""
        rates = []

        def is_quick():
            begin, before = time.monotonic(), self.counter()
            time.sleep(0.1)
            rates.append((self.counter() - before) / (time.monotonic() - begin))
            return rates[-1] > RATE / 4
        wait_until(is_quick, 3, f"the guest writes {RATE} times a second")

    def check_released(self, seconds=RELEASE_S):
        """Within SECONDS nothing holds it; it runs; it has the descriptors that it had."""
        assert self.process.poll() is None, f"the guest has ended: status {self.process.returncode}"
        wait_until(lambda: not troubles(self.pid), seconds, f"released; now: {troubles(self.pid)[:3]}")
        wait_until(lambda: descriptors(self.pid) == self.descriptors_before, seconds,
                   f"the same descriptors: {descriptors(self.pid)}, before {self.descriptors_before}")
        self.check_runs()
        found = troubles(self.pid)
        assert not found, found


class ProcessUnderTest(UnderTest, guests.Memguest):
    """memguest with a steady RATE. Options as of guests.Memguest."""

    def __init__(self, build, **options):
        options.setdefault("memory", "anon")
        options.setdefault("size", "64M")
        options.setdefault("rate", RATE)
        super().__init__(build, prefill=True, **options)
        self.build = build
        self.target = ["--pid", str(self.pid)]
        self.remember()

    def counter(self):
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return struct.unpack("<Q", os.pread(memory.fileno(), 8, self.arena + COUNTER_OFFSET))[0]

    def check_no_errors(self):
        """It ends, and has found all its memory as it left it."""
        last = self.end()
        assert last["errors"] == 0, last

    def check_exact(self, image):
        """IMAGE holds its memory at one instant."""
        check_tool(self.build, "tests/integ/imagecheck", image, f"{self.arena:x}")


class QemuUnderTest(UnderTest, qemu.Qemu):
    """guest.bin in a QEMU, with memory behind a memfd. qemu.sockets[0] is for the program under test."""

    def __init__(self, build, folder, size="80M", memory="memfd", arguments=(), **options):
        if not shutil.which("qemu-system-x86_64") or not os.path.exists(f"{build}/tests/guest/guest.bin"):
            raise cases.Skip("skip: no qemu-system-x86_64, or no guest.bin for it")
        self.build = build
        self.serial = guests.Serial(f"{folder}/serial")
        words = f"rate={RATE}"
        super().__init__([*guests.multiboot_arguments(build, self.serial.path, size=size, words=words, memory=memory),
                          *arguments], **options)
        self.target = ["--qemu", self.sockets[0]]
        self.serial.wait_populated()
        self.remember()

    def counter(self):
        text = self.qmp.command("human-monitor-command", command_line=f"xp /1gx {MULTIBOOT_ARENA + COUNTER_OFFSET}")
        return int(text.split(":")[1], 16)

    def check_released(self, seconds=RELEASE_S):
        wait_until(lambda: self.qmp.command("query-status")["status"] == "running", seconds, "query-status: running")
        wait_until(lambda: self.qmp.command("query-fdsets") == [], seconds, "no fd sets left")
        super().check_released(seconds)
        client = qemu.Qmp(self.sockets[0], timeout=2)
        assert client.command("query-status")["running"]
        client.close()
        self.serial.reports()  # raises when the guest complains

    def check_no_errors(self):
        self.serial.skip()
        self.serial.wait_reports(1)


# ---- vmsnap --------------------------------------------------------------------------------------------------


def check_one_line(text, *words):
    """TEXT is one clear line, and holds WORDS."""
    lines = text.splitlines()
    assert len(lines) == 1, f"not one line: {text!r}"
    assert lines[0].startswith("vmsnap"), lines[0]
    assert not NOISE.search(lines[0]), lines[0]
    print(f"says: {lines[0][:200]}", flush=True)
    for word in words:
        assert word in lines[0], f"no {word!r} in: {lines[0]}"
    return lines[0]


def vmsnap(build, *arguments, timeout=60, **options):
    return subprocess.run([f"{build}/tools/vmsnap", *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout, check=False, **options)


def check_refused(result, *words, status=1):
    """A finished vmsnap that failed with one clear line that holds WORDS."""
    assert result.returncode == status, (result.args[1:], result.returncode, result.stdout, result.stderr)
    assert result.stdout == "", result.stdout
    return check_one_line(result.stderr, *words)


def check_tool(build, tool, *arguments):
    """A program from the build directory that must succeed."""
    result = subprocess.run([f"{build}/{tool}", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
    assert result.returncode == 0, (tool, arguments, result.returncode, result.stdout.strip())
    return result.stdout


def check_incomplete(build, image, left=False):
    """IMAGE does not claim to be one. @left: there may be something, as of a save that was killed."""
    assert not os.path.exists(f"{image}/manifest.json"), os.listdir(image)
    if not left:
        assert not os.path.exists(image), f"{image} was left: {os.listdir(image)}"
    for command in ("info", "verify"):
        check_refused(vmsnap(build, command, image), image)
    if os.path.isdir(image):
        listed = json.loads(vmsnap(build, "list", image, "--json").stdout)["images"]
        assert [entry["complete"] for entry in listed] == [False], listed
        result = vmsnap(build, "delete", image)
        assert result.returncode == 0 and not os.path.exists(image), result.stderr


def check_unfinished(guest, image):
    """As after a kill: complete, or nothing that claims to be."""
    if os.path.exists(f"{image}/manifest.json"):
        check_complete(guest, image)
    else:
        check_incomplete(guest.build, image, left=True)


def check_saves(guest, image, *options):
    """The guest can be saved now, completely; and is released after it."""
    result = vmsnap(guest.build, "save", *guest.target, image, *options)
    assert result.returncode == 0, (result.returncode, result.stderr)
    guest.check_released()
    check_complete(guest, image)


def check_complete(guest, image):
    result = vmsnap(guest.build, "verify", image)
    assert result.returncode == 0, result.stderr
    if isinstance(guest, ProcessUnderTest):
        guest.check_exact(image)
    vmsnap(guest.build, "delete", image)


class Save:
    """A `vmsnap save` under way. @prefix: of the command line, as of prlimit(1). @popen: options of Popen."""

    def __init__(self, guest, image, *options, prefix=(), **popen):
        self.guest, self.image, self.result = guest, image, None
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        self.process = children.start([*prefix, f"{guest.build}/tools/vmsnap", "save", *guest.target, image,
                                       *map(str, options)], text=True, **popen)
        self.pid = self.process.pid

    def runs(self):
        return self.process.poll() is None

    def wait_watching(self, seconds=10):
        """Until the guest's memory is watched: it prepares, or is past that."""
        wait_until(lambda: not self.runs() or watched_mappings(self.guest.pid), seconds, "watching")
        assert self.runs(), self.finish()

    def wait_sweeping(self, bytes_written=1 << 20, seconds=30):
        """Until so much is on disk: the point in time is past."""
        wait_until(lambda: not self.runs() or disk_bytes(f"{self.image}/ram") >= bytes_written, seconds, "sweeping")
        assert self.runs(), self.finish()

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)

    def finish(self, timeout=20):
        """Wait for the end. Return: status, standard output, standard error; the same when asked again."""
        if not self.result:
            out, err = self.process.communicate(timeout=timeout)
            self.result = self.process.returncode, out, err
        return self.result

    def check_failed(self, *words, timeout=20):
        status, out, err = self.finish(timeout)
        assert status == 1, (status, out, err)
        assert not out, out
        return check_one_line(err, *words)

    def check_killed(self, number=signal.SIGKILL, timeout=20):
        status, out, err = self.finish(timeout)
        assert status == -number and not out and not err, (status, out, err)


def disk_bytes(folder):
    """What the files of a directory take up."""
    total = 0
    try:
        for entry in os.scandir(folder):
            total += entry.stat().st_blocks * 512
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


# ---- file systems --------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
MNT_DETACH = 2


def mount(source, folder, kind, options="", flags=0):
    os.makedirs(folder, exist_ok=True)
    if _libc.mount(source.encode(), folder.encode(), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), folder)


class Mounted:
    """A file system for as long as the with statement lasts. @device: a file, attached as a loop device."""

    def __init__(self, folder, kind, options="", device=None, flags=0):
        self.folder, self.loop = folder, None
        source = "none"
        if device:
            made = subprocess.run(["losetup", "--find", "--show", device], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, check=False)
            if made.returncode != 0:
                raise OSError(f"losetup: {made.stderr.strip()}")
            source = self.loop = made.stdout.strip()
        try:
            mount(source, folder, kind, options, flags)
        except OSError:
            self._detach()
            raise

    def _detach(self):
        if self.loop:
            subprocess.run(["losetup", "--detach", self.loop], stderr=subprocess.DEVNULL, check=False)

    def __enter__(self):
        return self.folder

    def __exit__(self, *_exception):
        _libc.umount2(self.folder.encode(), MNT_DETACH)
        self._detach()


# ---- sockets that are no QEMU --------------------------------------------------------------------------------


def listen(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(8)
    return server
