"""One crossing with a proxy in the way, and the verdict on what is left of it.

    crossing = Crossing(build, folder, "precopy", Harm("cut", "GO"))
    crossing.run()             begins, does harm, waits until both sides rest
    crossing.judge()           AssertionError unless what is left is right

What is right, whatever was done to the connection:

- at no moment did both sides run the guest, and in the end exactly one does, or none and both wait to be connected
  again, which then brings it to its end; and so it does where only the source waits, as it has not heard of the end;
- the guest has every byte (it is checked before it runs on the other side, and where it ends up), and goes on;
- who has lost says why.

A source that has the guest after all must be able to move it again, so it is moved once more where the connection is
whole.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import migrate  # noqa: E402
import proxy  # noqa: E402

SILENCE_MS = 1500         # after which a connection is given up
REST_S = 20               # in which both sides come to rest, whatever happens
BANDWIDTH = 32 << 20
SIZE = "8M"
GUEST = {"size": SIZE, "rate": 20000, "hot": "10%", "prefill": True, "regions": 2, "silence": SILENCE_MS}
RESTS = {"completed", "failed", "cancelled", "postcopy-paused", "ended", None}
EPOCHS = 3

MODES = {
    "precopy": {"capabilities": []},
    "multifd": {"capabilities": ["multifd"], "parameters": {"multifd_channels": 4}},
    "postcopy": {"capabilities": ["postcopy-ram"], "guest": {"verify": False, "peek": 16}},
    "replicate": {"capabilities": []},
}


class Crossing:
    """MODE: one of MODES; HARMS: of proxy.Harm; OPTIONS: of both VMMs, besides GUEST."""

    def __init__(self, build, folder, mode, *harms, **options):
        self.build, self.folder, self.mode = build, folder, mode
        self.journal = migrate.Journal(folder)
        self.vms = []
        self.guest = {**GUEST, "verify": True, **MODES[mode].get("guest", {}), **options}
        self.source, self.destination = self.vms = migrate.pair(build, folder, self.journal, **self.guest)
        self.proxy = proxy.Proxy(f"{folder}/way", f"{folder}/way-in", *harms)
        self.harmed = bool(harms)

    # ---- what happens ----

    def _begin(self):
        mode = MODES[self.mode]
        # Of huge pages, all are dirty all the time: only post-copy ends while that is sent so slowly.
        huge = self.guest.get("memory") == "hugetlb" and self.mode != "postcopy"
        bandwidth = BANDWIDTH * (8 if huge else 1)
        self.source.set_parameters(max_bandwidth=bandwidth, max_postcopy_bandwidth=bandwidth, downtime_limit=200,
                                   **mode.get("parameters", {}))
        for vm in self.vms:
            vm.set_capabilities(*mode["capabilities"])
        if self.mode == "multifd":
            self.destination.set_parameters(**mode["parameters"])
        if self.mode == "replicate":
            self.source.command("replicate", uri=self.proxy.uri, interval=50)
        else:
            self.source.migrate(self.proxy.uri)

    def _is_over(self):
        return self.source.status() in RESTS

    def _go_on(self):
        """What the mode's operator does in the middle of it."""
        if self.mode == "postcopy":
            time.sleep(0.1)
            self._try("migrate-start-postcopy")
        if self.mode == "replicate":
            badday.wait_until(lambda: self._is_over() or self.source.migration().get("epoch", 0) >= EPOCHS, REST_S,
                              f"{EPOCHS} epochs: {self.source.migration()}")
            self._try("replicate-hand-over")

    def _try(self, command):
        """It may be over already."""
        if not self._is_over():
            try:
                self.source.command(command)
            except Exception as error:  # of the moment in between
                assert self._is_over() or self.proxy.fired.is_set(), error

    def _destination_rests(self):
        return self.destination.status() in RESTS - {None}

    def run(self):
        """Until both rest. Without harm it has to succeed."""
        self._begin()
        self._go_on()
        badday.wait_until(self._is_over, REST_S, f"the source of {self.mode} rests: {self.source.migration()}")
        badday.wait_until(self._destination_rests, REST_S, f"the destination rests: {self.destination.status()}")
        if not self.harmed:
            self.source.wait_status("completed")

    # ---- what is left ----

    def judge(self):
        """AssertionError unless what is left is right. Return: in a word, what it was."""
        running = self.journal.running()
        assert len(running) <= 1, f"both run: {self.journal.text()}"
        if running == ["source"]:
            outcome = self._judge_source()
        elif running == ["destination"]:
            outcome = self._judge_destination()
        else:
            outcome = self._judge_nobody()
        self.journal.check(exact=self.guest["verify"] and outcome != "source")
        for vm in self.vms:
            vm.check_complaints()
        return outcome

    def _judge_source(self):
        """It has stayed: it says why, and can be moved where nothing is in the way."""
        why = self.source.why()
        assert self.source.status() in ("failed", "cancelled"), self.source.migration()
        assert why, "the source does not say why"
        assert self.destination.run_state() in ("inmigrate", "ended"), self.destination.run_state()
        if self.destination.status() in ("failed", "ended"):
            assert self.destination.why(), "the destination does not say why"
        self.source.check_guest()
        if self.mode == "replicate":
            return self._promote()
        self._move_again()
        self.journal.check_goes_on()
        return "source"

    def _move_again(self):
        other = migrate.ThreadVm(self.build, self.folder, "another", self.journal,
                                 incoming=f"unix:{self.folder}/way-b", **self.guest)
        self.vms.append(other)
        if self.mode != "replicate":
            other.set_capabilities(*MODES[self.mode]["capabilities"])
        self.source.set_parameters(max_bandwidth=0)
        self.source.migrate(f"unix:{self.folder}/way-b")
        self.source.wait_status("completed")
        other.wait_status("completed")
        other.check_guest()

    def _promote(self):
        """A standby takes over from its last epoch when the source is dead, and only if it has one."""
        if self.destination.run_state() == "ended" or self.destination.migration().get("epoch", 0) == 0:
            self._move_again()
            return "source"
        self.source.kill()
        self.destination.wait_status("postcopy-paused")
        self.destination.command("replicate-promote")
        self.destination.wait_status("completed")
        self.destination.check_guest()
        return "standby"

    def _judge_destination(self):
        """It has arrived. What has not is fetched; the source must not think that it may run it."""
        paused = [vm for vm in self.vms if vm.status() == "postcopy-paused"]
        if self.source in paused:
            self._recover(paused)
        assert self.source.run_state() == "postmigrate", self.source.run_state()
        assert self.source.status() == "completed", self.source.migration()
        assert self.destination.status() == "completed", self.destination.migration()
        self.destination.check_guest()
        self.journal.check_goes_on()
        return "recovered" if self.destination in paused else "told" if paused else "destination"

    def _judge_nobody(self):
        assert self.source.status() == "postcopy-paused", f"nobody runs: {self.source.migration()}"
        assert self.destination.status() == "postcopy-paused", f"nobody runs: {self.destination.migration()}"
        self._recover(self.vms)
        self.destination.check_guest()
        self.journal.check_goes_on()
        return "recovered"

    def _recover(self, waiting):
        for vm in waiting:
            assert vm.why(), f"{vm.name} does not say why it waits"
        self.destination.command("migrate-recover", uri=f"unix:{self.folder}/way-b")
        self.source.set_parameters(max_bandwidth=0, max_postcopy_bandwidth=0)
        self.source.migrate(f"unix:{self.folder}/way-b", resume=True)
        self.source.wait_status("completed")
        self.destination.wait_status("completed")

    def close(self):
        self.proxy.close()
        for vm in self.vms:
            vm.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()
