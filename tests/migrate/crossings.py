#!/usr/bin/env python3
"""A guest that crosses from VMM to VMM over and over, under load, and never finds a wrong word.

crossings.py BUILD [--times N] [--vmm thread|micro]

Each crossing is to a VMM of its own, whose predecessor ends. Kinds of memory and ways to cross take turns, so that in
forty crossings every way is gone from every kind. The guest checks every word before it overwrites it; a guest of
threads is also checked in every byte before it runs where it has come to, and the microvm's at the end.
"""
import argparse
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import cases  # noqa: E402
import children  # noqa: E402
import migrate  # noqa: E402

MEMORIES = {"thread": ["anon", "thp", "memfd", "memfd-private", "hugetlb"], "micro": ["anon", "memfd", "hugetlb"]}
WAYS = ["plain", "multifd", "zstd", "postcopy", "pre-switchover", "postcopy-multifd", "zstd-multifd",
        "tcp-multifd"]
SIZE = {"thread": "32M", "micro": "64M"}
HUGE_BYTES = 2 << 20


def capabilities(way):
    found = []
    if "postcopy" in way:
        found.append("postcopy-ram")
    if "multifd" in way or "zstd" in way:
        found.append("multifd")
    if way == "pre-switchover":
        found.append("pause-before-switchover")
    return found


def parameters(way):
    found = {}
    if "multifd" in way or "zstd" in way:
        found["multifd_channels"] = 4 if "multifd" in way else 1
    if "zstd" in way:
        found["multifd_compression"] = "zstd"
    return found


def has_huge_pages(count):
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["HugePages_Free"]) >= count and fields["Hugepagesize"].split()[0] == str(HUGE_BYTES >> 10)


class Journey:
    """The guest, wherever it is."""

    def __init__(self, build, folder, vmm):
        self.build, self.folder, self.vmm = build, folder, vmm
        self.journal = migrate.Journal(folder)
        self.memories = list(MEMORIES[vmm])
        # Two of them have the guest in huge pages for a moment.
        if not has_huge_pages(2 * ((64 << 20) // HUGE_BYTES)):
            print("not in huge pages: too few are free")
            self.memories.remove("hugetlb")
        self.gone = []  # the kinds it was and is in
        self.at = self._make(0, None)
        self.downtimes = []
        if vmm == "micro":
            self.at.serial.wait_populated()

    def _memory(self, number, way):
        """In its turn; where it cannot be arrived at by post-copy, another one."""
        memory = self.memories[number % len(self.memories)]
        self.gone = self.gone[-1:] + ["anon" if memory == "memfd-private" and "postcopy" in way else memory]
        return self.gone[-1]

    def _make(self, number, way):
        """The VMM of this number; with a WAY, one that waits for the guest."""
        memory = self._memory(number, way or "")
        incoming = None
        if way:
            incoming = "tcp:127.0.0.1:0" if "tcp" in way else f"unix:{self.folder}/way-{number}"
        if self.vmm == "micro":
            return migrate.Microvm(self.build, self.folder, f"vm{number}", incoming=incoming, size=SIZE["micro"],
                                   memory=memory, words="size=32M hot=25%")
        verify = bool(way) and "postcopy" not in way
        return migrate.ThreadVm(self.build, self.folder, f"vm{number}", self.journal, incoming=incoming,
                                size=SIZE["thread"], memory=memory, hot="25%", threads=1 + number % 2,
                                regions=3, align="2M",
                                prefill=not way, verify=verify)

    def _send(self, destination, way, number):
        source, uri = self.at, f"unix:{self.folder}/way-{number}"
        if "tcp" in way:
            uri = f"tcp:127.0.0.1:{destination.migration()['socket-address'][0]['port']}"
        source.migrate(uri)
        if "postcopy" in way:
            source.command("migrate-start-postcopy")
        if way == "pre-switchover":
            source.wait_status("pre-switchover")
            source.command("migrate-continue", state="pre-switchover")
        return source.wait_status("completed", seconds=60)

    def cross(self, number):
        way = WAYS[number % len(WAYS)]
        try:
            destination = self._make(number, way)
        except AssertionError as error:
            raise AssertionError(f"crossing {number}: {error}") from error
        try:
            for vm in (self.at, destination):
                vm.set_capabilities(*capabilities(way))
                vm.set_parameters(downtime_limit=100, **parameters(way))
            found = self._send(destination, way, number)
            destination.wait_status("completed", seconds=60)
            destination.check_guest(exact=self.vmm == "thread" and "postcopy" in way)
            self.journal.check()
        except BaseException:
            destination.close()
            raise
        self.at.end()
        self.at.close()
        self.downtimes.append(found.get("downtime", 0))
        print(f"{number}: {way}, {self.gone[0]} to {self.gone[1]}: {found.get('total-time')} ms, stood for "
              f"{found.get('downtime')} ms", flush=True)
        self.at = destination

    def check(self):
        self.at.check_guest()
        self.journal.check()
        self.journal.check_goes_on()
        self.at.end()


def travel(options, folder):
    journey = Journey(options.build, folder, options.vmm)
    try:
        for number in range(1, options.times + 1):
            journey.cross(number)
        journey.check()
    except BaseException:
        migrate.keep(folder, "the journey")
        raise
    finally:
        journey.at.close()
    print(f"{options.times} crossings, stood for {max(journey.downtimes)} ms at most")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=os.path.abspath)
    parser.add_argument("--times", type=int, default=16)
    parser.add_argument("--vmm", choices=MEMORIES, default="thread")
    options = parser.parse_args()
    children.end_by_signal()
    folder = tempfile.mkdtemp(prefix="crossings-", dir=os.environ.get("SNAP_TEST_DIR"))
    try:
        travel(options, folder)
    except cases.Skip as why:
        print(f"skip: {why}")
        return cases.EXIT_SKIP
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
