#!/usr/bin/env python3
"""Bad days of the helper's clients: they vanish, do not read, flood, and talk nonsense. Nobody else notices.

    badday-client.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import os
import random
import select
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
MIB = 1 << 20
SERVED_S = 2          # in which another client has its answer, on a busy machine too
CLIENTS_MAX = 256     # of server.h
GARBAGE_S = 3
SCHEMA = b'{"execute": "query-qmp-schema"}\n'


def check_served(server):
    """Whoever else comes is served as ever."""
    begin = time.monotonic()
    with server.client() as client:
        client.command("query-targets")
    seconds = time.monotonic() - begin
    assert seconds < SERVED_S, f"another client waited for {seconds:.1f} s"


class Watched:
    """What the helper had before something bad happened, and must not have more of afterwards."""

    def __init__(self, server):
        self.server = server
        check_served(server)
        server.client().close()
        time.sleep(0.2)
        self.descriptors, self.memory = len(server.descriptors()), server.memory_bytes()

    def grown_bytes(self):
        return self.server.memory_bytes() - self.memory

    def check(self, most_bytes=8 * MIB):
        self.server.wait_descriptors(self.descriptors)
        check_served(self.server)
        badday.wait_until(lambda: self.grown_bytes() <= most_bytes, 20,
                          f"memory grew by {most_bytes} bytes at most: {self.grown_bytes()}")


def stuff(client, data, seconds=30):
    """Send DATA again and again, without reading, until nothing goes any more. Return: bytes that went."""
    client.socket.setblocking(False)
    sent, end = 0, time.monotonic() + seconds
    while select.select([], [client.socket], [], 0.5)[1]:
        assert time.monotonic() < end, f"the helper swallows without end: {sent} bytes"
        try:
            sent += client.socket.send(data[sent % len(data):])
        except BlockingIOError:
            pass
    client.socket.settimeout(qmpd.TIMEOUT_S)
    return sent


# ---- it vanishes ---------------------------------------------------------------------------------------------

def client_that_vanishes_in_mid_request_is_forgotten(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        for request in (b"", b"{", b'{"execute": "query-na', b'{"execute": "query-name", "arguments": {"target": "\xe2\x82'):
            for oob in (False, True):
                client = server.client(oob)
                client.send(request)
                client.close()
        server.connect().close()
        watched.check()


def client_that_vanishes_in_mid_reply_is_forgotten(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        for oob in (False, True):
            for read_bytes in (0, 1, 5000):
                client = server.client(oob)
                client.send(SCHEMA * 100)
                while read_bytes > 0:
                    read_bytes -= len(client.socket.recv(read_bytes))
                client.close()
        watched.check()


def commands_queued_by_a_client_that_vanishes_are_not_done(folder):
    """They wait behind one that takes its time, as a QEMU is silent."""
    silent = badday.listen(f"{folder}/silent")
    with qmpd.Vmsnapd(BUILD, folder) as server, server.client() as witness:
        watched = Watched(server)
        client = server.client(oob=True)
        client.request("target-add", {"id": "g", "driver": "qemu", "qmp-socket": f"{folder}/silent"})
        for number in range(8):
            client.request("snapshot-delete", {"job-id": f"j{number}", "path": f"{folder}/nope"})
        connection, _ = silent.accept()
        time.sleep(0.3)
        client.close()
        time.sleep(0.3)
        connection.close()
        watched.check()
        assert witness.command("query-jobs") == [] and not witness.events, witness.events
    silent.close()


# ---- descriptors ---------------------------------------------------------------------------------------------

def descriptors_of_a_client_that_vanishes_are_closed(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server, open("/dev/null", "rb") as null:
        watched = Watched(server)
        for oob in (False, True):
            client = server.client(oob)
            client.command("getfd", fdname="kept", fds=[null.fileno()])
            client.command("query-version", fds=[null.fileno()] * 3)
            client.refused("getfd", "digit", fdname="1", fds=[null.fileno()])
            client.command("add-fd", fdset_id=1, fds=[null.fileno()])
            assert len(server.descriptors()) <= watched.descriptors + 4, server.descriptors()
            client.send(b'{"execute": "getfd", "argu', fds=[null.fileno()])
            client.close()
            server.wait_descriptors(watched.descriptors)
        with server.client() as client:
            assert client.command("query-fdsets") == [], "a set stays after the last client"
        watched.check()


def descriptors_that_nobody_uses_do_not_pile_up(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server, open("/dev/null", "rb") as null:
        watched = Watched(server)
        for oob in (False, True):
            with server.client(oob) as client:
                for _ in range(200):
                    client.request("query-version", fds=[null.fileno()] * 200)
                for _ in range(200):
                    assert "return" in client.answer()
                assert len(server.descriptors()) <= watched.descriptors + 20, len(server.descriptors())
        watched.check()


def descriptor_is_that_of_its_own_request(folder):
    """One that was passed with a request that failed is not taken for the next one's."""
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD, size="4M") as guest:
        for oob in (False, True):
            with server.client(oob) as client, open(f"{folder}/wrong", "wb") as wrong, open(f"{folder}/right", "wb") as right:
                if not oob:
                    client.add_process("guest", guest.pid)
                client.command("query-version", fds=[wrong.fileno()])
                client.refused("getfd", "fdname", fdname=1, fds=[wrong.fileno()])
                client.command("getfd", fdname="core", fds=[right.fileno()])
                client.command("dump-guest-memory", paging=False, protocol="fd:core")
                assert os.path.getsize(wrong.name) == 0 and os.path.getsize(right.name) > 0


# ---- it does not read ----------------------------------------------------------------------------------------

