"""vmsnap, as a user runs it, and what it cost."""
import json
import os
import subprocess
import time

import children


class VmsnapError(Exception):
    pass


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

    def delete(self, image):
        self.run("delete", image)
