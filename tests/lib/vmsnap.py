"""vmsnap, as a user runs it, and what it cost."""
import json
import os
import signal
import subprocess
import time

import children


class VmsnapError(Exception):
    pass


class Restored(children.Child):
    """A `vmsnap restore` that has got its QEMU to run; @result is what it said. close() ends both."""

    def __init__(self, command):
        self.result = None
        super().__init__(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            complaint = self.process.stderr.read().strip()
            self.close()
            raise VmsnapError(complaint or "vmsnap restore: no answer")
        self.result = json.loads(line)

    def close(self):
        children.end(self.process)  # which passes it on to QEMU
        if self.result and os.path.exists(f"/proc/{self.result['pid']}"):
            os.kill(self.result["pid"], signal.SIGKILL)


class Vmsnap:
    def __init__(self, build, cpu=None):
        self._command = [f"{build}/tools/vmsnap"]
        if cpu is not None:
            self._command = ["taskset", "-c", str(cpu), *self._command]

    def run(self, *arguments):
        """Run it with --json. Return: its object, plus wall-s and peak-rss-bytes."""
        start = time.monotonic()
        child = children.start([*self._command, "--json", *map(str, arguments)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
        output, complaint = child.stdout.read(), child.stderr.read()
        _pid, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        children.stop(child)
        if child.returncode != 0:
            raise VmsnapError(complaint.strip() or f"vmsnap {arguments[0]}: status {child.returncode}")
        result = json.loads(output) if output.strip() else {}
        result["wall-s"] = time.monotonic() - start
        result["peak-rss-bytes"] = usage.ru_maxrss * 1024
        return result

    def save(self, image, *arguments, qemu=None, pid=None):
        target = ["--qemu", qemu] if qemu else ["--pid", pid]
        return self.run("save", *target, image, *arguments)

    def restore(self, image, qemu_command):
        """Start QEMU-COMMAND from the image. Return: a Restored."""
        return Restored([*self._command, "--json", "restore", image, "--qemu", "--", *qemu_command])

    def delete(self, image):
        self.run("delete", image)
