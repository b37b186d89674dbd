#!/usr/bin/env python3
"""The commands of migration, as their clients see them: answers, events, run states, refusals.

migrate-commands.py BUILD [WORD...]      only the cases whose name holds one of these words

The VMMs are thread-vm (tests/migrate), whose guest is threads that check what they write over. What a QEMU has as well is
compared with one; moves as such, and what goes wrong on the way, are tests/migrate; replication is replicate-commands.py.
"""
import functools
import json
import os
import shutil
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import migrate  # noqa: E402
import qmpd  # noqa: E402
import two_vmms  # noqa: E402
from two_vmms import END_S, MIB, RAM, SLOW, check_fields, event_words, follow, follow_passes, switch_on  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
FEW = 512  # pages
FEW_BYTES = FEW * os.sysconf("SC_PAGESIZE")
SILENCE_MS = 600000
Two = functools.partial(two_vmms.Two, BUILD)


# ---- a move --------------------------------------------------------------------------------------------------

def move_tells_each_status_once_and_in_order(folder):
    with Two(folder) as two:
        two.source.migrate(two.uri)
        there = follow(two.destination, "completed", "failed")
        here = follow(two.source, "completed", "failed")
        assert here == ["setup", "active", "STOP", "device", "completed"], here
        assert there[-2:] == ["RESUME", "completed"] and "active" in there, there
        assert check_fields(two.source.migration())["ram"]["remaining"] == 0
        two.check_moved()


def move_shows_its_progress_as_qemu_does(folder):
    with Two(folder) as two:
        last = check_fields(two.slowly())["ram"]
        deadline = time.monotonic() + END_S
        while last["transferred"] < MIB:
            ram = check_fields(two.source.migration())["ram"]
            assert ram["transferred"] >= last["transferred"], (ram, last)
            assert time.monotonic() < deadline, ram
            last = ram
        assert last["dirty-sync-count"] == 1, last
        badday.wait_until(lambda: two.destination.migration()["ram"]["transferred"] > MIB / 2, END_S, "half of it is there")
        there = two.destination.wait_status("active")
        assert set(there["ram"]) == RAM and there["ram"]["total"] == 64 * MIB, there
        assert there["socket-address"] == [{"type": "unix", "path": two.uri.split(":")[1]}], there
        two.quickly()
        ended = check_fields(two.source.wait_status("completed"))
        assert ended["ram"]["precopy-bytes"] + ended["ram"]["downtime-bytes"] == ended["ram"]["transferred"], ended
        assert ended["total-time"] >= ended["downtime"] > 0 and ended["ram"]["mbps"] > 0, ended
        two.check_moved()


def rounds_are_counted_by_events(folder):
    """Of a guest that writes to the same few pages, so that a round is short, and what is left soon sent."""
    with Two(folder, populate=FEW, rate=2000) as two:
        two.source.set_parameters(max_bandwidth=FEW_BYTES, downtime_limit=1)
        two.source.migrate(two.uri)
        passes = follow_passes(two.source, 3)
        assert passes[0] == 1 and passes == sorted(set(passes)), passes
        assert two.source.migration()["ram"]["dirty-sync-count"] >= passes[-1], passes
        two.source.set_parameters(max_bandwidth=0, downtime_limit=2000)
        two.check_moved()


def events_are_sent_where_they_are_wanted(folder):
    """But a destination tells that it listens in any case, as QEMU's does."""
    journal = migrate.Journal(folder)
    source, destination = migrate.pair(BUILD, folder, journal, uri="defer", rate=2000)
    with source, destination:
        destination.command("migrate-incoming", uri=f"unix:{folder}/way-in")
        source.migrate(f"unix:{folder}/way-in")
        source.wait_status("completed")
        destination.wait_status("completed")
        assert [event_words(event) for event in source.qmp.events] == ["STOP"], source.qmp.events
        assert [event_words(event) for event in destination.qmp.events] == ["setup", "RESUME"], destination.qmp.events


