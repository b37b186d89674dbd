#!/usr/bin/env python3
"""Destinations that misbehave: garbage, another version, answers at the wrong time, and none at all.

badday-destination.py BUILD [WORD...]      only the cases whose name holds one of these words

One VMM has to meet them all, one after the other, with its guest running after each; a good one gets it at the end.
Once the source has begun to say GO it does not run the guest again, unless the other side promises that it never will.
"""
import os
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import migrate  # noqa: E402
import peers  # noqa: E402
import wire  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])


# ---- destinations that misbehave: what they do, and a word of what the source then says --------------------------


def closes_after(*steps):
    def act(destination):
        for step in steps:
            step(destination)
        destination.hang_up()
    return act


def says(kind, body=b"", **head):
    """One record, after WELCOME, that does not belong there."""
    def act(destination):
        destination.accept()
        destination.welcome()
        peers.raw(destination.peer, peers.sealed(kind, destination.peer.sent, body, **head))
        destination.drain()
    return act


def welcomes(**changes):
    def act(destination):
        destination.accept()
        destination.welcome(**changes)
        destination.drain()
    return act


def answers_end(act_then):
    def act(destination):
        destination.take_all()
        act_then(destination)
        destination.drain()
    return act


def is_silent(seconds=2 * peers.SILENCE_MS / 1000):
    return lambda destination: time.sleep(seconds)


BAD_DESTINATIONS = {
    "hangs up at once": (closes_after(lambda d: d.accept()), None),
    "garbage": (lambda d: (d.accept(), peers.raw(d.peer, os.urandom(4096)), d.drain()), None),
    "silent from the start": (lambda d: (d.accept(), is_silent()(d)), None),
    "another version": (welcomes(version=2), None),
    "another id": (welcomes(ident=bytes(16)), None),
    "waits for GO already": (welcomes(at=1), None),
    "has started already": (welcomes(at=2), None),
    "is nowhere": (welcomes(at=7), None),
    "misses something already": (welcomes(n_missing=3), None),
    "no room": (says(wire.FAILED, b"there is no room here"), "no room here"),
    "hangs up after WELCOME": (closes_after(lambda d: d.accept(), lambda d: d.welcome()), None),
    "hangs up in the middle": (closes_after(lambda d: d.accept(), lambda d: d.welcome(), lambda d: d.take(wire.CHUNK)),
                               None),
    "a CHUNK of a destination": (says(wire.CHUNK, bytes(56)), None),
    "READY too early": (says(wire.READY, bytes(16)), None),
    "STARTED too early": (says(wire.STARTED, bytes(16)), None),
    "a REQUEST in a move": (says(wire.REQUEST, struct.pack("<IIQQ", 0, 1, 0, 0)), None),
    "MISSING in a move": (says(wire.MISSING, wire.missing(0, 0, [1])), None),
    "a second WELCOME": (says(wire.WELCOME, wire.welcome(bytes(16))), None),
    "a body of 4 GiB": (says(wire.READY, b"", body_bytes=0xffffffff), None),
    "hangs up after END": (closes_after(lambda d: d.take_all()), None),
    "never acknowledges": (lambda d: (d.take_all(), is_silent()(d)), None),
    "READY of another epoch": (answers_end(lambda d: d.ready(epoch=7)), None),
    "STARTED instead of READY": (answers_end(lambda d: d.peer.send(wire.STARTED, d.id)), None),
    "its state is refused": (answers_end(lambda d: d.peer.send(wire.FAILED, b"I do not know that device")),
                             "I do not know that device"),
}


class Bad(peers.Destination):
    def drain(self):
        """What the source still says, up to the end."""
        try:
            while True:
                self.peer.next()
        except (wire.Gone, wire.Failed, OSError, TimeoutError):
            pass


class Giver:
    """A VMM with a guest that nobody takes."""

    def __init__(self, folder):
        self.folder, self.number = folder, 0
        self.journal = migrate.Journal(folder)
        self.vm = migrate.ThreadVm(BUILD, folder, "giver", self.journal, silence=peers.SILENCE_MS, prefill=True,
                                   hot="10%", **peers.GUEST_OPTIONS)

    def meet(self, act):
        self.number += 1
        path = f"{self.folder}/to-{self.number}"
        with Bad(path) as destination:
            self.vm.migrate(f"unix:{path}")
            try:
                act(destination)
            except (wire.Gone, wire.Failed, BrokenPipeError):
                pass  # it has had enough
            badday.wait_until(lambda: self.vm.status() not in ("setup", "active", "device", None), 10,
                              f"it rests: {self.vm.migration()}")

    def check(self):
        assert self.vm.status() == "failed", self.vm.migration()
        assert self.vm.why(), "it does not say why"
        assert self.journal.running() == ["giver"], self.journal.text()
        self.vm.wait_counter()
        assert not self.journal.events("giver", "hand-over"), self.journal.text()


