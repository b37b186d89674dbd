#!/usr/bin/env python3
"""QEMU's own Python client (python/qemu/qmp of its source) drives a snapshot of a running QEMU through vmsnapd.

    qemu-client.py BUILD [WORD...]      only the cases whose name holds one of these words

SNAP_CACHE is where the client is kept (default: BUILD/cache). Exit status 0, 1, or 77 when it cannot be had.
"""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import linux_guest  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
WALK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "qemu_client_walk.py")


def walk(kind, folder):
    """By a process of its own, whose module qemu is not tests/lib/qemu.py."""
    python = linux_guest.fetch("get-qemu-python.sh", f"{os.environ.get('SNAP_CACHE', f'{BUILD}/cache')}/qemu-python")
    image = f"{folder}/image"
    with badday.QemuUnderTest(BUILD, folder) as guest, qmpd.Vmsnapd(BUILD, folder) as server:
        result = subprocess.run([sys.executable, WALK, kind, server.path, guest.sockets[0], image], timeout=90,
                                stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": python})
        assert result.returncode == 0, f"status {result.returncode}"
        seen = json.loads(result.stdout)
        assert seen["states"] == ["created", "running", "waiting", "pending", "concluded"], seen["states"]
        statistics = seen["statistics"]
        assert "error" not in statistics and statistics["result"]["image"] == image, statistics
        print(f"stopped for {statistics['result']['pause-us']:.0f} us")
        guest.check_released()
        guest.check_no_errors()
        badday.check_tool(BUILD, "tests/guest/seqcheck", "--multiboot", f"{image}/ram/ram.img")
        badday.check_complete(guest, image)


def snapshot_through_qemus_client_is_complete(folder):
    walk("asyncio", folder)


def snapshot_through_qemus_old_client_is_complete(folder):
    walk("legacy", folder)


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
