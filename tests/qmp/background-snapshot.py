#!/usr/bin/env python3
"""QEMU's own way to a background snapshot, spoken to vmsnapd: the capability, migrate, events, query-migrate.

    background-snapshot.py BUILD [WORD...]      only the cases whose name holds one of these words

A stock QEMU loads the stream with -incoming, and its guest goes on from there without finding an error. SNAP_CACHE is
where the Linux guest's kernel is kept (default: BUILD/cache).
"""
import os
import shlex
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import guests  # noqa: E402
import linux_guest  # noqa: E402
import qemu  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
SIZE = "64M"
MIB = 1 << 20
CANCEL_S = 3
# As QEMU 7.2 has them.
COMPLETED = ["setup", "active", "STOP", "RESUME", "completed"]
RAM = {"transferred", "remaining", "total", "duplicate", "skipped", "normal", "normal-bytes", "dirty-pages-rate", "mbps",
       "dirty-sync-count", "postcopy-requests", "page-size", "multifd-bytes", "pages-per-second", "precopy-bytes",
       "downtime-bytes", "postcopy-bytes", "dirty-sync-missed-zero-copy"}


class Helper(qmpd.Vmsnapd):
    """A helper with that QEMU as its only target, ready for background snapshots; @client speaks to it."""

    def __init__(self, folder, guest):
        os.makedirs(f"{folder}/helper", exist_ok=True)
        super().__init__(BUILD, f"{folder}/helper")
        self.client = self.client_of(guest)

    def client_of(self, guest):
        client = self.client()
        client.add_qemu("g", guest.sockets[0])
        self.switch_on(client)
        return client

    @staticmethod
    def switch_on(client):
        client.command("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": True} for name in ("events", "background-snapshot")])

    def follow(self, *last):
        """The events from now until a migration status among LAST: their names, or statuses."""
        seen = []
        while not seen or seen[-1] not in last:
            event = self.client.events.pop(0) if self.client.events else self.client.read()
            seen.append(event["data"]["status"] if event["event"] == "MIGRATION" else event["event"])
        return seen

    def migrate(self, uri, fd=None):
        if fd is not None:
            self.client.command("getfd", fdname="stream", fds=[fd])
        self.client.command("migrate", uri=uri)

    def check_nothing_left(self, guest):
        """No image that was only a step, no child, no hold on the guest."""
        assert sorted(os.listdir(self.folder)) == ["qmp", "vmsnapd.log"], os.listdir(self.folder)
        self.client.command("target-del", id="g")  # with its guard, which may be a child of any thread till then
        assert not children_of(self.pid), children_of(self.pid)
        guest.check_released()


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def check_progress(client):
    """Until the migration has ended: query-migrate, and what must hold of it. Return: the last one."""
    last = 0
    while True:
        state = client.command("query-migrate")
        if "ram" in state:
            ram = state["ram"]
            assert set(ram) == RAM, set(ram) ^ RAM
            assert ram["transferred"] >= last and 0 <= ram["remaining"] <= ram["total"], ram
            last = ram["transferred"]
        if state["status"] not in ("setup", "active"):
            return state
        time.sleep(0.02)


# ---- the stream is good --------------------------------------------------------------------------------------

def load(folder, stream):
    """A stock QEMU goes on from STREAM: it writes on, and finds no error in its memory."""
    serial = guests.Serial(f"{folder}/restored")
    arguments = [*guests.multiboot_arguments(BUILD, serial.path, size=SIZE, words=f"rate={badday.RATE}"),
                 "-incoming", f"exec:cat {shlex.quote(stream)}"]
    with qemu.Qemu(arguments) as restored:
        reports = serial.wait_reports(3)
        assert all(report["errors"] == 0 for report in reports), reports
        assert reports[-1]["N"] > reports[0]["N"], reports
        assert restored.qmp.command("query-status")["status"] == "running", restored.log()