def bad_destinations_leave_the_guest_running_and_a_good_one_gets_it(folder):
    giver = Giver(folder)
    failed = []
    with giver.vm:
        before = badday.descriptors(giver.vm.pid), giver.vm.threads()
        for name, (act, word) in BAD_DESTINATIONS.items():
            try:
                giver.meet(act)
                giver.check()
                why = giver.vm.why()
                print(f"{name}: {why}", flush=True)
                assert not word or word in why, f"no {word!r}"
            except Exception as error:  # the next one as well
                failed.append(name)
                print(f"{name}: WRONG: {error}", flush=True)
                if giver.vm.process.poll() is not None or giver.journal.running() != ["giver"]:
                    break
        assert not failed, failed
        giver.vm.check_tidy(*before)
        with migrate.ThreadVm(BUILD, folder, "taker", giver.journal, incoming=f"unix:{folder}/good", verify=True,
                              hot="10%", **peers.GUEST_OPTIONS) as taker:
            giver.vm.migrate(f"unix:{folder}/good")
            giver.vm.wait_status("completed")
            taker.wait_status("completed")
            taker.check_guest()
            giver.journal.check(exact=1)
            giver.journal.check_goes_on()


def destination_that_lives_but_never_says_ready_is_given_up(folder):
    giver = Giver(folder)
    with giver.vm, Bad(f"{folder}/to") as destination:
        giver.vm.migrate(f"unix:{folder}/to")
        destination.take_all()
        end = time.monotonic() + 30
        while time.monotonic() < end and giver.vm.status() != "failed":
            destination.peer.send(wire.ALIVE, wire.number_body(0))
            time.sleep(0.1)
        giver.vm.wait_status("failed")
        assert "not ready" in giver.vm.why(), giver.vm.why()
        giver.check()


LOSSES = {"closes": lambda destination: destination.hang_up(), "is silent": is_silent(),
          "another id": lambda destination: destination.peer.send(wire.STARTED, bytes(16)),
          "garbage": lambda destination: peers.raw(destination.peer, os.urandom(100))}


def lose_after_go(giver, destination, loss):
    """Up to a source that waits, and runs nothing."""
    giver.vm.migrate(f"unix:{destination.path}")
    destination.take_go()
    loss(destination)
    badday.wait_until(lambda: giver.vm.status() == "postcopy-paused", 10, f"it waits: {giver.vm.migration()}")
    assert giver.journal.running() == [], giver.journal.text()
    assert giver.vm.why(), "it does not say why"
    giver.vm.qmp.refused("cont")
    giver.vm.qmp.refused("migrate_cancel")
    assert giver.journal.running() == [], giver.journal.text()


def come_back(giver, back, ident, at):
    """The destination says where it is, and that the guest runs."""
    giver.vm.migrate(f"unix:{back.path}", resume=True)
    flags, fields = back.accept()
    assert flags & wire.RESUME and fields[0] == ident, (flags, fields)
    back.welcome(at=at)
    if at == 1:
        back.take(wire.GO)
    back.peer.send(wire.STARTED, back.id)
    giver.vm.wait_status("completed")
    assert giver.journal.running() == [] and giver.journal.events("giver", "hand-over"), giver.journal.text()
    giver.journal.check()


def destination_lost_after_go_leaves_the_source_waiting_until_it_is_resumed(folder):
    """When it is back it has not read GO yet, or has started the guest, in turn."""
    for number, (name, loss) in enumerate(LOSSES.items()):
        os.mkdir(f"{folder}/{number}")
        giver = Giver(f"{folder}/{number}")
        with giver.vm, Bad(f"{folder}/{number}/to") as destination, Bad(f"{folder}/{number}/back") as back:
            lose_after_go(giver, destination, loss)
            print(f"{name}: {giver.vm.why()}", flush=True)
            come_back(giver, back, destination.id, 1 + number % 2)


def destination_that_died_after_go_gives_the_guest_back_by_its_owners_word(folder):
    giver = Giver(folder)
    with giver.vm, Bad(f"{folder}/to") as destination:
        giver.vm.qmp.refused("migrate-reclaim", "on its way")
        lose_after_go(giver, destination, LOSSES["closes"])
        giver.vm.command("migrate-reclaim")
        giver.vm.wait_status("failed")
        assert "taken back" in giver.vm.why(), giver.vm.why()
        giver.check()


def stranger_that_refuses_a_resumed_source_does_not_give_the_guest_back(folder):
    """Where the source comes back to is not where the guest is: a FAILED from there says nothing about it."""
    giver = Giver(folder)
    with giver.vm, Bad(f"{folder}/to") as destination, Bad(f"{folder}/stranger") as stranger, \
            Bad(f"{folder}/back") as back:
        lose_after_go(giver, destination, LOSSES["closes"])
        giver.vm.migrate(f"unix:{stranger.path}", resume=True)
        stranger.accept()
        stranger.peer.send(wire.FAILED, b"that id is not mine")
        stranger.drain()
        badday.wait_until(lambda: giver.vm.status() == "postcopy-paused", 10, f"it waits: {giver.vm.migration()}")
        assert giver.journal.running() == [], giver.journal.text()
        come_back(giver, back, destination.id, 2)


def destination_that_says_it_will_not_start_gives_the_guest_back(folder):
    """FAILED after GO is a promise: it has not started the guest, and will not."""
    giver = Giver(folder)
    with giver.vm, Bad(f"{folder}/to") as destination:
        giver.vm.migrate(f"unix:{folder}/to")
        destination.take_go()
        destination.peer.send(wire.FAILED, b"the lid is open")
        destination.drain()
        badday.wait_until(lambda: giver.vm.status() == "failed", 10, f"it has it again: {giver.vm.migration()}")
        assert "the lid is open" in giver.vm.why(), giver.vm.why()
        giver.check()
        giver.journal.check()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
