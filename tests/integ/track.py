#!/usr/bin/env python3
"""The dirty log on the command line: what `vmsnap track` reports is what guests write.

    track.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import fcntl
import json
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import children  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
PAGE = mmap.PAGESIZE
KINDS = ("anon", "memfd", "tmpfs", "hugetlb")
LOGS = ("async", "sync")
MEMBERS = {"round", "dirty-pages", "ranges", "scan-us", "rate-pages-per-second", "pages-total", "log"}
LINE = re.compile(r"round (\d+): (\d+) pages dirty \(.*\), \d+/s, in (\d+) ranges?, scan [\d.]+ (µs|ms|s)")

GONE = re.compile(r"ended|No such process")  # which of them, the moment decides

# Has 8 MiB of memory of a kind, all of it written, in a mapping that touches no other; does what it is told, a line
# each: "write FIRST COUNT STEP", in pages; "map COUNT", fresh memory that it writes; "discard FIRST COUNT".
PUPPET = """
import ctypes, mmap, os, sys, tempfile
PAGE, LENGTH = mmap.PAGESIZE, 8 << 20
libc = ctypes.CDLL(None)

def address_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))

def map_anon(length):
    memory = mmap.mmap(-1, length + 2 * PAGE, flags=mmap.MAP_PRIVATE)
    for at in (0, length + PAGE):
        assert libc.mprotect(ctypes.c_void_p(address_of(memory) + at), ctypes.c_size_t(PAGE), 0) == 0
    return memory, PAGE

def map_file(fd):
    os.ftruncate(fd, LENGTH)
    return mmap.mmap(fd, LENGTH), 0

kind = sys.argv[1]
if kind == "anon":
    memory, base = map_anon(LENGTH)
elif kind == "memfd":
    memory, base = map_file(os.memfd_create("puppet"))
elif kind == "tmpfs":
    file = tempfile.TemporaryFile(dir="/dev/shm")
    memory, base = map_file(file.fileno())
else:
    try:
        memory, base = mmap.mmap(-1, LENGTH, flags=mmap.MAP_SHARED | 0x40000), 0
    except OSError as error:
        sys.exit(f"no huge pages: {error}")

def write(memory, base, page):
    memory[base + page * PAGE] = (memory[base + page * PAGE] + 1) & 255