def snapshot_is_loaded(folder, uri, fd=None):
    stream = f"{folder}/stream"
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        for turn in range(1 if fd is None else 2):
            helper.migrate(uri, fd)
            state = check_progress(helper.client)
            assert state["status"] == "completed", state
            seen = helper.follow("completed")
            assert seen == COMPLETED, seen
            assert {"total-time", "setup-time", "downtime"} <= set(state), state
            ram = state["ram"]
            assert ram["remaining"] == 0 and ram["total"] >= 64 * MIB, ram
            assert ram["transferred"] == os.path.getsize(stream) - (0 if fd is None else turn * ram["transferred"]), ram
            if turn == 0:
                load(folder, stream)
        guest.check_no_errors()
        helper.check_nothing_left(guest)


def snapshot_through_exec_is_loaded_by_qemu(folder):
    snapshot_is_loaded(folder, f"exec:cat >{folder}/stream")


def snapshot_to_a_file_is_loaded_by_qemu(folder):
    snapshot_is_loaded(folder, f"file:{folder}/stream")


def snapshot_to_a_descriptor_is_loaded_by_qemu(folder):
    with open(f"{folder}/stream", "wb") as file:
        snapshot_is_loaded(folder, "fd:stream", file.fileno())


def snapshot_of_linux_counts_on_in_qemu(folder):
    guest = linux_guest.Linux({}, os.environ.get("SNAP_CACHE", f"{BUILD}/cache"), folder)
    arguments = guest.arguments
    with qemu.Qemu([*arguments, *guest.serial("source")]) as source, Helper(folder, source) as helper:
        guest.wait_ticks("source", 2, "at the start", source.process, seconds=120)
        helper.migrate(f"exec:gzip -1 >{folder}/stream.gz")
        assert helper.follow("completed", "failed") == COMPLETED
        before = guest.ticks("source")
        guest.wait_ticks("source", len(before) + 2, "after the snapshot", source.process)
        helper.client.command("target-del", id="g")
    with qemu.Qemu([*arguments, *guest.serial("restored"), "-incoming", f"exec:gzip -d <{folder}/stream.gz"]) as restored:
        linux_guest.check_counts_on(before, guest.wait_ticks("restored", 2, "restored", restored.process), "restored")


# ---- it ends otherwise ---------------------------------------------------------------------------------------

def check_works(folder, helper, guest):
    """After whatever happened the next one is complete."""
    helper.client.events = []
    helper.migrate(f"file:{folder}/next")
    assert helper.follow("completed", "failed") == COMPLETED
    helper.check_nothing_left(guest)
    guest.check_no_errors()


def check_cancelled(helper):
    """In mid-stream, where the reader has what it wants."""
    assert helper.follow("RESUME") == COMPLETED[:4]
    time.sleep(0.5)
    state = helper.client.command("query-migrate")
    assert state["status"] == "active" and state["ram"]["remaining"] > 0, state
    helper.client.refused("migrate", "There's a migration process in progress", uri="exec:cat >/dev/null")
    helper.client.refused("snapshot-save", "busy", job_id="j", path="image")
    helper.client.refused("target-del", "busy", id="g")
    begin = time.monotonic()
    helper.client.command("migrate_cancel")
    assert helper.follow("cancelled") == ["cancelling", "cancelled"]
    assert time.monotonic() - begin < CANCEL_S, f"took {time.monotonic() - begin:.1f} s"
    assert helper.client.command("query-migrate") == {"status": "cancelled"}


