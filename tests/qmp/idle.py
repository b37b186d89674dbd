#!/usr/bin/env python3
"""A helper that has nothing to do: with a process, a QEMU and a client it does not wake up, and is small.

    idle.py BUILD [--seconds 20]

Before that it has saved both, so that what a save needs must be gone again.
"""
import argparse
import contextlib
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import qmpd  # noqa: E402

MEMORY_MAX = 16 << 20
SETTLE_S = 40  # in which threads that had something to do have ended


def switches(server):
    """Thread id → how often it was put on a CPU."""
    found = {}
    for tid, name in server.threads().items():
        text = badday.read_proc(server.pid, f"task/{tid}/status")
        found[f"{name} {tid}"] = sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", text)))
    return found


def settle(server):
    """Until the threads of the pool have ended."""
    badday.wait_until(lambda: not any(name.startswith("pool") for name in server.threads().values()), SETTLE_S,
                      f"no thread waits for work: {server.threads()}")
    time.sleep(1)


def check_sleeps(server, seconds):
    before, begin = switches(server), time.monotonic()
    time.sleep(seconds)
    after, seconds = switches(server), time.monotonic() - begin
    woken = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name)}
    print(f"threads {sorted(after)}: {sum(woken.values())} wake-ups in {seconds:.0f} s", flush=True)
    assert not woken, f"wake-ups in {seconds:.0f} s: {woken}"
    assert after.keys() == before.keys(), (before, after)


def helper_without_work_sleeps_and_is_small(folder):
    os.mkdir(f"{folder}/qemu")
    with badday.ProcessUnderTest(OPTIONS.build) as process, contextlib.ExitStack() as stack, \
            qmpd.Vmsnapd(OPTIONS.build, folder) as server, server.client() as client:
        fresh = server.memory_bytes()
        client.add_process("process", process.pid)
        try:
            machine = stack.enter_context(badday.QemuUnderTest(OPTIONS.build, f"{folder}/qemu"))
            client.add_qemu("machine", machine.sockets[0])
        except cases.Skip as why:
            print(f"{why}; the process alone")
        for target in client.command("query-targets"):
            client.run_job("snapshot-save", target=target["id"], path=f"{folder}/{target['id']}-image")
        settle(server)
        memory = server.memory_bytes()
        print(f"Pss {memory / 1e6:.1f} MB, {fresh / 1e6:.1f} MB at the start")
        check_sleeps(server, OPTIONS.seconds)
        assert memory <= MEMORY_MAX, f"{memory} bytes"
        client.command("query-status", target="process")


if __name__ == "__main__":
    PARSER = argparse.ArgumentParser()
    PARSER.add_argument("build", type=os.path.abspath)
    PARSER.add_argument("--seconds", type=float, default=20)
    OPTIONS = PARSER.parse_args()
    cases.run(globals())
