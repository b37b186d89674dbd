#!/usr/bin/env python3
"""A Linux guest in a real QEMU: snapshotted while it runs, killed, and going on from the copy.

qemu-restore.py BUILD CASE      CASE as below; --list prints them

The guest counts aloud once a second and prints a checksum of its memory: after each way back (vmsnap restore, and
vmsnap export with plain -incoming) it must count on from where it was, with the same checksum. The image must not have
changed by then. SNAP_CACHE is where the guest's kernel and QEMU 10 are kept (default: BUILD/cache).
Exit status 0, 1, or 77 when something is missing here, which is named.
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import cases  # noqa: E402
import children  # noqa: E402
import huge  # noqa: E402
import qemu  # noqa: E402
import vmsnap  # noqa: E402
from linux_guest import SEVEN, Failed, Linux, check_counts_on  # noqa: E402


# What differs from a default `qemu-system-x86_64`: "args" for all, "to" the program it is restored in, "from" the one it
# ran in, "mapped" when its RAM is to come back by mapping.
CASES = {
    "default": {},
    "q35": {"args": ["-M", "q35", "-smp", "2", "-device", "virtio-net-pci"]},
    "microvm": {"args": ["-M", "microvm,acpi=off"]},
    "memfd": {"backend": "memory-backend-memfd,share=on", "mapped": True},
    "memfd-private": {"backend": "memory-backend-memfd,share=off", "mapped": True},
    "ram-backend": {"backend": "memory-backend-ram"},
    "tmpfs": {"backend": "memory-backend-file,share=on,mem-path=FILE", "mapped": True},
    "hugetlb": {"backend": "memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M"},
    "hugetlb-private": {"backend": "memory-backend-memfd,share=off,hugetlb=on,hugetlbsize=2M"},
    "paused": {"paused": True},
    "sandbox": {"source": ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny", "-runas", "nobody"]},
    "7-in-10": {"args": ["-M", "pc-i440fx-7.2"], "to": "10"},
    "7-in-10-memfd": {"backend": "memory-backend-memfd,share=on", "machine": "pc-i440fx-7.2", "to": "10", "mapped": True},
    "10": {"from": "10", "to": "10"},
    "10-q35-memfd": {"from": "10", "to": "10", "backend": "memory-backend-memfd,share=on", "machine": "q35",
                     "mapped": True},
}


def skip(why):
    print(f"skip: {why}")
    sys.exit(cases.EXIT_SKIP)


def hash_folder(folder):
    sums = {}
    for base, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(base, name), "rb") as f:
                sums[os.path.join(base, name)] = hashlib.file_digest(f, "sha256").hexdigest()
    return sums


class Trip:
    """One case, from start to end."""

    def __init__(self, build, case, work):
        self.case = case
        self.work = work
        self.image = f"{work}/image"
        self.vmsnap = vmsnap.Vmsnap(build)
        self.tool = f"{build}/tools/vmsnap"
        self.guest = Linux(case, os.environ.get("SNAP_CACHE", f"{build}/cache"), work)

    def save(self):
        program = self.guest.programs[self.case.get("from", "7")]
        arguments = [*self.guest.arguments, *self.case.get("source", []), *self.guest.serial("source")]
        with qemu.Qemu(arguments, program=program) as source:
            self.guest.wait_ticks("source", 2, "at the start", source.process, seconds=120)
            if self.case.get("paused"):
                source.qmp.command("stop")
            self.saved = self.vmsnap.save(self.image, qemu=source.sockets[0])
            before = self.guest.ticks("source")
            status = source.qmp.command("query-status")["status"]
            if status != ("paused" if self.case.get("paused") else "running"):
                raise Failed(f"after the save the guest is {status}")
            if not self.case.get("paused"):
                self.guest.wait_ticks("source", len(before) + 2, "after the save", source.process)
            # QEMU 7 takes descriptors out of a set only while the guest runs.
            ours = ("userfaultfd",) if self.case.get("paused") else ("userfaultfd", "device-state")
            leftover = [target for target in self._descriptors(source.pid) if any(word in target for word in ours)]
            if leftover:
                raise Failed(f"descriptors are left in QEMU: {leftover}")
        self.before = before

    @staticmethod
    def _descriptors(pid):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                yield os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                pass

    def start(self, name, command, own_socket):
        # A client of our own: for the paused guest, to see that it is, and to let it run.
        arguments = [*command, *self.guest.arguments, *self.guest.serial(name), "-qmp",
                     f"unix:{own_socket},server=on,wait=off"]
        return children.start(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def come_back(self, name, command, incoming=()):
        program = self.guest.programs[self.case.get("to", "7")]
        own_socket = f"{self.work}/{name}.qmp"
        child = self.start(name, [*command, program, *incoming], own_socket)
        try:
            if self.case.get("paused"):
                self._let_run(name, own_socket, child)
            after = self.guest.wait_ticks(name, 2, name, child)
            check_counts_on(self.before, after, name)
            if not incoming:
                self._check_again(own_socket, child)
            child.terminate()
            child.wait(20)
        except Failed as error:
            child.kill()
            raise Failed(f"{error}; {child.stderr.read().strip()[-400:]}") from error
        finally:
            children.stop(child)

    def _let_run(self, name, own_socket, child):
        end = time.monotonic() + 60
        while not os.path.exists(own_socket) and time.monotonic() < end:
            time.sleep(0.02)
        client = qemu.Qmp(own_socket)
        while client.command("query-status")["status"] == "inmigrate" and time.monotonic() < end:
            time.sleep(0.02)
        status = client.command("query-status")["status"]
        if status not in ("paused", "prelaunch") or self.guest.ticks(name):
            raise Failed(f"{name}: a guest that was paused came back {status}")
        client.command("cont")
        client.close()

    def _check_again(self, own_socket, child):
        """A restored guest can be snapshotted again, unless its RAM is mapped from the image: then it is said so."""
        again = f"{self.work}/again"
        try:
            self.vmsnap.save(again, qemu=own_socket)
            if self.case.get("mapped"):
                raise Failed("a guest whose RAM is mapped from a file on disk was saved")
            self.vmsnap.delete(again)
        except vmsnap.VmsnapError as error:
            if not self.case.get("mapped") or "is mapped from the file" not in str(error):
                raise Failed(f"saving the restored guest: {error}") from error
        if child.poll() is not None:
            raise Failed("the restored QEMU ended")

    def run(self):
        self.save()
        self.vmsnap.run("verify", self.image)
        sums = hash_folder(self.image)
        for turn in ("first", "second"):
            self.come_back(f"restore-{turn}", [self.tool, "restore", self.image, "--qemu", "--"])
        stream = f"{self.work}/stream"
        self.vmsnap.run("export", self.image, "--format", "qemu", "-o", stream)
        pause = ["-S"] if self.case.get("paused") else []
        self.come_back("incoming", [], ["-incoming", f"exec:cat {stream}", *pause])
        if hash_folder(self.image) != sums:
            raise Failed("the image has changed")
        return f"pause {self.saved['pause-us']:.0f} us, counted {self.before[-1][0]} before"


def prepare(case):
    if "hugetlb" in str(case):
        huge.reserve(300, free=128)  # the guest twice would not fit: one at a time


def main():
    if sys.argv[1:] == ["--list"]:
        print("\n".join(CASES))
        return 0
    build, name = sys.argv[1:]
    if not shutil.which(SEVEN):
        skip(f"{SEVEN} is not installed")
    children.end_by_signal()
    case = CASES[name]
    prepare(case)
    work = tempfile.mkdtemp(prefix="qemu-restore-", dir=os.environ.get("SNAP_TEST_DIR", build))
    try:
        print(f"{name}: {Trip(os.path.abspath(build), case, os.path.abspath(work)).run()}")
        return 0
    except cases.Skip as why:
        print(why)
        return cases.EXIT_SKIP
    except (Failed, vmsnap.VmsnapError, qemu.QmpError) as error:
        print(f"{name}: {error}")
        return 1
    finally:
        children.stop_all()
        shutil.rmtree(work, ignore_errors=True)
        if os.path.exists(f"/dev/shm/{os.path.basename(work)}"):
            os.unlink(f"/dev/shm/{os.path.basename(work)}")


sys.exit(main())