def cancelled_with_a_command_that_does_not_read_ends_at_once(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        helper.migrate("exec:sleep 1000")
        check_cancelled(helper)
        check_works(folder, helper, guest)


def cancelled_with_a_pipe_that_nobody_reads_ends_at_once(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        reader, writer = os.pipe()
        helper.migrate("fd:stream", writer)
        os.close(writer)
        check_cancelled(helper)
        while os.read(reader, MIB):  # until nobody has the other end any more
            pass
        os.close(reader)
        check_works(folder, helper, guest)


def is_sent(client):
    ram = client.command("query-migrate").get("ram", {"total": 0})
    return ram["total"] > 0 and ram["remaining"] == 0


def cancelled_with_a_command_that_does_not_end_ends_at_once(folder):
    """It has read everything; what it does with that is not known to be done."""
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        helper.migrate("exec:cat >/dev/null; sleep 1000")
        badday.wait_until(lambda: is_sent(helper.client), 20, "all is sent")
        time.sleep(0.3)
        helper.client.events = []
        helper.client.command("migrate_cancel")
        assert helper.follow("cancelled", "completed", "failed") == ["cancelling", "cancelled"]
        check_works(folder, helper, guest)


def cancelled_at_any_time_leaves_nothing(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        for number in range(12):
            helper.migrate(f"file:{folder}/stream")
            time.sleep(number * 0.05)
            helper.client.command("migrate_cancel")
            last = helper.follow("cancelled", "completed")[-1]
            assert os.path.exists(f"{folder}/stream") == (last == "completed"), (number, last)
            if last == "completed":
                os.unlink(f"{folder}/stream")
        check_works(folder, helper, guest)


def fails_with(helper, uri, *words, setup=True):
    """One that does not come to a good end. The guest runs on, whenever that is noticed."""
    helper.client.events = []
    helper.migrate(uri)
    seen = helper.follow("failed", "completed")
    assert seen in (["setup", "active", "failed"], COMPLETED[:-1] + ["failed"]), seen
    state = helper.client.command("query-migrate")
    assert state["status"] == "failed" and "ram" not in state, state
    print(f"{uri}: {state['error-desc']}", flush=True)
    for word in words:
        assert word in state["error-desc"], state


def command_that_fails_fails_the_snapshot(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        fails_with(helper, "exec:exit 3")
        fails_with(helper, "exec:cat >/dev/null; exit 3", "status 3")
        fails_with(helper, "exec:head -c 100000 >/dev/null")
        fails_with(helper, "exec:kill -9 $$")
        fails_with(helper, f"exec:cat 2>/dev/null >{folder}/nowhere/stream")
        check_works(folder, helper, guest)


def file_that_cannot_be_written_fails_the_snapshot(folder):
    if os.geteuid() != 0:
        raise cases.Skip("skip: mounting a small file system needs root")
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper, \
            badday.Mounted(f"{folder}/small", "tmpfs", "size=16m") as small:
        helper.client.refused("migrate", "Could not open", f"{folder}/nowhere/stream", uri=f"file:{folder}/nowhere/stream")
        fails_with(helper, f"file:{small}/stream", "space left")
        assert os.listdir(small) == [], os.listdir(small)
        check_works(folder, helper, guest)


def guest_killed_in_mid_snapshot_fails_it(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        helper.client.command("migrate-set-parameters", max_bandwidth=8 * MIB)
        helper.migrate(f"file:{folder}/stream")
        assert helper.follow("RESUME") == COMPLETED[:4]
        guest.process.kill()
        guest.process.wait()
        seen = helper.follow("failed", "completed")
        assert sorted(seen) == ["TARGET_GONE", "failed"] or seen == ["failed"], seen
        assert not os.path.exists(f"{folder}/stream")
        helper.client.refused("migrate", "has ended", uri=f"file:{folder}/stream")


def helper_that_ends_in_mid_snapshot_lets_the_guest_go(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        helper.migrate("exec:sleep 1000")
        assert helper.follow("RESUME") == COMPLETED[:4]
        helper.client.command("quit")
        helper.wait_end(5)
        guest.check_released()
        guest.check_no_errors()
        assert os.listdir(helper.folder) == ["vmsnapd.log"], os.listdir(helper.folder)


# ---- whom it may be taken of ---------------------------------------------------------------------------------

def stopped_guest_stays_stopped(folder):
    with badday.QemuUnderTest(BUILD, folder, size=SIZE) as guest, Helper(folder, guest) as helper:
        helper.client.command("stop")
        helper.client.events = []
        helper.migrate(f"file:{folder}/stream")
        assert helper.follow("completed", "failed") == ["setup", "active", "completed"]
        assert helper.client.command("query-status")["status"] == "paused"
        load(folder, f"{folder}/stream")
        helper.client.command("cont")
        helper.check_nothing_left(guest)
        guest.check_no_errors()


def process_or_no_capability_is_refused(folder):
    with badday.ProcessUnderTest(BUILD, size="4M") as guest, qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.add_process("g", guest.pid)
        client.refused("migrate", "background-snapshot", uri="exec:true")
        Helper.switch_on(client)
        client.refused("migrate", "no QEMU", uri="exec:true")
        assert client.command("query-migrate") == {} and not client.events


if __name__ == "__main__":
    children.end_by_signal()
    cases.run(globals(), sys.argv[2:])
