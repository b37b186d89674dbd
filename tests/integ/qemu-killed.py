#!/usr/bin/env python3
"""vmsnap killed with -9 while it saves a QEMU, at moments spread over the whole of it.

qemu-killed.py BUILD [TIMES]

After each, within a second: the guest runs, it writes its memory (nothing is protected any more), its QMP socket takes
the next client, and QEMU holds no descriptor of ours. Exit status 0, 1, or 77 when there is no QEMU.
"""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import children  # noqa: E402
import qemu  # noqa: E402

ARGUMENTS = ["-accel", "tcg", "-m", "64M", "-nodefaults", "-display", "none", "-object",
             "memory-backend-memfd,id=ram,size=64M,share=on", "-machine", "memory-backend=ram"]


def descriptors(pid):
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            pass


def protected_mappings(pid):
    """Mappings that a userfaultfd has registered for write protection."""
    with open(f"/proc/{pid}/smaps") as f:
        return sum(" uw" in line for line in f if line.startswith("VmFlags:"))


def what_is_wrong(guest):
    status = guest.qmp.command("query-status")["status"]
    if status != "running":
        return f"the guest is {status}"
    if protected_mappings(guest.pid):
        return "memory of the guest is registered with a userfaultfd"
    # An empty memfd may stay in QEMU's set until the next client; a userfaultfd may not.
    if any("userfaultfd" in target for target in descriptors(guest.pid)):
        return "a userfaultfd is left in QEMU"
    return None


def settle(guest, seconds=1.0):
    """What is still wrong after a second; None when all is well."""
    end = time.monotonic() + seconds
    while (wrong := what_is_wrong(guest)) and time.monotonic() < end:
        time.sleep(0.01)
    return wrong


def main():
    if not shutil.which("qemu-system-x86_64"):
        print("skip: qemu-system-x86_64 is not installed")
        return 77
    build = os.path.abspath(sys.argv[1])
    times = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    children.end_by_signal()
    work = tempfile.mkdtemp(prefix="qemu-killed-", dir=os.environ.get("SNAP_TEST_DIR", build))
    seed = int(os.environ.get("SNAP_TEST_SEED", time.time_ns()))
    random.seed(seed)
    command = [f"{build}/tools/vmsnap", "save", "--qemu"]
    try:
        with qemu.Qemu(ARGUMENTS) as guest:
            time.sleep(1)
            start = time.monotonic()
            subprocess.run([*command, guest.sockets[0], f"{work}/whole"], check=True, stdout=subprocess.DEVNULL)
            whole = time.monotonic() - start
            ended = 0
            for turn in range(times):
                saver = children.start([*command, guest.sockets[0], f"{work}/{turn}"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
                delay = random.uniform(0, whole)
                time.sleep(delay)
                ended += saver.poll() is not None
                children.stop(saver)
                wrong = settle(guest)
                if wrong:
                    print(f"killed after {delay * 1e3:.1f} ms (turn {turn}, seed {seed}): {wrong}")
                    return 1
                client = qemu.Qmp(guest.sockets[0], timeout=5)
                client.close()
            print(f"killed {times - ended} times within {whole * 1e3:.0f} ms: the guest ran on, each time")
        return 0
    finally:
        children.stop_all()
        shutil.rmtree(work, ignore_errors=True)


sys.exit(main())
