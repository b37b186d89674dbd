#!/usr/bin/env python3
"""A move over tcp between two network namespaces, whose link goes down in the middle.

badday-net.py BUILD [WORD...]      only the cases whose name holds one of these words

Nobody closes anything then: both sides have to find out by the silence. Needs ip(8), and the right to make namespaces.
"""
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import migrate  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
SILENCE_MS = 1500
REST_S = 20
GUEST = {"size": "8M", "rate": 20000, "hot": "10%", "prefill": True, "silence": SILENCE_MS}
ADDRESSES = {"source": "192.0.2.1", "destination": "192.0.2.2"}
PORT = 4444


def ip(*words, check=True):
    try:
        result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise cases.Skip("there is no ip(8)") from error
    if check and result.returncode != 0:
        raise cases.Skip(f"ip {' '.join(words)}: {result.stderr.strip()}")


class Net:
    """Two namespaces with a link between them, called after this process."""

    def __init__(self):
        self.spaces = {side: f"snap-{side[0]}{os.getpid()}" for side in ADDRESSES}
        self.links = {side: f"sn{side[0]}{os.getpid()}" for side in ADDRESSES}

    def _make(self):
        for space in self.spaces.values():
            ip("netns", "add", space)
        ip("link", "add", self.links["source"], "type", "veth", "peer", "name", self.links["destination"])
        for side, space in self.spaces.items():
            ip("link", "set", self.links[side], "netns", space)
            self.inside(side, "addr", "add", f"{ADDRESSES[side]}/24", "dev", self.links[side])
            self.inside(side, "link", "set", "lo", "up")
            self.inside(side, "link", "set", self.links[side], "up")

    def inside(self, side, *words):
        ip("-n", self.spaces[side], *words)

    def prefix(self, side):
        return ["ip", "netns", "exec", self.spaces[side]]

    def set_link(self, state):
        self.inside("source", "link", "set", self.links["source"], state)

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception):
        for space in self.spaces.values():
            ip("netns", "del", space, check=False)
        ip("link", "del", self.links["source"], check=False)


class Move(migrate.Vms):
    """Two VMMs, each in its namespace."""

    def __init__(self, net, folder):
        self.folder, self.journal = folder, migrate.Journal(folder)
        self.uri = f"tcp:{ADDRESSES['destination']}:{PORT}"
        self.source, self.destination = self.vms = migrate.pair(
            BUILD, folder, self.journal, uri=self.uri, source={"prefix": net.prefix("source")},
            destination={"prefix": net.prefix("destination")}, **GUEST)

    def begin(self, *capabilities):
        for vm in self.vms:
            vm.set_capabilities(*capabilities)
            vm.set_parameters(multifd_channels=2)
        self.source.set_parameters(max_bandwidth=8 << 20, max_postcopy_bandwidth=2 << 20)
        self.source.migrate(self.uri)


def link_down_in_precopy_leaves_the_guest_where_it_was(folder):
    with Net() as net, Move(net, folder) as move:
        move.begin("multifd")
        time.sleep(0.3)
        net.set_link("down")
        begin = time.monotonic()
        badday.wait_until(lambda: move.source.status() == "failed", REST_S, f"it fails: {move.source.migration()}")
        print(f"after {time.monotonic() - begin:.1f} s: {move.source.why()}")
        move.source.check_guest()
        badday.wait_until(lambda: move.destination.status() in ("failed", "ended"), REST_S, "the destination fails")
        print(f"the destination: {move.destination.why()}")
        assert not move.journal.events("destination", "start"), move.journal.text()
        net.set_link("up")
        uri = move.uri.replace(str(PORT), str(PORT + 1))
        with migrate.ThreadVm(BUILD, folder, "another", move.journal, incoming=uri, verify=True,
                              prefix=net.prefix("destination"), **GUEST) as other:
            other.set_capabilities("multifd")
            other.set_parameters(multifd_channels=2)
            move.source.set_parameters(max_bandwidth=0)
            move.source.migrate(uri)
            move.source.wait_status("completed")
            other.wait_status("completed")
            other.check_guest()
            move.journal.check(exact=1)
            move.journal.check_goes_on()


def link_down_in_postcopy_pauses_it_until_it_is_up_again(folder):
    with Net() as net, Move(net, folder) as move:
        move.destination.close()  # the one that checks everything would fetch everything
        move.vms[1] = move.destination = migrate.ThreadVm(
            BUILD, folder, "destination-2", move.journal, incoming=move.uri, prefix=net.prefix("destination"), **GUEST)
        move.begin("postcopy-ram")
        time.sleep(0.2)
        move.source.command("migrate-start-postcopy")
        move.source.wait_status("postcopy-active")
        net.set_link("down")
        for vm in move.vms:
            vm.wait_status("postcopy-paused", seconds=REST_S)
            print(f"{vm.name}: {vm.why()}")
        net.set_link("up")
        uri = move.uri.replace(str(PORT), str(PORT + 1))
        move.destination.command("migrate-recover", uri=uri)
        move.source.set_parameters(max_postcopy_bandwidth=0)
        move.source.migrate(uri, resume=True)
        move.source.wait_status("completed")
        move.destination.wait_status("completed")
        move.destination.check_guest()
        move.journal.check()
        move.journal.check_goes_on()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
