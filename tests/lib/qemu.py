"""A QEMU with QMP sockets in a folder of its own, and a client small enough to read.

    with Qemu(["-m", "128M", …]) as qemu:
        qemu.qmp.command("query-status")
        qemu.sockets[0]             # nobody is connected to this one: for the program under test

QEMU serves one client a monitor, so there is one for the program under test and one for us. Events are collected as
they come, with QEMU's own time stamps.
"""
import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time

import children


class QmpError(Exception):
    """What the server answered instead of a result."""


class Qmp:
    def __init__(self, path, timeout=60):
        self.events = []
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(path)
        self._read()  # the greeting
        self.command("qmp_capabilities")

    def _read(self):
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 16)
            if not data:
                raise QmpError("the server is gone")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, **arguments):
        """Send a command; arguments with _ for -. Return: what it answered."""
        message = {"execute": name}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = self._read()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise QmpError(f"{name}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def take_events(self):
        """All events since the last call."""
        self.command("query-status")  # what was sent before the answer is read with it
        events, self.events = self.events, []
        return events

    def wait_event(self, name):
        """Until one of these has come since the last take_events()."""
        while not any(event["event"] == name for event in self.events):
            message = self._read()
            if "event" in message:
                self.events.append(message)

    def close(self):
        self._socket.close()


def event_seconds(event):
    return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6


def longest_pause_us(events):
    """Of STOP and RESUME events: the longest time from one to the other; None without such a pair."""
    longest, stopped = None, None
    for event in events:
        if event["event"] == "STOP":
            stopped = event_seconds(event)
        elif event["event"] == "RESUME" and stopped is not None:
            longest = max(longest or 0, (event_seconds(event) - stopped) * 1e6)
            stopped = None
    return longest


class Qemu(children.Child):
    """@arguments: of the command line, less the monitors. @program: which QEMU. @sockets: how many more to give."""

    def __init__(self, arguments, program="qemu-system-x86_64", sockets=1):
        self.dir = tempfile.mkdtemp(prefix="vmsnap-qemu-")
        self.sockets = [f"{self.dir}/qmp{i}" for i in range(sockets)]
        self.qmp = None
        own = f"{self.dir}/qmp"
        command = [program, *arguments]
        for path in [own, *self.sockets]:
            command += ["-qmp", f"unix:{path},server=on,wait=off"]
        self._log = open(f"{self.dir}/log", "w+b")
        super().__init__(command, stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self._wait_for(own)
            self.qmp = self._connect(own)
        except BaseException:
            self.close()
            raise

    def _wait_for(self, path, seconds=30):
        end = time.monotonic() + seconds
        while not os.path.exists(path):
            if self.process.poll() is not None or time.monotonic() > end:
                raise QmpError(f"QEMU did not start: {self.log()}")
            time.sleep(0.01)

    def _connect(self, path, seconds=30):
        """A socket has its name before it listens."""
        end = time.monotonic() + seconds
        while True:
            try:
                return Qmp(path)
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def log(self):
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()

    def close(self):
        if self.qmp:
            self.qmp.close()
        super().close()
        self._log.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def background_snapshot(qmp, command, timeout=120):
    """QEMU's own snapshot of a running guest, through `exec:COMMAND`. Return: query-migrate at its end.

    Whatever happens, the capability is off again afterwards and the guest runs.
    """
    def set_capability(state):
        capability = {"capability": "background-snapshot", "state": state}
        qmp.command("migrate-set-capabilities", capabilities=[capability])

    set_capability(True)
    try:
        qmp.command("migrate", uri=f"exec:{command}")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            state = qmp.command("query-migrate")
            if state.get("status") == "completed":
                return state
            if state.get("status") in ("failed", "cancelled"):
                raise QmpError(f"background-snapshot: {state.get('error-desc', state['status'])}")
            time.sleep(0.005)
        qmp.command("migrate_cancel")
        raise QmpError(f"background-snapshot: not done after {timeout} s")
    finally:
        set_capability(False)


def background_snapshot_to_file(qmp, path):
    """The same into a new file, with fsync. Return: how long that took, in seconds."""
    start = time.monotonic()
    background_snapshot(qmp, f"cat >{shlex.quote(path)}")
    with open(path, "rb") as f:
        os.fsync(f.fileno())
    return time.monotonic() - start