def stopped_guest_arrives_stopped_without_events_of_it(folder):
    with Two(folder) as two:
        two.source.command("stop")
        assert follow(two.source, "STOP") == ["STOP"]
        two.source.migrate(two.uri)
        here, there = follow(two.source, "completed", "failed"), follow(two.destination, "completed", "failed")
        assert here == ["setup", "active", "device", "completed"] and "RESUME" not in there, (here, there)
        assert two.destination.run_state() == "paused"
        two.destination.command("cont")
        assert follow(two.destination, "RESUME") == ["RESUME"]
        two.destination.check_guest()


def channels_and_compression_are_as_set(folder):
    with Two(folder) as two:
        switch_on(two.source, "multifd")
        two.source.set_parameters(multifd_channels=4, multifd_compression="zstd", multifd_zstd_level=3)
        two.source.migrate(two.uri)
        ram = two.source.wait_status("completed")["ram"]
        assert 0 < ram["multifd-bytes"] < ram["transferred"] < ram["normal-bytes"], ram
        two.check_moved()


def connection_that_was_passed_is_used_once(folder):
    with Two(folder) as two:
        with socket.socket(socket.AF_UNIX) as way:
            way.connect(two.uri.split(":")[1])
            two.source.qmp.command("getfd", fdname="way", fds=[way.fileno()])
        two.source.migrate("fd:way")
        two.check_moved()
        two.source.qmp.refused("closefd", "not found", fdname="way")


RELAY = """
import os, socket, sys, threading
path, listens = sys.argv[1], sys.argv[2] == "listen"
peer = socket.socket(socket.AF_UNIX)
if listens:
    peer.bind(path + "~")
    peer.listen()
    os.rename(path + "~", path)
    peer = peer.accept()[0]
else:
    peer.connect(path)
def pump(read, write, end):
    while data := read(1 << 16):
        write(data)
    end()
out = sys.stdout.buffer
back = threading.Thread(target=pump, args=(peer.recv, lambda data: (out.write(data), out.flush()), out.close), daemon=True)
back.start()
pump(sys.stdin.buffer.raw.read, peer.sendall, lambda: peer.shutdown(socket.SHUT_WR))
back.join()
"""


def guest_moves_through_a_command_at_each_end(folder):
    """As it would through ssh."""
    with open(f"{folder}/relay.py", "w", encoding="ascii") as file:
        file.write(RELAY)
    with Two(folder, defer=True) as two:
        command = f"exec:exec {sys.executable} {folder}/relay.py {folder}/between"
        two.destination.command("migrate-incoming", uri=f"{command} listen")
        badday.wait_until(lambda: os.path.exists(f"{folder}/between"), END_S, "the command listens")
        two.source.migrate(f"{command} connect")
        two.check_moved()


def guest_moves_by_way_of_a_file(folder):
    """One-way: the source lets go of it when the file is complete, and it goes on whenever that is read."""
    with Two(folder, defer=True) as two:
        two.source.migrate(f"file:{folder}/stream")
        two.source.wait_status("completed")
        assert two.source.run_state() == "postmigrate", two.source.run_state()
        two.destination.command("migrate-incoming", uri=f"file:{folder}/stream")
        two.check_moved()


# ---- it ends otherwise, or waits -----------------------------------------------------------------------------

def cancelled_move_leaves_the_guest_where_it_was(folder):
    with Two(folder, defer=True) as two:
        two.destination.command("migrate-incoming", uri=two.uri)
        two.slowly()
        two.source.command("migrate_cancel")
        seen = follow(two.source, "cancelled", "failed", "completed")
        assert seen == ["setup", "active", "cancelling", "cancelled"], seen
        check_fields(two.source.migration())
        two.check_stayed()
        two.source.command("migrate_cancel")
        # The destination has not touched the guest: it may try again.
        assert follow(two.destination, "failed")[-1] == "failed"
        assert "cancelled" in two.destination.migration()["error-desc"], two.destination.migration()
        assert two.destination.run_state() == "inmigrate"
        two.quickly()
        two.destination.command("migrate-incoming", uri=two.uri)
        two.source.migrate(two.uri)
        two.check_moved()


