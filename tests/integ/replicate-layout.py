#!/usr/bin/env python3
"""A process that maps, unmaps and moves memory between two epochs of its replication: each image is what it had then.

replicate-layout.py BUILD [WORD...]      only the cases whose name holds one of these words

The process does as it is told, one thing at a time, at addresses of ours; nothing else of its memory is looked at.
"""
import ctypes
import mmap
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import cores  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] != "--guest" else None
BASE = 0x100000000000
REGION = "*@10000*"       # what is mapped near BASE
PAGE = mmap.PAGESIZE
MIB = 1 << 20
MAP_DROPPABLE = 8

# ---- the guest -----------------------------------------------------------------------------------------------


def serve():
    """Commands on standard input, one a line; "ok" for each."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    size, address = ctypes.c_size_t, ctypes.c_void_p
    private, fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x10
    actions = {
        "map": lambda at, n: libc.mmap(address(at), size(n), 3, private | fixed, -1, size(0)) == at,
        "droppable": lambda at, n: libc.mmap(address(at), size(n), 3, MAP_DROPPABLE | 0x30, -1, size(0)) == at,
        "unmap": lambda at, n: libc.munmap(address(at), size(n)) == 0,
        "put": lambda at, n, byte: ctypes.memset(at, byte, n),
        "move": lambda at, n, to: libc.mremap(address(at), size(n), size(n), 3, address(to)) == to,
        "memfd": lambda at, n, shared: libc.mmap(address(at), size(n), 3, 0x11 if shared else 0x12, memory(n), size(0)) == at,
        "rights": lambda at, n, rights: libc.mprotect(address(at), size(n), rights) == 0,
        "drop": lambda at, n, advice: libc.madvise(address(at), size(n), advice) == 0,
        "hide": lambda at, n: libc.mprotect(address(at), size(n), 0) == 0,
    }

    def memory(length):
        file = os.memfd_create("memory")
        os.ftruncate(file, length)
        return file

    print("ok", flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        print("ok" if actions[name](*(int(n) for n in numbers)) else f"errno {ctypes.get_errno()}", flush=True)


class Guest(children.Child):
    def __init__(self):
        super().__init__([sys.executable, __file__, "--guest"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ok\n"

    def do(self, name, *numbers):
        self.process.stdin.write(f"{name} {' '.join(str(n) for n in numbers)}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer == "ok", f"{name} {numbers}: {answer}"

    def fill(self, at, length, byte):
        """Something new."""
        self.do("map", at, length)
        self.do("put", at, length, byte)


class Replicated:
    """A guest that is replicated, and its epochs."""

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        self.guest = Guest()
        self.server = qmpd.Vmsnapd(BUILD, folder).__enter__()
        self.client = self.server.client()
        self.expected = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.client.close()
        try:
            self.server.__exit__(*exception)
        finally:
            self.guest.close()

    def start(self):
        self.client.add_process("g", self.guest.process.pid)
        self.guest.do("map", BASE + (1 << 30), PAGE)  # so that there is something at any time
        self.client.command("replicate", path="chain", interval=40, region=REGION)
        self.epoch()

    def start_with(self, length, byte):
        """The same, with so much at BASE."""
        self.guest.fill(BASE, length, byte)
        self.start()

    def state(self):
        state = self.client.command("query-migrate")
        assert state["status"] in ("setup", "active", "colo"), state
        return state

    def epoch(self):
        """One that has begun from now on; its number."""
        before = self.state().get("epoch", 0)
        badday.wait_until(lambda: self.state().get("epoch", 0) >= before + 2, 30, "two epochs")
        return self.state()["epoch"]

    def see(self, parts):
        """The next epoch's image holds these: (address, length, byte, or None for what is not mapped)."""
        self.expected[self.epoch()] = parts

    def end(self):
        self.client.command("migrate_cancel")
        badday.wait_until(lambda: self.client.command("query-migrate")["status"] == "cancelled", 20, "it is cancelled")
        self.client.command("target-del", id="g")
        self.guest.do("put", BASE + (1 << 30), 1, 1)  # it goes on
        for epoch, parts in self.expected.items():
            image = f"{self.folder}/chain/{epoch:06}"
            shown = badday.vmsnap(BUILD, "verify", image)
            assert shown.returncode == 0, shown
            core = cores.Core(BUILD, image)
            for address, length, byte in parts:
                found = core.read(address, length)
                wanted = None if byte is None else bytes([byte]) * length
                assert found == wanted, f"epoch {epoch}: {address:#x}: {found and found[:8]!r}… instead of {byte}"


