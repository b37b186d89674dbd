#!/usr/bin/env python3
"""Bad days of a move: who is killed, who is too late, what does not fit, and a disk that is full.

badday-migrate.py BUILD [WORD...]      only the cases whose name holds one of these words

SNAP_TEST_MOMENTS: so many random moments for those who are killed. Peers that misbehave: badday-source.py
and badday-destination.py.
"""
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import migrate  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
MOMENTS = int(os.environ.get("SNAP_TEST_MOMENTS", "5"))
SILENCE_MS = 1500
BANDWIDTH = 32 << 20
GUEST = {"size": "8M", "rate": 20000, "hot": "10%", "prefill": True, "silence": SILENCE_MS}
WHOLE_S = 0.4          # about as long as a move takes at that rate
ENDS = ("source", "destination")  # options of one of them only
AT_REST = ("completed", "failed", "cancelled", "postcopy-paused", "ended")


class Move(migrate.Vms):
    """Two VMMs, and a move between them that is slow enough to be hit in its middle."""

    def __init__(self, folder, name="move", journal=None, **options):
        self.folder = f"{folder}/{name}"
        os.mkdir(self.folder)
        self.journal = journal or migrate.Journal(self.folder)
        self.guest = {**GUEST, **{name: value for name, value in options.items() if name not in ENDS}}
        self.source, self.destination = migrate.pair(BUILD, self.folder, self.journal, **{**GUEST, **options})
        self.vms = [self.source, self.destination]
        self.uri = f"unix:{self.folder}/way-in"

    def begin(self, *capabilities, bandwidth=BANDWIDTH, **parameters):
        for vm in self.vms:
            vm.set_capabilities(*capabilities)
        self.source.set_parameters(max_bandwidth=bandwidth, **parameters)
        self.source.migrate(self.uri)

    def wait_source(self, seconds=20):
        badday.wait_until(lambda: self.source.status() in AT_REST, seconds, f"it rests: {self.source.status()}")
        return self.source.status()

    def check_stayed(self):
        """The source has it, says why, and can move it to another."""
        assert self.source.status() in ("failed", "cancelled"), self.source.migration()
        assert self.source.why() or self.source.status() == "cancelled", "it does not say why"
        self.source.check_guest()
        assert self.journal.running() == ["source"], self.journal.text()
        with migrate.ThreadVm(BUILD, self.folder, "another", self.journal, incoming=f"unix:{self.folder}/way-b",
                              **{"verify": True, **self.guest}) as other:
            self.source.set_parameters(max_bandwidth=0, downtime_limit=300)
            self.source.set_capabilities()
            self.source.migrate(f"unix:{self.folder}/way-b")
            self.source.wait_status("completed")
            other.wait_status("completed")
            other.check_guest()
            self.journal.check(exact=1)
        self.journal.add("another", "killed")

    def check_arrived(self):
        self.source.wait_status("completed")
        self.destination.wait_status("completed")
        self.destination.check_guest()
        assert self.journal.running() == ["destination"], self.journal.text()
        self.journal.check(exact=1)
        self.journal.check_goes_on()