def switchover_waits_to_be_continued(folder):
    with Two(folder) as two:
        switch_on(two.source, "pause-before-switchover")
        two.source.migrate(two.uri)
        seen = follow(two.source, "pre-switchover", "completed")
        assert seen == ["setup", "active", "STOP", "pre-switchover"], seen
        check_fields(two.source.migration())
        assert two.source.run_state() == "finish-migrate" and two.destination.run_state() == "inmigrate"
        two.source.qmp.refused("cont", "Migration is not finalized yet")
        two.source.qmp.refused("migrate-continue", "Migration not in expected state: pre-switchover", state="device")
        two.source.command("migrate-continue", state="pre-switchover")
        seen = follow(two.source, "completed", "failed")
        assert seen == ["device", "completed"], seen
        two.check_moved()
        two.source.qmp.refused("migrate-continue", "Migration not in expected state: completed", state="pre-switchover")


def switchover_that_is_cancelled_lets_the_guest_go(folder):
    with Two(folder, defer=True) as two:
        two.destination.command("migrate-incoming", uri=two.uri)
        switch_on(two.source, "pause-before-switchover")
        two.source.migrate(two.uri)
        follow(two.source, "pre-switchover")
        two.source.command("migrate_cancel")
        seen = follow(two.source, "RESUME")
        assert seen == ["cancelling", "cancelled", "RESUME"], seen
        two.check_stayed()


def limits_hold_at_once(folder):
    """As they are set it would take a minute, and when they are lifted it is over long before that."""
    with Two(folder) as two:
        two.slowly()
        begin, before = time.monotonic(), two.source.migration()["ram"]["transferred"]
        time.sleep(0.5)
        sent = two.source.migration()["ram"]["transferred"] - before
        assert sent < SLOW * (time.monotonic() - begin) + MIB, sent
        two.quickly()
        two.source.wait_status("completed", seconds=END_S)
        two.check_moved()


def guest_that_writes_too_much_is_throttled(folder):
    with Two(folder, populate=FEW, rate=0) as two:
        switch_on(two.source, "auto-converge")
        two.source.set_parameters(max_bandwidth=FEW_BYTES, downtime_limit=1, cpu_throttle_initial=50)
        two.source.migrate(two.uri)
        badday.wait_until(lambda: two.source.migration().get("cpu-throttle-percentage", 0) >= 50, END_S, "it is throttled")
        check_fields(two.source.migration(), ["cpu-throttle-percentage"])
        two.source.command("migrate_cancel")
        two.source.wait_status("cancelled")
        two.source.check_guest()
        two.check_given_up()


def dirty_limit_is_of_the_whole_guest(folder):
    with Two(folder) as two:
        two.source.qmp.refused("set-vcpu-dirty-limit", "'cpu-index'", cpu_index=0, dirty_rate=1)
        two.source.command("set-vcpu-dirty-limit", dirty_rate=5)
        limit = {"cpu-index": 0, "limit-rate": 5, "current-rate": 0}
        assert two.source.command("query-vcpu-dirty-limit") == [limit]
        two.source.command("cancel-vcpu-dirty-limit")
        assert two.source.command("query-vcpu-dirty-limit") == []
        two.source.command("set-vcpu-dirty-limit", dirty_rate=5)
        two.source.migrate(two.uri)
        two.check_moved()


# ---- post-copy -----------------------------------------------------------------------------------------------

class TwoInPostcopy(two_vmms.Two):
    """The guest asks for little by itself, and nobody reads all of it before it runs."""

    def __init__(self, folder):
        super().__init__(BUILD, folder, rate=20, verify=False)


def start_postcopy(two):
    two.slowly("postcopy-ram")
    two.source.set_parameters(max_postcopy_bandwidth=SLOW)
    two.source.command("migrate-start-postcopy")
    two.destination.wait_status("postcopy-active")
    assert two.destination.run_state() == "running"
    return check_fields(two.source.wait_status("postcopy-active"))


def let_it_end(two):
    two.source.set_parameters(max_postcopy_bandwidth=0)


