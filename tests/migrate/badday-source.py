#!/usr/bin/env python3
"""Sources that misbehave: garbage, lies, another version, other memory, records at the wrong time, and none at all.

badday-source.py BUILD [WORD...]      only the cases whose name holds one of these words

One VMM has to bear them all, one after the other, start nothing, and take in a good guest at the end.
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
import qmpd  # noqa: E402
import way  # noqa: E402
import wire  # noqa: E402
from proxy import Harm  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
PAGE = peers.PAGE
LAST_CHUNK = peers.SIZE // PAGE // wire.CHUNK_PAGES - 1
RSS_MAX_BYTES = 128 << 20  # that no lie of a peer makes a destination of 8 MiB grow to


# ---- sources that misbehave: how, and a word of the refusal (None: the connection may just be closed) -----------


def at_hello(**changes):
    def act(peer):
        peer.hello(**changes)
        peer.region()
    return act


def at_region(**changes):
    def act(peer):
        peer.hello()
        peer.region(**changes)
    return act


def after_welcome(act):
    def whole(peer):
        peer.greet()
        act(peer)
    return whole


def chunk(number=0, pages=b"x" * PAGE, **changes):
    return after_welcome(lambda peer: peer.send_chunk(number, pages, **changes))


def states(*parts):
    def act(peer):
        for part in parts:
            peer.send_state(**part)
        peer.send_end()
    return after_welcome(act)


def end(flags=0, epoch=0, **changes):
    def act(peer):
        peer.send_memory()
        peer.send_state()
        peer.send_end(flags, epoch, **changes)
    return after_welcome(act)


def record(kind, body=b"", **head):
    """One record after WELCOME that does not belong there."""
    return after_welcome(lambda peer: peers.raw(peer, peers.sealed(kind, peer.sent, body, **head)))


def numbered(off):
    """A record whose number is OFF by so many."""
    return after_welcome(lambda peer: peers.raw(peer, peers.sealed(wire.ROUND, peer.sent + off, bytes(32))))


def first(kind, body=b"", **head):
    return lambda peer: peers.raw(peer, peers.sealed(kind, 0, body, **head))


def two_regions(act):
    """Two regions where there is one."""
    def whole(peer):
        peer.hello(n_regions=2)
        peer.region()
        act(peer)
    return whole


BAD_SOURCES = {
    # HELLO
    "garbage": (lambda peer: peers.raw(peer, os.urandom(4096)), None),
    "an end at once": (lambda peer: peer.close(), None),
    "half a head": (lambda peer: (peers.raw(peer, b"snprabc"), peer.close()), None),
    "another magic": (first(wire.HELLO, b"", magic=b"rpns"), None),
    "GO first": (first(wire.GO, bytes(16)), None),
    "CHUNK first": (first(wire.CHUNK, bytes(56)), None),
    "version 0": (at_hello(version=0), None),
    "no channels": (at_hello(channels=0), None),
    "nine channels": (at_hello(channels=9), None),
    "channel 1 first": (at_hello(channels=4, channel=1), None),
    "the urgent channel first": (at_hello(channel=wire.URGENT), None),
    "purpose 3": (at_hello(purpose=3), None),
    "flags": (at_hello(flags=64), None),
    "a resumed one": (at_hello(flags=wire.RESUME), None),
    "a body of 4 GiB": (first(wire.HELLO, b"", body_bytes=0xffffffff), None),
    "a bulk of 4 GiB in HELLO": (first(wire.HELLO, b"", bulk_bytes=0xffffffff), None),
    "a text beyond the body": (first(wire.HELLO, wire.hello(bytes(16), 1)[:-4]), None),
    # regions
    "no regions": (at_hello(n_regions=0), None),
    "70000 regions": (at_hello(n_regions=70000), None),
    "other pages": (at_region(page=4 * PAGE, granule=4 * PAGE), "ram"),
    "a page of 1 byte": (at_region(page=1), None),
    "a longer region": (at_region(length=2 * peers.SIZE), "ram"),
    "a shorter region": (at_region(length=peers.SIZE // 2), "ram"),
    "an odd length": (at_region(length=peers.SIZE - 5), None),
    "another address": (at_region(address=1 << 32), "ram"),
    "another name": (at_region(name="rom"), "rom"),
    "a name of no UTF-8": (lambda peer: (peer.hello(), peers.raw(peer, peers.sealed(
        wire.REGION, 1, wire.region("ram", peers.SIZE, page=PAGE)[:-1] + b"\xff"))), None),
    "the same region twice": (two_regions(lambda peer: peer.region()), None),
    "a second region": (two_regions(lambda peer: peer.region(name="more", address=1 << 40)), "more"),
    "a region that does not come": (lambda peer: (peer.hello(n_regions=2), peer.region(), peer.send_memory()), None),
    # chunks
    "a chunk of region 1": (chunk(region=1), None),
    "a chunk beyond the end": (chunk(LAST_CHUNK + 1), None),
    "chunk 2^63": (chunk(1 << 63), None),
    "zero that is not present": (chunk(zero=2), None),
    "more pages than bytes": (chunk(present=3), None),
    "fewer pages than bytes": (chunk(present=0), None),
    "a wrong checksum": (chunk(checksum=1), "checksum"),
    "codec 7": (chunk(codec=7), None),
    "zstd that is longer": (chunk(codec=1), None),
    "zstd that is none": (chunk(pages=b"x" * 100, present=1, codec=1), None),
    "zstd of more than it says": (chunk(pages=wire.zstd(b"x" * (1 << 28)), present=1, codec=1), None),
    "zstd of less than it says": (chunk(pages=wire.zstd(b"x" * 100), present=1, codec=1), None),
    "zstd with something behind it": (chunk(pages=wire.zstd(b"x" * PAGE) + b"x", present=1, codec=1,
                                            checksum=wire.xxh3(b"x" * PAGE)), None),
    "a bulk of 4 GiB": (record(wire.CHUNK, wire.chunk(0, 0, 1, 0, bytes(PAGE)), bulk_bytes=0xffffffff), None),
    "a bulk in END": (record(wire.END, wire.end(0, 0, 0), bulk_bytes=16), None),
    "a bulk that ends early": (after_welcome(lambda peer: (peers.raw(peer, wire.record(
        wire.CHUNK, peer.sent, wire.chunk(0, 0, 1, 0, bytes(PAGE)), bytes(PAGE))[:-100]), peer.close())), None),
    # states
    "a state of 257 MiB": (states({"total": 257 << 20}), None),
    "a state with a gap": (states({"offset": 5}), None),
    "a state without its end": (states({"total": 1000}), None),
    "a state twice": (states({}, {}), None),
    "a state without a name": (states({"name": ""}), None),
    "no state": (states(), None),
    "another guest's state": (states({"data": peers.Guest().state(pages=5)}), "layout"),
    # END
    "too many chunks said": (end(chunks=5), None),
    "too many pages said": (end(pages=5), None),
    "too many states said": (end(states=5), None),
    "an epoch in a move": (end(epoch=1), None),
    "pages missing, not agreed": (end(flags=1), None),
    # at the wrong time, or never
    "type 99": (record(99), None),
    "WELCOME of a source": (record(wire.WELCOME, wire.welcome(bytes(16))), None),
    "READY of a source": (record(wire.READY, bytes(16)), None),
    "a second HELLO": (record(wire.HELLO, wire.hello(bytes(16), 1)), None),
    "a late REGION": (record(wire.REGION, wire.region("ram", peers.SIZE)), None),
    "GO before END": (after_welcome(lambda peer: peer.send(wire.GO, peer.id)), None),
    "ALL_SENT in a move": (after_welcome(lambda peer: peer.send(wire.ALL_SENT, peer.id)), None),
    "MISSING in a move": (after_welcome(lambda peer: peer.send(wire.MISSING, wire.missing(0, 0, [1]))), None),
    "a number left out": (numbered(1), None),
    "a number again": (numbered(-1), None),
    "silence": (after_welcome(lambda peer: time.sleep(2 * peers.SILENCE_MS / 1000)), None),
    "FAILED": (after_welcome(lambda peer: peer.send(wire.FAILED, b"I have changed my mind")), None),
}


class Taker:
    """A VMM that takes one peer after the other; another one, where its state may have been touched and it has ended."""

    def __init__(self, folder):
        self.folder, self.number = folder, 0
        self.journal = migrate.Journal(folder)
        self.vm = None
        self.renew()

    def renew(self):
        self.number += 1
        self.close()
        self.vm = migrate.ThreadVm(BUILD, self.folder, f"taker-{self.number}", self.journal, incoming="defer",
                                   verify=True, **peers.GUEST_OPTIONS)

    def listen(self):
        self.number += 1
        path = f"{self.folder}/in-{self.number}"
        try:
            self.vm.command("migrate-incoming", uri=f"unix:{path}")
        except (qmpd.Refused, qmpd.Closed, BrokenPipeError, ConnectionResetError):  # it is about to end, or has ended
            self._check_end()
            return self.listen()
        return path

    def lose_after_ready(self):
        """A source that has sent all but GO, and is gone."""
        source = peers.Source(self.listen(), peers.Guest())
        source.greet()
        source.finish()
        source.close()
        self.vm.wait_status("postcopy-paused")
        return source

    def _check_end(self):
        """It ends as one does that cannot have its guest any more; and there is another."""
        self.vm.process.wait(5)
        why = self.vm.log()
        assert self.vm.process.returncode == 1 and len(why.splitlines()) == 1, (self.vm.process.returncode, why)
        self.renew()

    def bear(self, act):
        """A bad source. Return: the words of the refusal; None: it was just closed."""
        peer = peers.Source(self.listen(), peers.Guest())
        try:
            act(peer)
            while True:
                got = peer.next()
                assert got[0] == wire.WELCOME, f"it was answered: {wire.NAMES[got[0]]}"
        except wire.Failed as failed:
            return str(failed)
        except (wire.Gone, BrokenPipeError, ConnectionResetError, OSError):
            return None
        finally:
            peer.close()

    def check(self):
        """It has failed, says why, and has started nothing. Return: what it says."""
        badday.wait_until(lambda: self.vm.status() in ("failed", "ended"), 10, f"it fails: {self.vm.status()}")
        why = self.vm.why()
        assert why, "it does not say why"
        assert not self.journal.running() and not self.journal.events(self.vm.name, "start"), self.journal.text()
        state = self.vm.run_state()
        if state == "ended":
            self._check_end()
            return why
        assert state == "inmigrate", state
        assert self.vm.memory_bytes() < RSS_MAX_BYTES, "it has grown"
        return why

    def check_tidy(self):
        """After several that came to nothing, it is as before."""
        self.renew()
        before = badday.descriptors(self.vm.pid), self.vm.threads()
        for name in ("half a head", "another name", "a wrong checksum", "silence"):
            bear_one(self, *BAD_SOURCES[name])
        self.vm.check_tidy(*before)

    def close(self):
        if self.vm:
            self.vm.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()


def bear_one(taker, act, word):
    """AssertionError unless it is borne as it should be. Return: how it was refused."""
    begin = time.monotonic()
    said = taker.bear(act)
    why = taker.check()
    assert not word or word in (said or ""), f"no {word!r} in {said!r}"
    assert time.monotonic() - begin < 8, "it took too long"
    return said or why


def bad_sources_are_refused_and_a_good_one_is_taken(folder):
    failed = []
    with Taker(folder) as taker:
        for name, (act, word) in BAD_SOURCES.items():
            try:
                print(f"{name}: {bear_one(taker, act, word)}", flush=True)
            except Exception as error:  # the next one as well
                failed.append(name)
                print(f"{name}: WRONG: {error}", flush=True)
                taker.renew()
        assert not failed, failed
        taker.check_tidy()
        good = peers.Source(taker.listen(), peers.Guest())
        version = struct.unpack_from("<16sI", good.greet(version=2)[2])[1]
        assert version == 1, f"to one that speaks 2 as well it says {version}"
        good.finish()
        good.let_go()
        taker.vm.wait_status("completed")
        taker.vm.check_guest()
        taker.journal.check(exact=1)


def source_that_comes_back_with_another_id_is_refused(folder):
    with Taker(folder) as taker:
        source = taker.lose_after_ready()
        path = f"{folder}/again"
        taker.vm.command("migrate-recover", uri=f"unix:{path}")
        for ident, expected in ((os.urandom(16), "id"), (source.id, None)):
            back = peers.Source(path, peers.Guest())
            back.id = ident
            back.hello(wire.RESUME, n_regions=0)
            if expected:
                try:
                    back.expect(wire.WELCOME)
                    raise AssertionError("a stranger is welcome")
                except (wire.Failed, wire.Gone) as refusal:
                    print(f"a stranger: {refusal}")
                back.close()
                if taker.vm.status() == "postcopy-paused":
                    path = f"{folder}/again-2"
                    taker.vm.command("migrate-recover", uri=f"unix:{path}")
                continue
            at = struct.unpack_from("<16sII", back.expect(wire.WELCOME)[2])[2]
            assert at == 1, at
            back.let_go()
            taker.vm.wait_status("completed")
            taker.vm.check_guest()
            back.close()
        taker.journal.check(exact=1)


# ---- a source that is dead, or deaf -----------------------------------------------------------------------------


def source_killed_before_go_leaves_its_guest_to_the_word_of_the_owner(folder):
    """It has heard READY, and is killed while GO is held up: the destination has all of the guest, and nobody runs it."""
    with way.Crossing(BUILD, folder, "precopy", Harm("stall", "GO")) as crossing:
        destination = crossing.destination
        crossing.source.migrate(crossing.proxy.uri)
        assert crossing.proxy.fired.wait(20), "it does not come as far as GO"
        destination.qmp.refused("replicate-promote", "no standby", force=True)
        crossing.source.kill()
        crossing.proxy.cut()
        destination.wait_status("postcopy-paused")
        assert crossing.journal.running() == [], crossing.journal.text()
        destination.command("migrate-recover", uri=f"unix:{folder}/back")
        destination.wait_status("postcopy-recover")
        destination.command("replicate-promote")
        destination.wait_status("completed")
        destination.check_guest()
        crossing.journal.check_goes_on()
        crossing.journal.check(exact=1)
        destination.qmp.refused("replicate-promote", "no standby")


def may_recover(vm, uri):
    try:
        return vm.command("migrate-recover", uri=uri) is not None
    except qmpd.Refused:
        return False


def source_that_comes_back_after_a_promotion_is_told(folder):
    """Its owner was wrong: it was not dead. It hears that the guest runs, and what it says is not heard any more."""
    with Taker(folder) as taker:
        source = taker.lose_after_ready()
        taker.vm.command("replicate-promote")
        taker.vm.wait_status("completed")
        for number in range(2):
            path = f"{folder}/again-{number}"
            badday.wait_until(lambda: may_recover(taker.vm, f"unix:{path}"), 2, "it listens")  # done with the one before
            back = peers.Source(path, peers.Guest())
            back.id = source.id
            back.hello(wire.RESUME, n_regions=0)
            at = struct.unpack_from("<16sII", back.expect(wire.WELCOME)[2])[2]
            assert at == 2, at
            back.expect(wire.STARTED)
            back.send(wire.GO, back.id)
            back.close()
        taker.vm.check_guest()
        taker.journal.check(exact=1)


def source_that_has_not_heard_of_the_end_is_told_when_it_asks(folder):
    for number, (mode, kind) in enumerate([("precopy", "STARTED"), ("replicate", "STARTED"), ("postcopy", "COMPLETE")]):
        os.mkdir(f"{folder}/{number}")
        with way.Crossing(BUILD, f"{folder}/{number}", mode, Harm("cut", kind)) as crossing:
            crossing.run()
            assert crossing.source.status() == "postcopy-paused", crossing.source.migration()
            assert crossing.judge() == "told"


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
