#!/usr/bin/env python3
"""Buffers that are registered with io_uring: what is read into them passes by every protection.

    rings.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import contextlib
import mmap
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import children  # pylint: disable=wrong-import-position
import cores  # pylint: disable=wrong-import-position
import qmpd  # pylint: disable=wrong-import-position

BUILD = os.path.abspath(sys.argv[1])
PAGE = mmap.PAGESIZE
KIB = 256  # of buffer
SLOW = ("--max-bandwidth", "16M", "--buffer", "4M")


class RingGuest(badday.UnderTest):
    """tests/integ/ring-guest.c. Page N of its file is full of N."""

    def __init__(self, kib=KIB):
        path = os.path.join(BUILD, f"ring-guest-{os.getpid()}.data")  # tmpfs has no O_DIRECT everywhere
        with open(path, "wb") as file:
            file.write(b"".join(bytes([number]) * PAGE for number in range(8)))
        self.process = children.start([f"{BUILD}/tests/integ/ring-guest", path, str(kib)], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        os.unlink(path)
        if not line:
            raise cases.Skip(f"skip: {self.process.stderr.read().strip()}")
        self.buffer, self.length = int(line.split()[1], 16), kib << 10
        self.pid, self.build, self.target = self.process.pid, BUILD, ["--pid", str(self.process.pid)]
        self.remember()

    def read(self, number):
        self.process.stdin.write(f"read {number}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def check_image(self, image, number):
        """The buffer in IMAGE is full of NUMBER."""
        found = cores.Core(BUILD, image).read(self.buffer, self.length)
        assert found, f"{image} has no such memory"
        wrong = {byte for byte in found if byte != number}
        assert not wrong, f"{image}: {wrong} instead of {number}"


def buffer_is_saved_as_it_was_at_the_point(folder):
    guest = RingGuest()
    guest.read(1)
    save = badday.Save(guest, f"{folder}/image", *SLOW)
    save.wait_sweeping()
    guest.read(2)
    assert save.runs()
    assert save.finish()[0] == 0, save.finish()
    guest.check_image(f"{folder}/image", 1)
    assert not badday.troubles(guest.pid)


def buffer_is_in_every_image_of_a_chain(folder):
    guest = RingGuest()
    guest.read(1)
    save = badday.Save(guest, f"{folder}/chain", "--every", "500ms", "--count", "3")
    for number in (1, 2, 3):
        manifest = f"{folder}/chain/{number:06}/manifest.json"
        badday.wait_until(lambda path=manifest: os.path.exists(path), 20, manifest)
        guest.read(number + 1)
    assert save.finish()[0] == 0, save.finish()
    for number in (1, 2, 3):
        guest.check_image(f"{folder}/chain/{number:06}", number)


def buffer_is_in_every_epoch(folder):
    guest = RingGuest()
    with qmpd.Vmsnapd(BUILD, folder) as server, contextlib.closing(server.client()) as client:
        client.add_process("g", guest.pid)
        client.command("replicate", path="chain", interval=50)
        expected = {}
        for number in (1, 2, 3):
            guest.read(number)
            before = client.command("query-migrate").get("epoch", 0)
            badday.wait_until(lambda before=before: client.command("query-migrate").get("epoch", 0) >= before + 2, 20,
                              "two epochs")
            expected[client.command("query-migrate")["epoch"]] = number
        client.command("migrate_cancel")
        badday.wait_until(lambda: client.command("query-migrate")["status"] == "cancelled", 20, "it is cancelled")
    for epoch, number in expected.items():
        guest.check_image(f"{folder}/chain/{epoch:06}", number)


def buffers_that_are_too_large_are_refused_by_name(folder):
    guest = RingGuest(4096)
    result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image")
    badday.check_refused(result, "io_uring", "4096 KiB", "--region")
    badday.check_incomplete(BUILD, f"{folder}/image")
    assert not badday.troubles(guest.pid)


def region_with_large_buffers_may_be_left_out(folder):
    """As the refusal says; however large they are."""
    guest = RingGuest(65536)
    result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image", "--region", "stack*")
    assert result.returncode == 0, result.stderr


def buffer_that_is_too_small_for_them_is_refused(folder):
    guest = RingGuest(2048)
    result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image", "--buffer", "2M")
    badday.check_refused(result, "2048 KiB", "--buffer", status=2)
    assert not badday.troubles(guest.pid)
    assert badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image").returncode == 0


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