# ---- cases ---------------------------------------------------------------------------------------------------


def droppable_memory_is_sent_whole_each_time(folder):
    """Nobody can protect it, and the C library has some."""
    with Replicated(folder) as r:
        try:
            r.guest.do("droppable", BASE, 16 * PAGE)
        except AssertionError as error:
            raise cases.Skip(f"skip: this kernel has no MAP_DROPPABLE (Linux 6.11): {error}") from error
        r.guest.do("put", BASE, 16 * PAGE, 0x11)
        r.start()
        r.see([(BASE, 16 * PAGE, 0x11)])
        r.guest.do("put", BASE + 3 * PAGE, PAGE, 0x22)
        r.see([(BASE, 3 * PAGE, 0x11), (BASE + 3 * PAGE, PAGE, 0x22), (BASE + 4 * PAGE, PAGE, 0x11)])
        r.guest.do("unmap", BASE, 16 * PAGE)
        r.guest.fill(BASE, 16 * PAGE, 0x33)
        r.see([(BASE, 16 * PAGE, 0x33)])
        r.end()


def region_mapped_anew_hides_what_was_there(folder):
    with Replicated(folder) as r:
        r.start_with(MIB, 0x11)
        r.see([(BASE, MIB, 0x11)])
        r.guest.do("unmap", BASE, MIB)
        r.guest.do("map", BASE, MIB)
        r.guest.do("put", BASE + 5 * PAGE, PAGE, 0x22)
        r.see([(BASE, 5 * PAGE, 0), (BASE + 5 * PAGE, PAGE, 0x22), (BASE + 6 * PAGE, MIB - 6 * PAGE, 0)])
        r.guest.do("put", BASE, PAGE, 0x33)
        r.see([(BASE, PAGE, 0x33), (BASE + PAGE, 4 * PAGE, 0), (BASE + 5 * PAGE, PAGE, 0x22)])
        r.end()