def postcopy_runs_the_guest_there_and_goes_on(folder):
    with TwoInPostcopy(folder) as two:
        start_postcopy(two)
        seen = follow(two.source, "postcopy-active")
        assert seen == ["setup", "active", "STOP", "device", "postcopy-active"], seen
        seen = follow(two.destination, "RESUME")
        assert seen[-2:] == ["postcopy-active", "RESUME"], seen
        assert two.source.run_state() == "postmigrate"
        two.source.qmp.refused("migrate_cancel", "too late")
        two.destination.qmp.refused("snapshot-save", "busy", job_id="j", path="image")
        two.destination.qmp.refused("migrate-pause", "for the source")
        two.destination.wait_counter()
        let_it_end(two)
        ended = check_fields(two.source.wait_status("completed"))
        assert ended["ram"]["postcopy-bytes"] > 0, ended
        two.source.wait_status("completed")
        two.destination.wait_status("completed")
        two.destination.check_guest()
        two.journal.check()


def postcopy_that_is_paused_is_resumed(folder):
    with TwoInPostcopy(folder) as two:
        start_postcopy(two)
        two.source.command("migrate-pause")
        check_fields(two.source.wait_status("postcopy-paused"), ["error-desc"])
        two.destination.wait_status("postcopy-paused")
        two.source.qmp.refused("migrate-pause", "only supported during postcopy-active")
        two.source.qmp.refused("migrate", "There's a migration process in progress", uri=two.uri)
        two.destination.command("migrate-recover", uri=f"unix:{folder}/way-back")
        address = two.destination.migration()["socket-address"]
        assert address == [{"type": "unix", "path": f"{folder}/way-back"}], address
        two.source.migrate(f"unix:{folder}/way-back", resume=True)
        two.source.wait_status("postcopy-active")
        seen = follow(two.source, "postcopy-recover")
        assert seen[-2:] == ["postcopy-paused", "postcopy-recover"], seen
        let_it_end(two)
        two.source.wait_status("completed")
        two.destination.wait_status("completed")
        two.destination.check_guest()
        two.journal.check()
        two.source.qmp.refused("migrate", "Cannot resume if there is no paused migration", uri=two.uri, resume=True)


# ---- who is here, and who is busy ----------------------------------------------------------------------------

REFUSED_ELSEWHERE = [("cont", {}), ("stop", {}), ("snapshot-save", {"job_id": "j", "path": "image"}),
                     ("dirty-log-start", {}), ("calc-dirty-rate", {"calc_time": 1}), ("replicate", {"path": "images"}),
                     ("dump-guest-memory", {"paging": False, "protocol": "file:/dev/null"})]


def guest_that_has_not_come_is_neither_run_nor_saved(folder):
    with Two(folder, defer=True) as two:
        assert two.destination.migration() == {} and two.destination.run_state() == "inmigrate"
        for name, arguments in REFUSED_ELSEWHERE:
            text = "waiting for an incoming migration" if name == "replicate" else "has not come yet"
            two.destination.qmp.refused(name, text, **arguments)
        assert two.destination.run_state() == "inmigrate"
        two.destination.qmp.refused("replicate-promote", "no standby")
        two.destination.command("migrate-incoming", uri=two.uri)
        two.destination.qmp.refused("cont", "has not come yet")
        two.source.migrate(two.uri)
        two.check_moved()
        two.destination.qmp.run_job("snapshot-save", path="image")
        shutil.rmtree(f"{folder}/image")


def guest_that_was_handed_over_is_neither_run_nor_saved(folder):
    with Two(folder) as two:
        two.source.migrate(two.uri)
        two.check_moved()
        for name, arguments in REFUSED_ELSEWHERE:
            text = "previous migration" if name == "replicate" else "has been handed over"
            two.source.qmp.refused(name, text, **arguments)
        two.source.qmp.refused("migrate", "Can't migrate the vm that was paused due to previous migration", uri=two.uri)
        assert two.source.run_state() == "postmigrate"
        two.journal.check()


def one_thing_at_a_time_is_done_with_a_guest(folder):
    with Two(folder) as two:
        two.source.command("dirty-log-start")
        two.source.qmp.refused("migrate", "is logged already", uri=two.uri)
        two.source.qmp.refused("replicate", "is logged already", uri=two.uri)
        two.source.command("dirty-log-stop")
        two.slowly()
        two.source.qmp.refused("migrate", "There's a migration process in progress", uri=two.uri)
        two.source.qmp.refused("replicate", "There's a migration process in progress", uri=two.uri)
        two.source.qmp.refused("migrate-set-capabilities", "There's a migration process in progress", capabilities=[])
        two.source.qmp.refused("snapshot-save", "busy with another job", job_id="j", path="image")
        two.source.qmp.refused("dirty-log-start", "logged by a migration")
        two.source.qmp.refused("calc-dirty-rate", "logged by a migration", calc_time=1)
        two.quickly()
        two.check_moved()


