#!/usr/bin/env python3
"""What cannot be saved is refused, by name, before the guest is touched; and who is no QEMU is told so in time.

qemu-refusals.py BUILD

Each case: one line on stderr that holds certain words, exit status 1, no image, and the guest neither stopped nor hurt.
Exit status 0, 1, or 77 when there is no QEMU.
"""
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import children  # noqa: E402
import qemu  # noqa: E402

PLAIN = ["-accel", "tcg", "-m", "64M", "-nodefaults", "-display", "none"]
SHARED = "memory-backend-file,id=ram,size=64M,share=on,mem-path="
failures = []


class Test:
    def __init__(self, build, work):
        self.tool = f"{build}/tools/vmsnap"
        self.work = work

    def check(self, name, condition, detail=""):
        print(f"{'ok' if condition else 'FAILED'}: {name} {'' if condition else detail}", flush=True)
        if not condition:
            failures.append(name)

    def save(self, name, target, words, *options, seconds=60):
        """One save that must fail with one line holding @words."""
        image = f"{self.work}/image"
        start = time.monotonic()
        result = subprocess.run([self.tool, "save", "--qemu", target, image, *options], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
        took = time.monotonic() - start
        line = result.stderr.strip()
        self.check(name, result.returncode == 1 and "\n" not in line and all(word in line for word in words),
                   f"status {result.returncode}: {line}")
        self.check(f"{name}: in time", took < seconds, f"{took:.1f} s")
        self.check(f"{name}: no image", not os.path.exists(image))
        shutil.rmtree(image, ignore_errors=True)

    def refused(self, name, arguments, words, *options, before=None, status="running"):
        """A QEMU that may not be saved: it is not stopped for a moment, and is there afterwards."""
        with qemu.Qemu([*PLAIN, *arguments]) as guest:
            if before:
                before(guest)
            guest.qmp.take_events()
            self.save(name, guest.sockets[0], words, *options)
            events = [event["event"] for event in guest.qmp.take_events()]
            self.check(f"{name}: not touched", "STOP" not in events and guest.process.poll() is None, str(events))
            now = guest.qmp.command("query-status")["status"]
            self.check(f"{name}: runs", now == status, now)

    # ---- guests ----

    def guests(self):
        disk = f"{self.work}/disk.raw"
        with open(disk, "wb") as f:
            f.truncate(1 << 20)
        self.refused("device that cannot be migrated", ["-drive", f"if=none,id=d,file={disk},format=raw,readonly=on",
                                                        "-device", "nvme,drive=d,serial=1"], ["nvme"])
        self.refused("device plugged in later", [], ["nvme"], "--disks", "ignore", before=lambda guest: [
            guest.qmp.command("blockdev-add", driver="raw", node_name="n", file={"driver": "file", "filename": disk}),
            guest.qmp.command("device_add", driver="nvme", drive="n", serial="1")])
        self.refused("disk that can be written", ["-drive", f"if=virtio,id=mydisk,file={disk},format=raw"],
                     ["mydisk", disk, "--disks ignore"])
        for capability in ("x-ignore-shared", "validate-uuid", "postcopy-ram", "multifd"):
            self.refused(f"capability {capability}", [], [capability], before=lambda guest, c=capability: guest.qmp.command(
                "migrate-set-capabilities", capabilities=[{"capability": c, "state": True}]))
        self.refused("migration under way", [], ["under way"], before=lambda guest: [
            guest.qmp.command("migrate-set-parameters", max_bandwidth=1 << 12),
            guest.qmp.command("migrate", uri="exec:sleep 60")])
        self.refused("RAM in a file on disk", ["-object", f"{SHARED}{self.work}/ram", "-machine", "memory-backend=ram"],
                     ["ram", f"{self.work}/ram"])
        self.refused("guest that waits for a migration", ["-incoming", "defer"], ["inmigrate"], status="inmigrate")

    def foreign_writer(self):
        path = f"/dev/shm/{os.path.basename(self.work)}"
        try:
            with qemu.Qemu([*PLAIN, "-object", SHARED + path, "-machine", "memory-backend=ram"]) as guest:
                with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0):
                    self.save("RAM that another process writes", guest.sockets[0], ["ram", f"process {os.getpid()}"])
        finally:
            if os.path.exists(path):
                os.unlink(path)

    def disks_that_do_no_harm(self):
        disk = f"{self.work}/disk.raw"
        image = f"{self.work}/image"
        for name, options, extra in (("disk that is read-only", ",readonly=on", []),
                                     ("disk that is to be ignored", "", ["--disks", "ignore"])):
            with qemu.Qemu([*PLAIN, "-drive", f"if=virtio,file={disk},format=raw{options}"]) as guest:
                result = subprocess.run([self.tool, "save", "--qemu", guest.sockets[0], image, *extra],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
                self.check(name, result.returncode == 0, result.stderr)
                shutil.rmtree(image, ignore_errors=True)

    def socket_made_by_another(self):
        """As a manager does: it listens, QEMU answers, and the kernel calls the manager the peer."""
        path, image = f"{self.work}/handed", f"{self.work}/image"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            monitor = ["-chardev", f"socket,id=c,fd={listener.fileno()},server=on,wait=off", "-mon",
                       "chardev=c,mode=control"]
            guest = children.start(["qemu-system-x86_64", *PLAIN, *monitor], pass_fds=[listener.fileno()])
            result = subprocess.run([self.tool, "save", "--qemu", path, image], stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True, timeout=120)
            self.check("socket that another process made", result.returncode == 0, result.stderr)
            children.stop(guest)
        shutil.rmtree(image, ignore_errors=True)

    # ---- sockets ----

    def sockets(self):
        self.save("no such socket", f"{self.work}/nowhere", ["nowhere"])
        with open(f"{self.work}/file", "w"):
            self.save("socket that is a file", f"{self.work}/file", ["file"])
        with qemu.Qemu(PLAIN) as guest:
            client = qemu.Qmp(guest.sockets[0])
            self.save("QEMU with another client", guest.sockets[0], ["one client at a time"], seconds=5)
            client.close()
        self._server("server that is silent", b"", ["no greeting"])
        self._server("server that speaks garbage", b"SSH-2.0-OpenSSH_9.2\r\n" * 100, ["does not speak QMP"])
        self._server("server that greets and goes silent", b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro"'
                     b': 0}}, "capabilities": []}}\r\n', ["does not answer"])
        self._server("server that hangs up", None, ["closed the connection"])

    def _server(self, name, says, words):
        path = f"{self.work}/server"
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        held = []

        def serve():
            connection, _ = server.accept()
            if says is None:
                connection.close()
            else:
                connection.sendall(says)
                held.append(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        self.save(name, path, words, seconds=5)
        thread.join()
        for connection in held:
            connection.close()
        server.close()
        os.unlink(path)


def main():
    if not shutil.which("qemu-system-x86_64"):
        print("skip: qemu-system-x86_64 is not installed")
        return 77
    build = os.path.abspath(sys.argv[1])
    children.end_by_signal()
    work = tempfile.mkdtemp(prefix="qemu-refusals-", dir=os.environ.get("SNAP_TEST_DIR", build))
    try:
        test = Test(build, work)
        test.guests()
        test.foreign_writer()
        test.disks_that_do_no_harm()
        test.socket_made_by_another()
        test.sockets()
    finally:
        children.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    return 1 if failures else 0


sys.exit(main())