def region_that_is_cut_and_filled_again_is_followed(folder):
    with Replicated(folder) as r:
        r.start_with(MIB, 0x11)
        r.guest.do("unmap", BASE + MIB // 2, MIB // 4)
        r.see([(BASE, MIB // 2, 0x11), (BASE + MIB // 2, PAGE, None), (BASE + 3 * MIB // 4, MIB // 4, 0x11)])
        r.guest.do("map", BASE + MIB // 2, MIB // 4)
        r.see([(BASE, MIB // 2, 0x11), (BASE + MIB // 2, MIB // 4, 0), (BASE + 3 * MIB // 4, MIB // 4, 0x11)])
        r.end()


def region_that_grows_keeps_what_it_had(folder):
    with Replicated(folder) as r:
        r.start_with(MIB, 0x11)
        for n in range(1, 5):
            r.guest.do("map", BASE + n * MIB, MIB)
            r.guest.do("put", BASE + n * MIB, MIB // 2, 0x11 + n)
            r.see([(BASE + i * MIB, MIB // 2, 0x11 + i) for i in range(n + 1)]
                  + [(BASE + n * MIB + MIB // 2, MIB // 2, 0)])
        r.end()


def region_that_grows_is_not_sent_again(folder):
    """The kernel makes one mapping of what is there and what is added; at either end."""
    size, middle = 32 * MIB, BASE + 64 * MIB
    with Replicated(folder) as r:
        r.guest.do("map", BASE, PAGE)
        r.guest.fill(middle, size, 0x11)
        r.start()
        r.epoch()
        before = r.state()["ram"]["transferred"]
        low, high = middle, middle + size
        for _ in range(8):
            r.guest.fill(high, MIB // 4, 0x22)
            r.guest.fill(low - MIB // 4, MIB // 4, 0x33)
            low, high = low - MIB // 4, high + MIB // 4
            r.epoch()
        r.see([(low, middle - low, 0x33), (middle, size, 0x11), (middle + size, high - middle - size, 0x22)])
        sent = r.state()["ram"]["transferred"] - before
        assert sent < size, f"{sent >> 20} MiB were sent for 4 MiB that are new"
        r.end()


def region_that_moves_is_where_it_is_now(folder):
    to = BASE + 64 * MIB
    with Replicated(folder) as r:
        r.start_with(MIB, 0x11)
        r.guest.do("move", BASE, MIB, to)
        r.see([(BASE, PAGE, None), (to, MIB, 0x11)])
        r.guest.do("put", to, PAGE, 0x22)
        r.see([(BASE, PAGE, None), (to, PAGE, 0x22), (to + PAGE, MIB - PAGE, 0x11)])
        r.guest.do("move", to, MIB, BASE)
        r.see([(to, PAGE, None), (BASE, PAGE, 0x22), (BASE + PAGE, MIB - PAGE, 0x11)])
        r.end()


def region_that_is_new_and_large_comes_as_a_whole(folder):
    """More of it than is copied while the process stands."""
    with Replicated(folder) as r:
        r.guest.do("map", BASE, PAGE)
        r.start()
        r.guest.do("map", BASE + MIB, 48 * MIB)
        r.guest.do("put", BASE + MIB, 40 * MIB, 0x44)
        r.see([(BASE + MIB, 40 * MIB, 0x44), (BASE + 41 * MIB, 8 * MIB, 0)])
        r.end()


def region_that_nobody_may_read_is_followed(folder):
    with Replicated(folder) as r:
        r.guest.do("map", BASE, PAGE)
        r.guest.fill(BASE + MIB, MIB, 0x55)
        r.start()
        r.guest.do("hide", BASE + MIB, MIB)
        r.see([(BASE + MIB, MIB, 0x55)])
        r.end()


def region_written_while_it_could_be_is_read_again(folder):
    """Read-only at each epoch, and not in between: as one that makes code writes it."""
    for shared in (0, 1):
        at = BASE + (1 + shared) * MIB
        with Replicated(f"{folder}/{shared}") as r:
            r.guest.do("memfd", at, MIB, shared)
            r.guest.do("put", at, MIB, 0x11)
            r.guest.do("rights", at, MIB, mmap.PROT_READ)
            r.start()
            r.see([(at, MIB, 0x11)])
            r.guest.do("rights", at, MIB, mmap.PROT_READ | mmap.PROT_WRITE)
            r.guest.do("put", at + PAGE, PAGE, 0x22)
            r.guest.do("rights", at, MIB, mmap.PROT_READ)
            r.see([(at, PAGE, 0x11), (at + PAGE, PAGE, 0x22), (at + 2 * PAGE, MIB - 2 * PAGE, 0x11)])
            r.end()


def region_that_loses_pages_without_a_write_is_followed(folder):
    for shared, advice in ((1, 9), (0, 4)):  # MADV_REMOVE, MADV_DONTNEED
        at = BASE + (1 + shared) * MIB
        with Replicated(f"{folder}/{shared}") as r:
            r.guest.do("memfd", at, MIB, shared)
            r.guest.do("put", at, MIB, 0x11)
            r.start()
            r.see([(at, MIB, 0x11)])
            r.guest.do("drop", at + PAGE, PAGE, advice)
            r.see([(at, PAGE, 0x11), (at + PAGE, PAGE, 0), (at + 2 * PAGE, MIB - 2 * PAGE, 0x11)])
            r.end()


def process_that_never_rests_is_replicated(folder):
    """It maps, fills and unmaps as fast as it can; what it leaves alone is as it was."""
    with Replicated(folder) as r:
        r.start_with(MIB, 0x11)
        for i in range(300):
            at = BASE + (2 + i % 7) * 4 * MIB
            r.guest.do("map", at, 3 * MIB)
            r.guest.do("put", at, 2 * MIB, 1 + i % 200)
            r.guest.do("unmap", at + MIB * (i % 2), 2 * MIB)
        r.see([(BASE, MIB, 0x11)])
        r.end()


if __name__ == "__main__":
    if sys.argv[1] == "--guest":
        serve()
    else:
        children.end_by_signal()
        cases.run(globals(), sys.argv[2:])
