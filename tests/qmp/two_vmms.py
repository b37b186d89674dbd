"""Two VMMs of tests/migrate (thread-vm) that a guest is moved or replicated between, as their clients see them.

    with two_vmms.Two(build, folder) as two:
        two.source.migrate(two.uri)
        assert two_vmms.follow(two.source, "completed", "failed") == […]
        two.check_moved()
"""
import os

import migrate

MIB = 1 << 20
SLOW = MIB  # a second: what is moved at this rate takes a minute, in which it can be looked at on any machine
END_S = 30  # for what takes no time on a quick machine
RAM = {"transferred", "remaining", "total", "duplicate", "skipped", "normal", "normal-bytes", "dirty-pages-rate", "mbps",
       "dirty-sync-count", "postcopy-requests", "page-size", "multifd-bytes", "pages-per-second", "precopy-bytes",
       "downtime-bytes", "postcopy-bytes", "dirty-sync-missed-zero-copy"}
PROGRESS = {"status", "total-time", "setup-time", "expected-downtime", "ram"}
QEMUS_ENDED = {"completed": {"status", "total-time", "setup-time", "downtime", "ram"},
               "failed": {"status", "error-desc"}, "cancelled": {"status"}}


def switch_on(vm, *capabilities):
    """Beside those that are on."""
    vm.command("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in capabilities])


class Two:
    """@source runs a guest, @destination waits for it, at @uri or, with DEFER, for migrate-incoming."""

    def __init__(self, build, folder, defer=False, full=True, **options):
        self.uri = f"unix:{folder}/way-in"
        self.journal = migrate.Journal(folder)
        options = {"rate": 2000, **options}
        self.source, self.destination = migrate.pair(
            build, folder, self.journal, source={"prefill": full}, destination={"verify": options.pop("verify", True)},
            uri="defer" if defer else self.uri, **options)
        for vm in (self.source, self.destination):
            switch_on(vm, "events")

    def slowly(self, *capabilities):
        """Begin a move that can be looked at."""
        switch_on(self.source, *capabilities)
        self.source.set_parameters(max_bandwidth=SLOW)
        self.source.migrate(self.uri)
        return self.source.wait_status("active")

    def quickly(self):
        """Let it come to an end."""
        self.source.set_parameters(max_bandwidth=0)

    def check_moved(self):
        self.source.wait_status("completed")
        self.destination.wait_status("completed")
        assert self.source.run_state() == "postmigrate", self.source.run_state()
        self.destination.check_guest()
        self.journal.check(exact=1)
        self.journal.check_goes_on()

    def check_stayed(self):
        assert self.source.run_state() == "running", self.source.run_state()
        self.source.check_guest()
        self.journal.check()

    def check_given_up(self):
        """The destination has no guest, and none will come: it is of no use then, says so, and ends."""
        self.destination.process.wait(END_S)
        assert self.destination.process.returncode == 1, self.destination.process.returncode
        assert "does not come" in self.destination.log(), self.destination.log()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_exception):
        if kind is None:
            for vm in (self.source, self.destination):
                if vm.process.poll() is None:
                    vm.end()
        for vm in (self.source, self.destination):
            vm.close()


def event_words(event):
    """"STOP"; "active" of MIGRATION; "pass 2" of MIGRATION_PASS."""
    data = event.get("data", {})
    assert event["event"] == "TARGET_GONE" or data.get("target") == "embedded", event
    return {"MIGRATION": data.get("status"), "MIGRATION_PASS": f"pass {data.get('pass')}"}.get(event["event"], event["event"])


def next_word(vm):
    return event_words(vm.qmp.events.pop(0) if vm.qmp.events else vm.qmp.read())


def follow(vm, *last):
    """The events up to one of LAST, but those of rounds: they are held back for up to a second, and come anywhere."""
    seen = []
    while not seen or seen[-1] not in last:
        word = next_word(vm)
        if not word.startswith("pass"):
            seen.append(word)
    return seen


def follow_passes(vm, number):
    """The rounds that are told of, up to NUMBER or beyond it: of those that are shorter than a second not all are."""
    passes = []
    while not passes or passes[-1] < number:
        word = next_word(vm)
        assert word not in ("failed", "completed"), f"{word} after {passes}: {vm.migration()}"
        if word.startswith("pass"):
            passes.append(int(word.split()[1]))
    return passes


def check_fields(found, more=()):
    """That these, and no others, are what query-migrate says of the source in this status."""
    expected = QEMUS_ENDED.get(found["status"], PROGRESS) | set(more)
    assert set(found) == expected, set(found) ^ expected
    if "ram" in found:
        ram = found["ram"]
        assert set(ram) == RAM, set(ram) ^ RAM
        assert 0 <= ram["remaining"] <= ram["total"] == 64 * MIB and ram["page-size"] == os.sysconf("SC_PAGESIZE"), ram
    return found