def moments():
    """Random, of the time that a move takes; the end of it among them."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    return [chosen.uniform(0, WHOLE_S) for _ in range(MOMENTS)]


# ---- who is killed ---------------------------------------------------------------------------------------


def destination_killed_at_any_moment_leaves_the_source_running_or_is_too_late(folder):
    for number, moment in enumerate(moments()):
        with Move(folder, f"{number}") as move:
            move.begin()
            time.sleep(moment)
            move.destination.kill()
            status = move.wait_source()
            print(f"after {moment:.3f} s: {status}", flush=True)
            if status == "failed":
                assert not move.journal.events("destination", "start"), move.journal.text()
                move.check_stayed()
            else:  # it had been handed over: it never runs here again, whatever happens to it there
                time.sleep(0.2)
                assert move.journal.running() == [], move.journal.text()
                move.source.qmp.refused("cont")
                move.journal.check()


def source_killed_at_any_moment_starts_the_guest_only_after_go(folder):
    for number, moment in enumerate(moments()):
        with Move(folder, f"{number}") as move:
            move.begin()
            time.sleep(moment)
            move.source.kill()
            badday.wait_until(lambda: move.destination.status() in AT_REST, 20, "the destination rests")
            status = move.destination.status()
            print(f"after {moment:.3f} s: {status}", flush=True)
            if status == "completed":
                move.destination.check_guest()
                move.journal.check(exact=1)
            else:
                time.sleep(0.2)
                assert move.journal.running() == [], move.journal.text()
                assert move.destination.why(), "it does not say why"
                if move.destination.run_state() != "ended":
                    move.destination.qmp.refused("cont")
                assert not move.journal.events("destination", "start"), move.journal.text()
                move.journal.check()


def source_killed_in_postcopy_leaves_the_guest_waiting_for_what_is_missing(folder):
    """What only the source had is lost with it: the guest is not wrong, it stands where it touches that; soon, as it
    writes every page in turn."""
    with Move(folder, verify=False, hot="100%") as move:
        move.begin("postcopy-ram", bandwidth=1 << 20, max_postcopy_bandwidth=1 << 20)
        time.sleep(0.2)
        move.source.command("migrate-start-postcopy")
        move.source.wait_status("postcopy-active")
        move.source.kill()
        move.destination.wait_status("postcopy-paused")
        assert move.destination.why(), "it does not say why"
        badday.wait_until(lambda: badday.blocked_threads(move.destination.pid), 20, "it waits for a missing page")
        before = move.journal.events("destination", "run")
        assert len(before) == 1, move.journal.text()
        assert move.destination.run_state() in ("running", "paused"), move.destination.run_state()
        move.journal.check()


def destination_killed_in_postcopy_takes_the_guest_with_it(folder):
    """It was there, and what it has written since is only there: the source has an old one, and never runs it."""
    with Move(folder, verify=False) as move:
        move.begin("postcopy-ram", bandwidth=1 << 20, max_postcopy_bandwidth=1 << 20)
        time.sleep(0.2)
        move.source.command("migrate-start-postcopy")
        move.source.wait_status("postcopy-active")
        move.destination.wait_counter()
        move.destination.kill()
        move.source.wait_status("postcopy-paused")
        assert move.source.why(), "it does not say why"
        for command in ("cont", "migrate_cancel"):
            move.source.qmp.refused(command)
        assert move.journal.running() == [], move.journal.text()
        move.source.end()
        move.journal.check()


def standby_promoted_after_kill_goes_on_from_its_last_epoch(folder):
    for number in range(max(2, MOMENTS // 2)):
        with Move(folder, f"{number}") as move:
            move.source.command("replicate", uri=move.uri, interval=100)
            badday.wait_until(lambda: move.source.migration().get("epoch", 0) >= 3, 20, "three epochs")
            time.sleep(random.uniform(0, 0.3))
            move.source.kill()
            killed = [fields["n"] for _ns, _name, _event, fields in move.journal.events("source", "stand")]
            epoch = move.destination.migration().get("epoch")
            time.sleep(0.1)
            assert move.journal.running() == [], "a standby does not start by itself"
            move.destination.wait_status("postcopy-paused")
            move.destination.command("replicate-promote")
            move.destination.wait_status("completed")
            began = move.journal.events("destination", "run")[0][3]["n"]
            print(f"epoch {epoch}: goes on from {began}, the source's last ones were {killed[-3:]}", flush=True)
            assert began in killed[-2:], "one epoch may be lost, and no more"
            move.destination.check_guest()
            move.journal.check(exact=1)


def replication_of_a_guest_that_is_slow_to_get_ready_is_handed_over(folder):
    """All of its memory is dirty in each epoch, and meanwhile again."""
    with Move(folder, rate=0, hot="100%", ready=20) as move:
        move.source.command("replicate", uri=move.uri, interval=50)
        badday.wait_until(lambda: move.source.migration().get("epoch", 0) >= 3, 20, "three epochs")
        move.source.command("replicate-hand-over")
        move.check_arrived()


# ---- who is too many, and what does not fit --------------------------------------------------------------


def two_migrations_of_one_guest_second_is_refused(folder):
    with Move(folder) as move:
        move.begin(bandwidth=4 << 20)
        move.source.qmp.refused("migrate", uri=f"unix:{folder}/elsewhere")
        move.source.qmp.refused("replicate", uri=f"unix:{folder}/elsewhere")
        move.source.qmp.refused("snapshot-save", job_id="j", path=f"{folder}/image")
        move.source.set_parameters(max_bandwidth=0)
        move.check_arrived()


def two_migrations_of_two_guests_both_arrive(folder):
    with Move(folder, "one") as one, Move(folder, "two") as two:
        one.begin()
        two.begin()
        for move in (one, two):
            move.check_arrived()


def second_source_at_a_destination_that_is_taken_is_refused(folder):
    with Move(folder, "one") as one, Move(folder, "two") as two:
        one.begin(bandwidth=4 << 20)
        one.source.wait_status("active")
        two.source.migrate(one.uri)
        two.wait_source()
        assert two.source.status() == "failed", two.source.migration()
        two.source.check_guest()
        one.source.set_parameters(max_bandwidth=0)
        one.check_arrived()


def destination_with_other_memory_is_refused_by_name(folder):
    for number, (options, words) in enumerate([({"size": "16M"}, "ram"), ({"regions": 2}, "ram")]):
        with Move(folder, f"{number}", destination=options) as move:
            move.begin()
            assert move.wait_source() == "failed", move.source.migration()
            why = move.source.why()
            print(f"{options}: {why}")
            assert words in why, why
            move.check_stayed()


def destination_whose_state_is_another_is_refused(folder):
    """The same regions, but load_state says no: the guest stays where it was."""
    with Move(folder, destination={"hot": "20%"}) as move:
        move.begin()
        assert move.wait_source() == "failed", move.source.migration()
        assert "layout" in move.source.why(), move.source.why()
        assert not move.journal.events("destination", "start"), move.journal.text()
        move.check_stayed()


def guest_that_a_client_has_stopped_arrives_stopped(folder):
    with Move(folder) as move:
        move.source.command("stop")
        move.begin(bandwidth=0)
        move.source.wait_status("completed")
        move.destination.wait_status("completed")
        assert move.destination.run_state() == "paused", move.destination.run_state()
        assert move.journal.running() == [], move.journal.text()
        move.destination.command("cont")
        move.check_arrived()


def guest_that_a_client_has_stopped_stays_stopped_where_the_move_fails(folder):
    with Move(folder, destination={"hot": "20%"}) as move:
        move.source.command("stop")
        move.begin(bandwidth=0)
        assert move.wait_source() == "failed", move.source.migration()
        assert move.source.run_state() == "paused", move.source.run_state()
        time.sleep(0.1)
        assert move.journal.running() == [], move.journal.text()
        move.source.command("cont")
        move.check_stayed()


def destination_that_is_not_there_fails_at_once(folder):
    with Move(folder) as move:
        move.source.migrate(f"unix:{folder}/nobody")
        assert move.wait_source() == "failed", move.source.migration()
        move.check_stayed()


# ---- what takes too long ---------------------------------------------------------------------------------


def throttled(move):
    return [fields["percent"] for _ns, _name, _event, fields in move.journal.events("source", "throttle")]


def guest_that_never_converges_fails_clearly(folder):
    with Move(folder, rate=0, hot="64") as move:
        move.begin(bandwidth=4 << 20, downtime_limit=1)
        assert move.wait_source(60) == "failed", move.source.migration()
        why = move.source.why()
        print(why, flush=True)
        assert "does not converge" in why and "auto-converge" in why, why
        assert not throttled(move), move.journal.text()
        move.check_stayed()


def guest_that_does_not_converge_is_throttled_more_and_more(folder):
    """Either that helps in the end, as a guest that stands in most of a round dirties little; or it fails clearly."""
    with Move(folder, rate=0, hot="100%") as move:
        move.begin("auto-converge", bandwidth=32 << 20, downtime_limit=1)
        status = move.wait_source(60)
        print(f"throttled {throttled(move)}: {status}, {move.source.why()}", flush=True)
        *percents, last = throttled(move)
        assert percents and percents == sorted(percents) and last == 0, move.journal.text()
        if status == "completed":
            move.check_arrived()
            return
        assert max(percents) == 99 and "throttled as far as it may be" in move.source.why(), move.source.why()
        move.check_stayed()


def cancel_at_any_moment_leaves_the_guest_on_one_side(folder):
    for number, moment in enumerate(moments()):
        with Move(folder, f"{number}") as move:
            move.begin()
            time.sleep(moment)
            try:
                move.source.command("migrate_cancel")
            except Exception as error:  # too late: it says so
                print(f"refused: {error}")
            status = move.wait_source()
            print(f"after {moment:.3f} s: {status}", flush=True)
            if status == "completed":
                move.check_arrived()
            else:
                assert status == "cancelled", move.source.migration()
                move.check_stayed()


def cancel_in_pre_switchover_lets_the_guest_run_on(folder):
    with Move(folder) as move:
        move.begin("pause-before-switchover", bandwidth=0)
        move.source.wait_status("pre-switchover")
        assert move.journal.running() == [], move.journal.text()
        time.sleep(2 * SILENCE_MS / 1000)  # the connection does not fall silent in it
        move.source.wait_status("pre-switchover")
        move.source.command("migrate_cancel")
        assert move.wait_source() == "cancelled", move.source.migration()
        move.check_stayed()


# ---- files -----------------------------------------------------------------------------------------------


def file_on_a_full_disk_fails_and_leaves_nothing(folder):
    try:
        disk = badday.Mounted(f"{folder}/disk", "tmpfs", "size=4m")
    except OSError as error:
        raise cases.Skip(f"cannot mount: {error}") from error
    with disk, Move(folder) as move:
        move.source.migrate(f"file:{folder}/disk/guest")
        assert move.wait_source() == "failed", move.source.migration()
        why = move.source.why()
        assert "space" in why, why
        assert os.listdir(f"{folder}/disk") == [], os.listdir(f"{folder}/disk")
        move.check_stayed()


def file_of_a_guest_brings_it_back(folder):
    """One-way: written here, read there; a file that is cut short is refused."""
    journal = migrate.Journal(folder)
    with migrate.ThreadVm(BUILD, folder, "source", journal, **GUEST) as source:
        source.migrate(f"file:{folder}/guest")
        source.wait_status("completed")
        source.end()
    whole = open(f"{folder}/guest", "rb").read()
    with open(f"{folder}/short", "wb") as file:
        file.write(whole[:-20])
    with migrate.ThreadVm(BUILD, folder, "short", journal, incoming="defer", verify=True, **GUEST) as short:
        short.command("migrate-incoming", uri=f"file:{folder}/short")
        badday.wait_until(lambda: short.status() in ("failed", "ended"), 10, "a torn file is refused")
        print(short.why())
        assert not journal.events("short", "start"), journal.text()
    with migrate.ThreadVm(BUILD, folder, "reader", journal, incoming=f"file:{folder}/guest", verify=True,
                          **GUEST) as reader:
        reader.wait_status("completed")
        reader.check_guest()
        journal.check(exact=1)
        journal.check_goes_on()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