for page in range(LENGTH // PAGE):
    write(memory, base, page)
print(hex(address_of(memory) + base), flush=True)
kept = []
for line in sys.stdin:
    word, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    answer = "done"
    if word == "write":
        first, count, step = numbers
        for page in range(first, first + count * step, step):
            write(memory, base, page)
    elif word == "map":
        kept.append(map_anon(numbers[0] * PAGE))
        for page in range(numbers[0]):
            write(*kept[-1], page)
        answer = hex(address_of(kept[-1][0]) + PAGE)
    elif word == "discard":
        memory.madvise(mmap.MADV_DONTNEED, base + numbers[0] * PAGE, numbers[1] * PAGE)
    print(answer, flush=True)
"""


class Puppet(children.Child):
    """A process that writes when it is told to. Region "…@ADDRESS" is its memory."""

    def __init__(self, kind):
        super().__init__([sys.executable, "-c", PUPPET, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            complaint = self.process.stderr.read().strip()
            self.close()
            if complaint.startswith("no huge pages"):
                raise cases.Skip(f"skip: {complaint}")
            raise AssertionError(complaint)
        self.arena, self.length = int(line, 16), 8 << 20
        self.target = ["--pid", str(self.pid)]
        self.region = f"*@{self.arena:x}"

    def tell(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def memguest(kind, **options):
    """memguest; its arena is region "…@ADDRESS"."""
    try:
        guest = badday.ProcessUnderTest(BUILD, memory=kind, **{"size": "32M", "rate": 8000, **options})
    except badday.guests.GuestError as error:
        if "huge" in str(error):
            raise cases.Skip(f"skip: {error}") from error
        raise
    guest.length = guest.ready["size"]
    guest.region = f"*@{guest.arena:x}"
    return guest


def bytes_in_pipe(pipe):
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


class Track:
    """A `vmsnap track --json` under way; @rounds are the objects that have come."""

    def __init__(self, target, *options, on_round=None, **popen):
        self.rounds, self._on_round = [], on_round
        self._came = threading.Condition()
        self._text, self._n_read, self._n_done = b"", 0, 0  # in bytes: taken from the pipe, and understood
        command = [f"{BUILD}/tools/vmsnap", "track", *target, "--json", *map(str, options)]
        self.process = children.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **popen)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _take(self):
        """What the pipe holds; FALSE at its end."""
        select.select([self.process.stdout], [], [])
        with self._came:
            part = self.process.stdout.read(1 << 16)
            self._text += part
            self._n_read += len(part)
        return bool(part)

    def _read(self):
        while self._take():
            *lines, self._text = self._text.split(b"\n")
            for line in lines:
                found = json.loads(line)
                if self._on_round:
                    self._on_round(found)
                with self._came:
                    self.rounds.append(found)
                    self._n_done += len(line) + 1
                    self._came.notify_all()
        with self._came:
            self._came.notify_all()

    def wait_rounds(self, count, seconds=20):
        """Until there are COUNT."""
        with self._came:
            enough = self._came.wait_for(lambda: len(self.rounds) >= count or not self._reader.is_alive(), seconds)
        if not enough or len(self.rounds) < count:
            raise AssertionError(f"{len(self.rounds)} rounds, not {count}; {self.end(None if enough else signal.SIGKILL)}")

    def settle(self):
        """Until what was written before is reported: the next round may have begun already, the one behind has not.
        What is on its way to us counts for nothing: on a busy machine that is several rounds.

        Return: how many rounds there are.
        """
        with self._came:
            on_the_way = self._n_read + bytes_in_pipe(self.process.stdout)
            done = self._came.wait_for(lambda: self._n_done >= on_the_way or not self._reader.is_alive(), 20)
            assert done, on_the_way
        self.wait_rounds(len(self.rounds) + 2)
        return len(self.rounds)

    def pages(self, guest, first=0, end=None):
        """Pages of GUEST's arena that rounds [first, end) report."""
        found = set()
        for entry in self.rounds[first:end]:
            for run in entry["ranges"]:
                start = run["address"] - guest.arena
                if 0 <= start < guest.length:
                    found.update(range(start // PAGE, (start + run["length"]) // PAGE))
        return found

    def end(self, number=signal.SIGINT, seconds=5):
        """By a signal. Return: status, standard error."""
        if self.process.poll() is None and number:
            self.process.send_signal(number)
        self.process.wait(seconds)
        self._reader.join(seconds)
        complaint = self.process.stderr.read().decode()
        children.stop(self.process)
        return self.process.returncode, complaint

    def check_interrupted(self):
        assert self.end() == (0, ""), "Ctrl-C is the way to end it"


def track(guest, *options, **more):
    """Run it to its end. Return: the finished process."""
    return badday.vmsnap(BUILD, "track", *guest.target, *options, **more)


def lines_of(result):
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def read_arena(guest):
    with open(f"/proc/{guest.pid}/mem", "rb", buffering=0) as memory:
        data = bytearray()
        while len(data) < guest.length:
            data += os.pread(memory.fileno(), guest.length - len(data), guest.arena + len(data))
        return data


def changed_pages(before, after):
    return {at // PAGE for at in range(0, len(before), PAGE) if before[at:at + PAGE] != after[at:at + PAGE]}


def check_covers(log, guest, stop, go, rounds=5):
    """Every page that differs between two stops of the guest was reported in between."""
    read_arena(guest)  # fills the holes of a file: that is new, once
    stop()
    first = log.settle()
    before = read_arena(guest)
    go()
    log.wait_rounds(len(log.rounds) + rounds)
    stop()
    log.settle()
    changed = changed_pages(before, read_arena(guest))
    go()
    reported = log.pages(guest, first)
    assert len(changed) > 100, f"the guest has written {len(changed)} pages"
    assert not changed - reported, f"{len(changed - reported)} of {len(changed)} pages were missed"
    return changed, reported


# ---- exact -------------------------------------------------------------------------------------------------------


def check_written_is_reported(kind, log_name):
    """Nothing where nothing is written; what is written, and nothing else."""
    with Puppet(kind) as guest:
        log = Track(guest.target, "--interval", 40, "--log", log_name, "--region", guest.region)
        log.wait_rounds(3)
        assert [entry["dirty-pages"] for entry in log.rounds[1:]] == [0] * (len(log.rounds) - 1), log.rounds
        huge = 512 if kind == "hugetlb" else 1
        for first, count, step in ((0, 1, 1), (7, 100, 3), (1000, 300, 1), (2047, 1, 1), (7, 100, 3)):
            mark = log.settle()
            guest.tell(f"write {first} {count} {step}")
            log.settle()
            written = {page // huge for page in range(first, first + count * step, step)}
            wanted = {page * huge + i for page in written for i in range(huge)}
            assert log.pages(guest, mark) == wanted, (first, count, step, len(log.pages(guest, mark)), len(wanted))
            told = [entry["dirty-pages"] for entry in log.rounds[mark:] if entry["dirty-pages"]]
            # A write that a round comes upon in its midst may be told twice.
            assert len(wanted) <= sum(told) < len(wanted) + huge * len(told), (told, len(wanted))
        assert {entry["log"] for entry in log.rounds} == {log_name}
        assert {entry["pages-total"] for entry in log.rounds} == {guest.length // PAGE}
        log.check_interrupted()
        assert not badday.troubles(guest.pid), badday.troubles(guest.pid)


def check_kinds(check, log_name):
    skipped = []
    for kind in KINDS:
        try:
            check(kind, log_name)
        except cases.Skip as why:
            skipped.append(f"{kind}: {why}")
        except AssertionError as error:
            raise AssertionError(f"{kind}: {error}") from error
    if skipped:
        raise cases.Skip("; ".join(skipped))


def async_log_reports_what_is_written(_folder):
    check_kinds(check_written_is_reported, "async")


def sync_log_reports_what_is_written(_folder):
    check_kinds(check_written_is_reported, "sync")


def check_new_mapping(log_name):
    with Puppet("anon") as guest:
        log = Track(guest.target, "--interval", 40, "--log", log_name)
        mark = log.settle()
        fresh = int(guest.tell("map 64"), 16)
        guest.tell("discard 100 50")
        log.settle()
        ranges = [(run["address"], run["address"] + run["length"]) for entry in log.rounds[mark:]
                  for run in entry["ranges"]]
        for address in range(fresh, fresh + 64 * PAGE, PAGE):
            assert any(start <= address < end for start, end in ranges), (hex(address), ranges)
        missing = set(range(100, 150)) - log.pages(guest, mark)
        assert not missing, ("discarded", missing)
        log.check_interrupted()


def mapping_that_is_new_is_reported(_folder):
    for log_name in LOGS:
        check_new_mapping(log_name)


DROPPABLE = """
import mmap, time
try:
    memory = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=8)
except OSError as error:
    raise SystemExit(f"this kernel has no MAP_DROPPABLE (Linux 6.11): {error}")
memory[0] = 1
print("ready", flush=True)
time.sleep(1000)
"""


def droppable_memory_is_always_dirty(_folder):
    """userfaultfd refuses it, and a C library may have some pages of it in every process."""
    child = children.start([sys.executable, "-c", DROPPABLE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if child.stdout.readline() != "ready\n":
        raise cases.Skip(f"skip: {child.stderr.read().strip()}")
    for log_name in LOGS:
        log = Track(["--pid", str(child.pid)], "--interval", 40, "--log", log_name)
        mark = log.settle()
        log.wait_rounds(mark + 3)
        whole = [run for entry in log.rounds[mark:] for run in entry["ranges"] if run["length"] == 16 * PAGE]
        assert len(whole) >= 3, (log_name, log.rounds[mark:])
        log.check_interrupted()
        assert not badday.troubles(child.pid)


# ---- guests that write -------------------------------------------------------------------------------------------


def check_memguest_is_covered(kind, log_name):
    with memguest(kind) as guest:
        log = Track(guest.target, "--interval", 40, "--log", log_name, "--region", guest.region)
        changed, reported = check_covers(log, guest, lambda: os.kill(guest.pid, signal.SIGSTOP),
                                         lambda: os.kill(guest.pid, signal.SIGCONT))
        if kind != "hugetlb":
            # A write that is under way when the guest is stopped, and on a busy machine some that were told late.
            extra = len(reported - changed)
            assert extra <= 1 + len(changed) // 50, f"{len(reported)} pages reported, {len(changed)} written"
        log.check_interrupted()
        guest.check_released()
        guest.check_no_errors()


def async_log_covers_what_memguest_writes(_folder):
    check_kinds(check_memguest_is_covered, "async")


def sync_log_covers_what_memguest_writes(_folder):
    check_kinds(check_memguest_is_covered, "sync")


def guest_that_maps_and_unmaps_is_covered(_folder):
    for log_name in LOGS:
        with memguest("anon", events="remap,unmap,dontneed,free", event_interval=1) as guest:
            log = Track(guest.target, "--interval", 40, "--log", log_name)
            check_covers(log, guest, lambda pid=guest.pid: os.kill(pid, signal.SIGSTOP),
                         lambda pid=guest.pid: os.kill(pid, signal.SIGCONT), rounds=15)
            log.check_interrupted()
            guest.check_released()
            guest.check_no_errors()


def guest_that_maps_all_the_time_is_followed(_folder):
    """What is gone when it is looked at again is no failure, and no reason to begin again for ever."""
    for log_name in LOGS:
        with memguest("anon", events="remap,unmap,dontneed,free,punch", event_interval=1) as guest:
            options = ("--interval", 5, "--rounds", 100, "--log", log_name)
            assert len(lines_of(track(guest, *options, timeout=10))) == 100
            assert not badday.troubles(guest.pid), badday.troubles(guest.pid)
            guest.check_no_errors()


def guest_of_known_rate_shows_that_rate(_folder):
    """Each write is to a page of its own, for a lap is longer than the test."""
    for log_name in LOGS:
        with memguest("anon", size="64M", rate=5000) as guest:
            os.kill(guest.pid, signal.SIGSTOP)
            log = Track(guest.target, "--interval", 200, "--log", log_name, "--region", guest.region)
            log.wait_rounds(1)
            first, writes, begin = log.settle(), guest.counter(), time.monotonic()
            os.kill(guest.pid, signal.SIGCONT)
            log.wait_rounds(first + 6)
            os.kill(guest.pid, signal.SIGSTOP)
            elapsed = time.monotonic() - begin
            rounds = log.rounds[first:log.settle()]
            writes = guest.counter() - writes
            pages = sum(entry["dirty-pages"] for entry in rounds)
            assert 0.99 < pages / writes < 1.01, (log_name, pages, writes)
            rates = [entry["rate-pages-per-second"] for entry in rounds[1:5]]
            assert 0.6 < sum(rates) / len(rates) / (writes / elapsed) < 1.6, (log_name, rates, writes / elapsed)
            log.check_interrupted()
            os.kill(guest.pid, signal.SIGCONT)


def qemu_guest_is_covered(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        for log_name in LOGS:
            log = Track(guest.target, "--interval", 60, "--log", log_name, "--region", "ram")
            log.wait_rounds(1)
            assert log.rounds[0]["ranges"] and {run["region"] for run in log.rounds[0]["ranges"]} == {"ram"}
            ram = log.rounds[0]["ranges"][0]
            guest.arena, guest.length = ram["address"] - ram["offset"], log.rounds[0]["pages-total"] * PAGE
            changed, reported = check_covers(log, guest, lambda: guest.qmp.command("stop"),
                                             lambda: guest.qmp.command("cont"))
            assert len(reported) < 2 * len(changed), (log_name, len(reported), len(changed))
            guest.qmp.command("stop")
            quiet = log.settle()
            log.wait_rounds(quiet + 3)
            assert not log.pages(guest, quiet), "a guest that stands still writes nothing"
            guest.qmp.command("cont")
            log.check_interrupted()
            guest.check_released()
        guest.check_no_errors()


# ---- ends --------------------------------------------------------------------------------------------------------


def check_ends_with_guest(guest, kill):
    for log_name in LOGS:
        with guest() as one:
            log = Track(one.target, "--interval", 50, "--log", log_name)
            log.wait_rounds(2)
            begin = time.monotonic()
            kill(one)
            status, complaint = log.end(None)
            assert status == 1 and time.monotonic() - begin < 2, (status, complaint)
            assert GONE.search(badday.check_one_line(complaint)), complaint


def killed_guest_ends_the_log(_folder):
    check_ends_with_guest(lambda: memguest("anon"), lambda guest: guest.process.kill())  # a zombie from then on
    check_ends_with_guest(lambda: memguest("memfd"), lambda guest: guest.close())


def killed_guest_is_noticed_within_a_long_round(_folder):
    with memguest("anon") as guest:
        log = Track(guest.target, "--interval", 60000)
        badday.wait_until(lambda: badday.watched_mappings(guest.pid), 5, "watching")
        guest.process.kill()
        status, complaint = log.end(None, seconds=2)
        assert status == 1, (status, complaint)
        badday.check_one_line(complaint, str(guest.pid), "ended")


def guest_that_becomes_another_program_ends_the_log(_folder):
    text = ("import os, signal, time\n"
            "signal.signal(signal.SIGUSR1, lambda *_: os.execvp('sleep', ['sleep', '60']))\n"
            "print('ready', flush=True)\nwhile True: time.sleep(1)")
    for log_name in LOGS:
        child = children.start([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        log = Track(["--pid", str(child.pid)], "--interval", 50, "--log", log_name)
        log.wait_rounds(2)
        child.send_signal(signal.SIGUSR1)
        status, complaint = log.end(None)
        assert status == 1 and GONE.search(badday.check_one_line(complaint)), (status, complaint)
        children.stop(child)


def killed_qemu_ends_the_log(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        log = Track(guest.target, "--interval", 50)
        log.wait_rounds(2)
        guest.process.kill()
        status, complaint = log.end(None)
        assert status == 1, (status, complaint)
        badday.check_one_line(complaint)


def interrupted_log_leaves_nothing(_folder):
    with memguest("memfd", rate=badday.RATE) as guest:
        for log_name in LOGS:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                log = Track(guest.target, "--interval", 50, "--log", log_name)
                log.wait_rounds(2)
                assert badday.watched_mappings(guest.pid), "it is watched"
                begin = time.monotonic()
                ended = log.end(number)
                assert time.monotonic() - begin < 1, "it ends at once"
                assert ended == (-number if number == signal.SIGKILL else 0, ""), ended
                guest.check_released()
        guest.check_no_errors()


def output_that_nobody_takes_ends_the_log(_folder):
    with memguest("anon") as guest:
        with open("/dev/full", "w", encoding="ascii") as full:
            result = subprocess.run([f"{BUILD}/tools/vmsnap", "track", *guest.target, "--interval", "50"], stdout=full,
                                    stderr=subprocess.PIPE, text=True, timeout=10, check=False)
        assert result.returncode == 1, result
        badday.check_one_line(result.stderr, "standard output")
        guest.check_released()


def process_that_is_not_there_is_refused(_folder):
    child = subprocess.Popen(["true"])
    child.wait()
    result = badday.vmsnap(BUILD, "track", "--pid", child.pid)
    badday.check_refused(result, str(child.pid))
    with memguest("anon") as guest:
        badday.check_refused(track(guest, "--region", "no-such", "--interval", 10), "no-such")
        guest.check_released()


# ---- options and output ------------------------------------------------------------------------------------------


def rounds_and_interval_are_kept(_folder):
    with memguest("anon") as guest:
        begin = time.monotonic()
        objects = [json.loads(line) for line in lines_of(track(guest, "--rounds", 5, "--interval", 100, "--json"))]
        elapsed = time.monotonic() - begin
        assert [entry["round"] for entry in objects] == [1, 2, 3, 4, 5], objects
        assert 0.5 <= elapsed < 1.5, elapsed
        begin = time.monotonic()
        assert len(lines_of(track(guest, "--rounds", 1))) == 1
        assert 1 <= time.monotonic() - begin < 2, "1000 ms when nothing is said"


def rounds_come_out_one_by_one(_folder):
    """Flushed: a reader need not wait until a pipe is full."""
    with memguest("anon") as guest:
        log = Track(guest.target, "--interval", 300)
        log.wait_rounds(1, seconds=2)
        assert log.process.poll() is None and len(log.rounds) <= 2
        log.check_interrupted()


def json_has_the_members_of_the_manual(_folder):
    with memguest("anon", rate=2000) as guest:
        lines = lines_of(track(guest, "--rounds", 3, "--interval", 100, "--region", guest.region, "--json"))
        for entry in map(json.loads, lines):
            assert set(entry) == MEMBERS, entry
            assert entry["log"] == "async" and entry["pages-total"] == guest.length // PAGE, entry
            assert entry["scan-us"] > 0 and entry["rate-pages-per-second"] > 0, entry
            assert entry["dirty-pages"] * PAGE == sum(run["length"] for run in entry["ranges"]) > 0
            end = 0
            for run in entry["ranges"]:
                assert set(run) == {"region", "offset", "address", "length"}, run
                assert run["region"].endswith(f"@{guest.arena:x}"), run
                assert run["address"] == guest.arena + run["offset"] and run["address"] > end, (run, end)
                end = run["address"] + run["length"]
            assert end <= guest.arena + guest.length


def text_has_a_line_a_round(_folder):
    with memguest("anon", rate=2000) as guest:
        common = ("--rounds", 3, "--interval", 100, "--region", guest.region)
        result = track(guest, *common)
        found = [LINE.fullmatch(line) for line in lines_of(result)]
        assert len(found) == 3 and all(found) and result.stderr == "", result
        assert [int(match.group(1)) for match in found] == [1, 2, 3]
        lines = lines_of(track(guest, *common, "--ranges"))
        heads = [LINE.fullmatch(line) for line in lines if not line.startswith("  ")]
        ranges = [re.fullmatch(r"  0x([0-9a-f]+)-0x([0-9a-f]+)  \S+ \S+  (\S+) \+ 0x([0-9a-f]+)", line)
                  for line in lines if line.startswith("  ")]
        assert len(heads) == 3 and all(heads) and all(ranges), lines[:10]
        assert len(ranges) == sum(int(head.group(3)) for head in heads)
        assert sum(int(run.group(2), 16) - int(run.group(1), 16) for run in ranges) == \
            PAGE * sum(int(head.group(2)) for head in heads)
        assert all(int(run.group(1), 16) == guest.arena + int(run.group(4), 16) for run in ranges)


def kernel_without_async_gets_the_sync_log(_folder):
    """Said by probe, and by track to who did not ask for it."""
    old = {**os.environ, "LD_PRELOAD": f"{BUILD}/tests/integ/libno-async.so",
           "ASAN_OPTIONS": "verify_asan_link_order=0"}
    assert json.loads(badday.vmsnap(BUILD, "probe", "--json").stdout)["dirty-log"] == "async"
    assert "\ndirty log: async (kernel)\n" in badday.vmsnap(BUILD, "probe").stdout
    assert json.loads(badday.vmsnap(BUILD, "probe", "--json", env=old).stdout)["dirty-log"] == "sync"
    assert "\ndirty log: sync (a thread)\n" in badday.vmsnap(BUILD, "probe", env=old).stdout
    with memguest("anon") as guest:
        options = ("--rounds", 2, "--interval", 50, "--json")
        result = track(guest, *options, env=old)
        assert {json.loads(line)["log"] for line in lines_of(result)} == {"sync"}
        badday.check_one_line(result.stderr, "sync", "async")
        asked = track(guest, *options, "--log", "sync", env=old)
        assert asked.stderr == "" and len(lines_of(asked)) == 2, asked
        badday.check_refused(track(guest, *options, "--log", "async", env=old), "async")
        guest.check_released()


def require_async():
    probe = badday.vmsnap(BUILD, "probe", "--json")
    answers = json.loads(probe.stdout)
    missing = [item["name"] for item in answers["items"]
               if item["answer"] != "yes" and (item["required"] or item["name"] in ("wp-async", "ptrace", "pidfd-getfd"))]
    if missing:
        print(f"skip: the log needs {', '.join(missing)}")
        sys.exit(cases.EXIT_SKIP)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where we run in the background and it is ignored
    require_async()
    cases.run(globals(), sys.argv[2:])
