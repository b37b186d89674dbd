#!/usr/bin/env python3
"""Many clients at once, each with many commands: nothing is lost, nothing is out of order, nothing stays behind.

many.py BUILD [--clients 64] [--commands 300]

Half of the clients have negotiated oob and send without waiting, every fourth command out of band; the others send the
next command when the last is answered. Meanwhile jobs begin and end, whose events all clients must see, in one order.
Exit status 0, 1, or 77 when there is no process to be a guest.
"""
import argparse
import json
import os
import selectors
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import qmpd  # noqa: E402

EVERY_OOB = 4
IDLE_THREADS = 10  # that the pool may keep
SILENCE_S = 60
STATES = ["created", "running", "waiting", "pending", "concluded", "null"]
# A command, and what its answer is to have; in turns.
COMMANDS = [
    ("query-version", {}, lambda answer: answer["return"]["qemu"]["major"] == 7),
    ("query-targets", {}, lambda answer: answer["return"][0]["id"] == "guest"),
    ("query-status", {}, lambda answer: answer["return"]["running"]),
    ("job-cancel", {"id": "nope"}, lambda answer: answer["error"]["desc"] == "Job not found"),
    ("query-commands", {}, lambda answer: len(answer["return"]) > 40),
    ("nope", {}, lambda answer: answer["error"]["class"] == "CommandNotFound"),
    ("query-name", {"target": "guest"}, lambda answer: answer["return"]["name"] == "memguest"),
    ("query-name", {"target": "nobody"}, lambda answer: "nobody" in answer["error"]["desc"]),
]
OUT_OF_BAND = ("query-targets", {}, lambda answer: answer["return"][0]["id"] == "guest")


class Talker:
    """One client. Its in-band answers must come in order, and its out-of-band ones too; they overtake each other."""

    def __init__(self, server, number, n_commands, oob):
        self.client = server.client(oob)
        self.socket = self.client.socket
        self.socket.setblocking(False)
        self.number, self.oob, self.n_commands = number, oob, n_commands
        self.next, self.waiting_for = 0, {False: [], True: []}
        self.out, self.buffer, self.events = b"", b"", []

    def _request(self, ident):
        out_of_band = self.oob and ident % EVERY_OOB == 0
        name, arguments, _ = OUT_OF_BAND if out_of_band else COMMANDS[(ident + self.number) % len(COMMANDS)]
        self.waiting_for[out_of_band].append(ident)
        message = {"exec-oob" if out_of_band else "execute": name, "id": ident, "arguments": arguments}
        return json.dumps(message).encode() + b"\n"

    def fill(self):
        """Have something to send, as long as there is any."""
        at_once = 50 if self.oob else 1
        while self.next < self.n_commands and not self.out and (self.oob or not self.waiting_for[False]):
            until = min(self.next + at_once, self.n_commands)
            self.out = b"".join(self._request(ident) for ident in range(self.next, until))
            self.next = until

    def write(self):
        try:
            self.out = self.out[self.socket.send(self.out):]
        except BlockingIOError:
            pass
        self.fill()

    def read(self):
        data = self.socket.recv(1 << 18)
        assert data, f"client {self.number}: the server has closed the connection"
        *lines, self.buffer = (self.buffer + data).split(b"\r\n")
        for line in lines:
            self._take(json.loads(line))
        self.fill()

    def _take(self, message):
        if "event" in message:
            self.events.append((message["data"]["id"], message["data"]["status"]))
            return
        ident = message["id"]
        out_of_band = self.oob and ident % EVERY_OOB == 0
        waiting = self.waiting_for[out_of_band]
        assert waiting and waiting[0] == ident, f"client {self.number}: {ident} came, {waiting[:3]} was due"
        waiting.pop(0)
        check = OUT_OF_BAND[2] if out_of_band else COMMANDS[(ident + self.number) % len(COMMANDS)][2]
        assert check(message), f"client {self.number}: {message}"

    @property
    def is_done(self):
        return self.next == self.n_commands and not self.out and not self.waiting_for[False] and not self.waiting_for[True]