def what_cannot_work_is_refused_and_changes_nothing(folder):
    with Two(folder) as two:
        switch_on(two.source, "multifd")
        two.source.qmp.refused("migrate", "unix: or tcp:", uri="exec:cat >/dev/null")
        two.source.qmp.refused("migrate", "tcp:nowhere", uri="tcp:nowhere")
        two.source.qmp.refused("migrate", "valid migration protocol", uri="rdma:x")
        two.source.qmp.refused("migrate", "'blk' is not supported here", uri=two.uri, blk=True)
        two.source.qmp.refused("migrate-incoming", "'-incoming' was not specified on the command line", uri=two.uri)
        assert two.source.migration() == {} and two.source.qmp.events == []
        two.source.migrate(two.uri)
        two.check_moved()


def check_no_more(vm, before):
    """It has no descriptor that it had not BEFORE, or only for a moment; sockets have names that do not come again."""
    def more():
        return set(badday.descriptors(vm.pid).items()) - set(before.items())
    badday.wait_until(lambda: not more(), END_S, f"no more descriptors: {more()}")


def refusals_keep_no_descriptor(folder):
    os.makedirs(f"{folder}/images/000001")
    with Two(folder) as two:
        before = badday.descriptors(two.source.pid)
        switch_on(two.source, "multifd", "postcopy-ram")
        for name in ("migrate", "replicate"):
            with open(f"{folder}/passed", "w") as file, socket.socket(socket.AF_UNIX) as way:
                for passed in (file, way):
                    two.source.qmp.command("getfd", fdname="way", fds=[passed.fileno()])
                    two.source.qmp.refused(name, "is no socket" if passed is file else "unix: or tcp:", uri="fd:way")
        two.source.qmp.refused("replicate", "000001", path="images")
        check_no_more(two.source, before)


def recover_that_is_refused_keeps_no_descriptor(folder):
    """Once it has arrived: it listens for a source that has not heard of that; for one at a time."""
    with Two(folder) as two:
        two.destination.qmp.refused("migrate-recover", "only be run when postcopy is paused", uri=f"unix:{folder}/back")
        two.source.migrate(two.uri)
        two.check_moved()
        two.destination.command("migrate-recover", uri=f"unix:{folder}/back")
        before = badday.descriptors(two.destination.pid)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as way:
                two.destination.qmp.command("getfd", fdname="way", fds=[way.fileno()])
                two.destination.qmp.refused("migrate-recover", uri="fd:way")
        check_no_more(two.destination, before)
        assert two.destination.status() == "completed"
        two.destination.check_guest()


def guest_that_moves_on_leaves_no_address_behind(folder):
    """Where it has come from may still ask, at a name; its own way on is to another VMM."""
    with Two(folder) as two:
        two.source.migrate(two.uri)
        two.check_moved()
        two.destination.command("migrate-recover", uri="tcp:localhost:0")
        badday.wait_until(lambda: int(two.destination.migration()["socket-address"][0]["port"]) > 0, END_S, "its port is known")
        with migrate.ThreadVm(BUILD, folder, "third", two.journal, incoming=f"unix:{folder}/way-on", verify=True,
                              rate=2000) as third:
            two.destination.migrate(f"unix:{folder}/way-on")
            third.wait_status("completed")
            check_fields(two.destination.wait_status("completed"))
            third.check_guest()
            third.end()
        two.journal.check(exact=2)


def destination_that_is_not_there_fails_the_move(folder):
    with Two(folder) as two:
        two.source.migrate(f"unix:{folder}/nobody")
        assert follow(two.source, "failed", "completed") == ["setup", "failed"]
        assert "nobody" in check_fields(two.source.migration())["error-desc"]
        two.check_stayed()