def client_that_does_not_read_gets_all_answers_later(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        for oob in (False, True):
            client = server.client(oob)
            sent = stuff(client, SCHEMA * 4096)
            check_served(server)
            assert watched.grown_bytes() < 16 * MIB, f"{watched.grown_bytes()} bytes for a client that does not read"
            wanted = -(-sent // len(SCHEMA))
            for number in range(wanted):
                assert client.read_line().startswith(b'{"return": [{'), f"answer {number} of {wanted}"
                if number == wanted // 2 and sent % len(SCHEMA):
                    client.send(SCHEMA[sent % len(SCHEMA):])
            client.command("query-version")
            client.close()
            print(f"oob {oob}: {sent} bytes of requests, {wanted} answers")
        watched.check()


def client_that_does_not_read_out_of_band_answers_is_bounded(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        client = server.client(oob=True)
        request = b'{"exec-oob": "query-targets", "id": "' + b"x" * 4000 + b'"}\n'
        try:
            sent = stuff(client, request * 64)
            print(f"{sent} bytes of requests were taken")
        except (BrokenPipeError, ConnectionResetError):
            print("the client was given up")
        check_served(server)
        assert watched.grown_bytes() < 64 * MIB, f"{watched.grown_bytes()} bytes"
        client.close()
        watched.check(24 * MIB)


def client_that_does_not_read_events_is_given_up(folder):
    """When it has missed 16 MiB of them; others see them all."""
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        deaf, busy = server.client(), server.client(oob=True)
        seen, begin, rounds = 0, time.monotonic(), 0
        ident = "j" + "x" * 3000
        while not deaf_is_closed(deaf) and time.monotonic() - begin < 60:
            busy.command("snapshot-delete", job_id=ident, path=f"{folder}/nope")
            busy.wait_event("JOB_STATUS_CHANGE", id=ident, status="concluded")
            busy.command("job-dismiss", id=ident)
            busy.wait_event("JOB_STATUS_CHANGE", id=ident, status="null")
            rounds += 1
            if rounds % 100 == 0:
                seen = max(seen, watched.grown_bytes())
        print(f"given up after {rounds} jobs in {time.monotonic() - begin:.1f} s, at most {seen / MIB:.1f} MiB held")
        assert deaf_is_closed(deaf), f"not given up after {rounds} jobs"
        assert seen < 40 * MIB, seen
        for client in (deaf, busy):
            client.close()
        watched.check(40 * MIB)


def deaf_is_closed(client):
    poll = select.poll()
    poll.register(client.socket, 0)
    return bool(poll.poll(0))


# ---- nonsense ------------------------------------------------------------------------------------------------

def string_of_64_mib_is_refused_and_forgotten(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        piece = b"x" * MIB
        with server.client() as client:
            client.send(b'{"execute": "query-name", "arguments": {"target": "')
            for number in range(65):
                client.send(piece)
                if number % 16 == 0:
                    check_served(server)
            client.send(b'"}}\n')
            error = client.answer()["error"]
            print(f"says: {error['desc'][:200]}; {watched.grown_bytes() / MIB:.0f} MiB held")
            assert error["class"] == "GenericError" and "limit" in error["desc"], error
            while "error" in client.read():  # what is left of it
                client.send(b'\n{"execute": "query-version"}\n')
        watched.check()


def garbage_for_seconds_is_answered_by_errors(folder):
    chance = random.Random(4)
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        client = server.client()
        client.socket.setblocking(False)
        sent = received = 0
        end = time.monotonic() + GARBAGE_S
        piece = b""
        while time.monotonic() < end:
            piece = piece or chance.randbytes(4096)
            can_read, can_write, _ = select.select([client.socket], [client.socket], [], 1)
            if can_write:
                n = client.socket.send(piece)
                sent, piece = sent + n, piece[n:]
            if can_read:
                received += len(client.socket.recv(1 << 20))
        check_served(server)
        print(f"{sent} bytes of garbage, {received} bytes of complaints")
        client.socket.settimeout(20)
        client.send(b'\n\x01\n{"execute": "query-version", "id": "found again"}\n')
        while b"found again" not in client.read_line():
            pass
        client.command("query-version")
        client.close()
        watched.check()


# ---- many, and half ------------------------------------------------------------------------------------------

def clients_beyond_the_limit_are_sent_away(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        clients = [server.connect() for _ in range(300)]
        greeted = [client for client in clients if was_greeted(client)]
        assert len(greeted) == CLIENTS_MAX, len(greeted)
        for client in greeted:
            client.command("qmp_capabilities")
        for client in greeted:
            client.command("query-version")
        for client in clients:
            client.close()
        watched.check(16 * MIB)


def was_greeted(client):
    try:
        return "QMP" in client.read()
    except (qmpd.Closed, ConnectionResetError):
        return False


def client_that_half_closes_gets_its_answers(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        for oob in (False, True):
            client = server.client(oob)
            client.send(SCHEMA * 50 + b'{"execute": "nope", "id": 7}')
            client.socket.shutdown(socket.SHUT_WR)
            for _ in range(50):
                assert "return" in client.read()
            assert client.read()["id"] == 7
            assert client.is_closed(), "it stays open"
            client.close()
        client = server.connect()
        client.socket.shutdown(socket.SHUT_WR)
        assert "QMP" in client.read() and client.is_closed()
        client.close()
        watched.check()


def client_that_half_closes_in_mid_request_is_closed(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        with server.client() as client:
            client.send(b'{"execute": "query-version"')
            client.socket.shutdown(socket.SHUT_WR)
            assert client.is_closed()
        watched.check()


def client_that_shuts_its_reading_side_is_closed(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        watched = Watched(server)
        with server.client() as client:
            client.socket.shutdown(socket.SHUT_RD)
            client.send(SCHEMA)
            server.wait_descriptors(watched.descriptors)
        watched.check()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
