#!/usr/bin/env python3
"""Two guests, a QEMU and a process, both under load, saved at the same moment through one helper.

two-guests.py BUILD [WORD...]      only the cases whose name holds one of these words

Both images are checked word for word against the guests' write sequence.
"""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
TIMES = 3
STATES = ["created", "running", "waiting", "pending", "concluded", "null"]
PAUSE_MAX_US = 1e6  # what a guest of this size must not even come near


class TwoGuests:
    """Saved side by side, over and over."""

    def __init__(self, folder, machine, process, server):
        self.folder, self.server = folder, server
        self.guests = {"machine": machine, "process": process}
        self.witness = server.client()  # who gives no command, and sees all events too
        self.client = server.client(oob=True)
        self.client.add_qemu("machine", machine.sockets[0])
        self.client.add_process("process", process.pid)

    def image(self, name):
        return f"{self.folder}/image-{name}"

    def save(self):
        """Both commands at once, without waiting in between. Return: what each job came to."""
        for name in self.guests:
            self.client.request("snapshot-save", {"job-id": name, "target": name, "path": self.image(name)})
        for name in self.guests:
            assert self.client.answer() == {"return": {}}, name
        self._check_both_run()
        statistics = {name: None for name in self.guests}
        while not all(statistics.values()):
            for job in self.client.command("query-job-statistics"):
                if job["status"] == "concluded":
                    statistics[job["id"]] = job
        for name in self.guests:
            self.client.command("job-dismiss", id=name)
        return {name: job["result"] for name, job in statistics.items()}

    def print_alone(self):
        """What the pauses are to be compared with, on a machine that is not always the same."""
        for name in self.guests:
            result = self.client.run_job("snapshot-save", target=name, path=self.image(name))
            print(f"{name} alone: stopped for {result['pause-us']:.0f} us, {result['total-ms']:.0f} ms", flush=True)
            shutil.rmtree(self.image(name))
        self.witness.command("query-version")
        self.client.events, self.witness.events = [], []

    def _check_both_run(self):
        both = [job["status"] for job in self.client.command("query-jobs")]
        assert both == ["running", "running"], both

    def check_events(self, client):
        """Of each job its states in order, of the QEMU one STOP and one RESUME while its job ran."""
        client.command("query-version")
        events, client.events = client.events, []
        for name in self.guests:
            seen = [event["data"]["status"] for event in events if event["data"].get("id") == name]
            assert seen == STATES, (name, seen)
        machine = [event["event"] for event in events
                   if event["data"].get("target") == "machine" or event["data"].get("id") == "machine"]
        assert machine == ["JOB_STATUS_CHANGE"] * 2 + ["STOP", "RESUME"] + ["JOB_STATUS_CHANGE"] * 4, machine
        times = [(event["timestamp"]["seconds"], event["timestamp"]["microseconds"]) for event in events]
        assert times == sorted(times), times

    def check_images(self):
        for name, guest in self.guests.items():
            if name == "machine":
                badday.check_tool(BUILD, "tests/guest/seqcheck", "--multiboot", f"{self.image(name)}/ram/ram.img")
            badday.check_complete(guest, self.image(name))  # and removes it


def guests_saved_at_the_same_moment_are_both_exact(folder):
    os.mkdir(f"{folder}/qemu")
    with badday.QemuUnderTest(BUILD, f"{folder}/qemu") as machine, badday.ProcessUnderTest(BUILD, threads=2) as process, \
            qmpd.Vmsnapd(BUILD, folder) as server:
        two = TwoGuests(folder, machine, process, server)
        two.print_alone()
        for _ in range(TIMES):
            results = two.save()
            for name, result in results.items():
                print(f"{name}: stopped for {result['pause-us']:.0f} us, {result['faults']} faults, "
                      f"{result['total-ms']:.0f} ms", flush=True)
                assert 0 < result["pause-us"] < PAUSE_MAX_US, result
            for client in (two.client, two.witness):
                two.check_events(client)
            two.check_images()
        for name in two.guests:
            two.client.command("target-del", id=name)
        for guest in two.guests.values():
            guest.check_released()
            guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