def source_that_ends_leaves_a_destination_without_a_guest(folder):
    """At once: neither waits until the move is complete, or for the other one to say something."""
    with Two(folder, silence=SILENCE_MS) as two:
        two.slowly()
        two.source.end()
        two.check_given_up()
        two.journal.check()


def destination_that_ends_leaves_the_guest_where_it_was(folder):
    with Two(folder, silence=SILENCE_MS) as two:
        two.slowly()
        two.destination.end()
        assert follow(two.source, "failed", "completed")[-1] == "failed"
        two.check_stayed()


def process_cannot_be_moved(folder):
    with badday.ProcessUnderTest(BUILD, size="4M") as guest, qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.add_process("g", guest.pid)
        error = client.refused("migrate", "background-snapshot", "replicate", uri="exec:true")
        assert error["class"] == "GenericError", error
        client.refused("replicate-hand-over", "not being replicated")
        assert client.command("query-migrate") == {} and not client.events


# ---- a destination, and QEMU's -------------------------------------------------------------------------------

DEFERRED = [("query-status", {}), ("query-migrate", {}), ("migrate_cancel", {}), ("migrate-recover", {"uri": "x"}),
            ("migrate-pause", {}), ("migrate", {"uri": "tcp:127.0.0.1:1"}), ("migrate-incoming", {"uri": "nope:"}),
            ("migrate-incoming", {"uri": "fd:nope"}), ("migrate-incoming", {"uri": "unix:DIR/way"}), ("query-status", {}),
            ("migrate-incoming", {"uri": "unix:DIR/other"}), ("migrate_cancel", {}), ("query-status", {}),
            ("query-migrate", {})]


def answers(client, folder):
    found = []
    for name, arguments in DEFERRED:
        try:
            answer = client.command(name, **{key: value.replace("DIR", folder) for key, value in arguments.items()})
        except qmpd.Refused as refused:
            answer = refused.error
        found.append((name, arguments, json.dumps(answer, sort_keys=True).replace(folder, "DIR")))
    return found


def connected(path):
    """A client; None where nobody listens yet."""
    try:
        return qmpd.Client(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def deferred_destination_answers_as_qemu_does(folder):
    """But that ours has a status as soon as it listens."""
    if not shutil.which("qemu-system-x86_64"):
        raise cases.Skip("skip: qemu-system-x86_64 is missing")
    os.mkdir(f"{folder}/q")
    arguments = ["-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-incoming", "defer", "-qmp",
                 f"unix:{folder}/q/qmp,server=on,wait=off"]
    with Two(folder, defer=True) as two, children.Child(["qemu-system-x86_64", *arguments]):
        with badday.wait_until(lambda: connected(f"{folder}/q/qmp"), END_S, "QEMU listens").negotiate() as client:
            if client.greeting["QMP"]["version"]["qemu"]["major"] != 7:
                raise cases.Skip("skip: the answers are those of QEMU 7.2")
            theirs = answers(client, f"{folder}/q")
        ours = answers(two.destination.qmp, folder)
        for (name, arguments, their_answer), (_name, _arguments, our_answer) in zip(theirs, ours):
            our_answer = our_answer.replace(', "status": "setup"', "")
            assert their_answer == our_answer, f"{name} {arguments}:\n  QEMU {their_answer}\n  ours {our_answer}"


def destination_that_cannot_listen_may_try_again(folder):
    with Two(folder, defer=True) as two:
        two.destination.qmp.refused("migrate-incoming", "nowhere", uri="unix:/nowhere/way")
        two.destination.qmp.refused("migrate-incoming", "unknown migration protocol: rdma:x", uri="rdma:x")
        assert two.destination.migration() == {}
        two.destination.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        address = two.destination.migration()["socket-address"][0]
        assert address["type"] == "inet" and address["host"] == "127.0.0.1" and int(address["port"]) > 0, address
        two.destination.qmp.refused("migrate-incoming", "has already been started", uri=two.uri)
        two.source.migrate(f"tcp:127.0.0.1:{address['port']}")
        two.check_moved()
        two.destination.qmp.refused("migrate-incoming", "has already been started", uri=two.uri)


if __name__ == "__main__":
    children.end_by_signal()
    cases.run(globals(), sys.argv[2:])