def talk(talkers, is_all_done):
    """Let all of them read and write until IS_ALL_DONE()."""
    selector = selectors.DefaultSelector()
    for talker in talkers:
        talker.fill()
        selector.register(talker.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, talker)
    alive = time.monotonic()
    while not is_all_done():
        for key, ready in selector.select(1):
            talker = key.data
            if ready & selectors.EVENT_WRITE:
                talker.write()
            if ready & selectors.EVENT_READ:
                talker.read()
                alive = time.monotonic()
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if talker.out else 0)
            if key.events != wanted:
                selector.modify(talker.socket, wanted, talker)
        assert time.monotonic() - alive < SILENCE_S, "silence: " + str(
            [(talker.number, talker.waiting_for, len(talker.out)) for talker in talkers if not talker.is_done][:3])


class Jobs:
    """One client more, which lets jobs begin and end, each when the one before has gone."""

    def __init__(self, server, image):
        self.talker = Talker(server, -1, 0, False)
        self.image, self.count, self.stopped = image, 0, False
        self.expected = []
        self.talker._take = self._take
        self._begin()

    def _say(self, name, **arguments):
        self.talker.out += json.dumps({"execute": name, "arguments": arguments}).encode()

    def _begin(self):
        self.ident = f"j{self.count}"
        self._say("snapshot-verify", **{"job-id": self.ident, "path": self.image})
        self.expected += [(self.ident, state) for state in STATES]
        self.count += 1

    def _take(self, message):
        if "event" in message:
            self.talker.events.append((message["data"]["id"], message["data"]["status"]))
            if self.talker.events[-1] == (self.ident, "concluded"):
                self._say("job-dismiss", id=self.ident)
            if self.talker.events[-1] == (self.ident, "null") and not self.stopped:
                self._begin()
        assert "error" not in message, message


def one_round(server, image, n_clients, n_commands):
    talkers = [Talker(server, number, n_commands, number % 2 == 0) for number in range(n_clients)]
    jobs = Jobs(server, image)
    everybody = [*talkers, jobs.talker]

    def is_all_done():
        jobs.stopped = jobs.stopped or all(talker.is_done for talker in talkers)
        return jobs.stopped and all(len(talker.events) >= len(jobs.expected) for talker in everybody)
    begin = time.monotonic()
    talk(everybody, is_all_done)
    seconds = time.monotonic() - begin
    for talker in everybody:
        assert talker.events == jobs.expected, f"client {talker.number} saw {talker.events[:20]}, not {jobs.expected[:20]}"
        talker.client.close()
    print(f"{n_clients} clients, {n_clients * n_commands} commands, {jobs.count} jobs, {seconds:.1f} s", flush=True)


def commands_of_many_clients_are_all_answered_in_order(folder):
    with badday.ProcessUnderTest(OPTIONS.build, size="4M") as guest, qmpd.Vmsnapd(OPTIONS.build, folder) as server:
        with server.client() as client:
            client.add_process("guest", guest.pid)
            client.run_job("snapshot-save", path=f"{folder}/image")
            descriptors, threads = len(server.descriptors()) - 1, len(server.threads())
        for _ in range(2):
            one_round(server, f"{folder}/image", OPTIONS.clients, OPTIONS.commands)
            server.wait_descriptors(descriptors)
            badday.wait_until(lambda: len(server.threads()) <= threads + IDLE_THREADS, 30,
                              f"threads that had something to do are gone: {server.threads()}")


if __name__ == "__main__":
    PARSER = argparse.ArgumentParser()
    PARSER.add_argument("build", type=os.path.abspath)
    PARSER.add_argument("--clients", type=int, default=64)
    PARSER.add_argument("--commands", type=int, default=300)
    OPTIONS = PARSER.parse_args()
    cases.run(globals())
