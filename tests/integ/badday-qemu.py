#!/usr/bin/env python3
"""Bad days of QEMU guests: sockets that are none of QEMU's, vmsnap or QEMU killed, monitors that are taken.

    badday-qemu.py BUILD [WORD...]      only the cases whose name holds one of these words

The moments are random: SNAP_TEST_SEED repeats a run, SNAP_TEST_MOMENTS says how many there are.
"""
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import qemu  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
SEED = int(os.environ.get("SNAP_TEST_SEED", random.randrange(1 << 32)))
MOMENTS = int(os.environ.get("SNAP_TEST_MOMENTS", 20))
FEW = max(MOMENTS // 5, 1)
BOUND_S = 6
PACE = ("--max-bandwidth", "200M")
GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


def refuse(folder, path, *words, seconds=BOUND_S):
    """A save through PATH fails in time, with a line that holds WORDS, its name if there are none."""
    begin = time.monotonic()
    result = badday.vmsnap(BUILD, "save", "--qemu", path, f"{folder}/image")
    assert time.monotonic() - begin < seconds, f"took {time.monotonic() - begin:.1f} s"
    badday.check_refused(result, *(words or [path]))
    badday.check_incomplete(BUILD, f"{folder}/image")


class Impostor:
    """Listens at PATH and does TALK(connection) with everyone who comes."""

    def __init__(self, path, talk):
        self.server = badday.listen(path)
        self.talk = talk
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            try:
                connection, _address = self.server.accept()
            except OSError:
                return
            try:
                self.talk(connection)
            except OSError:
                pass
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.server.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.server.close()


def refuse_all(folder, talks):
    """refuse() a server for each of TALKS, all at once: what takes long is to wait."""
    failures = []

    def one(name, talk):
        os.mkdir(f"{folder}/{name}")
        try:
            with Impostor(f"{folder}/{name}/socket", talk):
                refuse(f"{folder}/{name}", f"{folder}/{name}/socket")
        except Exception as error:  # for the main thread to raise
            failures.append(error)
    threads = [threading.Thread(target=one, args=item) for item in talks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def answer_all(connection, answer):
    """A greeting, and ANSWER(name of the command) to everything."""
    connection.sendall(json.dumps(GREETING).encode() + b"\r\n")
    for line in connection.makefile("rb"):
        connection.sendall(json.dumps(answer(json.loads(line).get("execute"))).encode() + b"\r\n")


def wait_for_hang_up(connection):
    connection.settimeout(20)
    while connection.recv(4096):
        pass


# ---- sockets that are none of QEMU's -------------------------------------------------------------------------


def socket_that_is_not_there_is_refused(folder):
    refuse(folder, f"{folder}/missing", "o such file")
    with open(f"{folder}/file", "w", encoding="ascii") as file:
        file.write("QMP")
    refuse(folder, f"{folder}/file")
    refuse(folder, folder)
    badday.check_refused(badday.vmsnap(BUILD, "save", "--qemu", f"{folder}/{'n' * 120}", f"{folder}/image"), "long",
                         status=2)
    badday.listen(f"{folder}/stale").close()
    refuse(folder, f"{folder}/stale")
    result = badday.vmsnap(BUILD, "save", "--qemu", "", f"{folder}/image")
    assert result.returncode in (1, 2), result
    badday.check_one_line(result.stderr)


def socket_nobody_accepts_is_refused(folder):
    """A backlog that is full, as of a stopped process."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{folder}/full")
    server.listen(0)
    waiting = []
    for _ in range(4):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(f"{folder}/full")
        except BlockingIOError:
            pass
        waiting.append(client)
    refuse(folder, f"{folder}/full")
    for client in [*waiting, server]:
        client.close()


def socket_that_talks_garbage_is_refused(folder):
    """Whatever it says."""
    greeting = json.dumps(GREETING).encode() + b"\r\n"
    for number, text in enumerate([
            b"hello, what is your name?\r\n", b"\0" * 4096, b"{}\r\n", b"[]\r\n", b"null\r\n", b"42\r\n",
            b'{"QMP": 1}\r\n', b'{"QMP": {}}\r\n', b'{"QMP": {"version": {"qemu": "x"}, "capabilities": 3}}\r\n',
            b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xfe{\x80", b"[" * 100000, b'{"a":' * 50000,
            greeting + b"garbage\r\n", greeting + b"{}\r\n", greeting + b'{"return": 1}\r\n',
            greeting + b'{"return": {}}\r\n' * 3, greeting + b'{"error": {}}\r\n', greeting + b'{"error": 1}\r\n',
            greeting + b'{"error": {"class": "GenericError", "desc": "two\\nlines \\u001b[31m"}}\r\n',
            greeting + b'{"event": 5}\r\n' * 100 + b"x", greeting + b'{"return": {}}\r\n{"return": {"pid": "x"}}\r\n']):
        def say(connection, text=text):
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            wait_for_hang_up(connection)
        path = f"{folder}/garbage{number}"
        with Impostor(path, say):
            refuse(folder, path, "Q")


def socket_that_never_stops_is_refused(folder):
    def flood(connection):
        while True:
            connection.sendall(b'{"event": "X", "timestamp": {"seconds": 1, "microseconds": 1}}\r\n' * 1000)

    def drip(connection):
        while True:
            connection.sendall(b" ")
            time.sleep(0.2)

    def endless(connection):
        connection.sendall(b'{"QMP": "')
        while True:
            connection.sendall(b"x" * 65536)
    refuse_all(folder, {"flood": flood, "drip": drip, "endless": endless})


def socket_that_says_nothing_is_refused(folder):
    def greet_only(connection):
        connection.sendall(json.dumps(GREETING).encode() + b"\r\n")
        wait_for_hang_up(connection)
    refuse_all(folder, {"silent": wait_for_hang_up, "greets": greet_only})


def socket_that_closes_is_refused(folder):
    def greet_and_close(connection):
        connection.sendall(json.dumps(GREETING).encode() + b"\r\n")

    def close_after_a_command(connection):
        greet_and_close(connection)
        connection.recv(1)
    for name, talk in (("closes", lambda connection: None), ("greets", greet_and_close),
                       ("after", close_after_a_command)):
        with Impostor(f"{folder}/{name}", talk):
            refuse(folder, f"{folder}/{name}")


def server_that_is_no_qemu_is_refused(folder):
    """It speaks QMP, but has no machine: the storage daemon, say."""
    def not_found(connection):
        answer_all(connection, lambda name: {"return": {}} if name == "qmp_capabilities" else {
            "error": {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}})

    def yes_man(connection):
        answer_all(connection, lambda _name: {"return": {}})

    def lists(connection):
        answer_all(connection, lambda name: {"return": {} if name == "qmp_capabilities" else []})
    for name, talk in (("strange", not_found), ("yes", yes_man), ("lists", lists)):
        with Impostor(f"{folder}/{name}", talk):
            refuse(folder, f"{folder}/{name}", "QEMU")


# ---- monitors that are taken ---------------------------------------------------------------------------------


def monitor_in_use_is_refused(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        client = qemu.Qmp(guest.sockets[0])
        refuse(folder, guest.sockets[0], guest.sockets[0], "no greeting")
        assert client.command("query-status")["running"], "the other client is not disturbed"
        client.close()
        guest.check_released()
        badday.check_saves(guest, f"{folder}/image", *PACE)


def monitor_of_a_stopped_qemu_is_refused(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        os.kill(guest.pid, signal.SIGSTOP)
        refuse(folder, guest.sockets[0], guest.sockets[0], "no greeting")
        os.kill(guest.pid, signal.SIGCONT)
        guest.check_released()


def second_save_at_once_is_refused(folder):
    """Through another socket of the same QEMU; for the same one see monitor_in_use_. The first does not notice."""
    with badday.QemuUnderTest(BUILD, folder, sockets=2) as guest:
        first = badday.Save(guest, f"{folder}/first", "--max-bandwidth", "16M")
        first.wait_sweeping()
        result = badday.vmsnap(BUILD, "save", "--qemu", guest.sockets[1], f"{folder}/second")
        badday.check_refused(result, "another userfaultfd")
        badday.check_incomplete(BUILD, f"{folder}/second")
        status, _out, err = first.finish(60)
        assert status == 0, err
        guest.check_released()
        badday.check_complete(guest, f"{folder}/first")


def guest_that_is_stopped_by_somebody_stays_so(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        guest.qmp.command("stop")
        for how in (None, signal.SIGINT, signal.SIGKILL):
            save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "40M")
            if how:
                save.wait_watching()
                save.kill(how)
            status, _out, err = save.finish()
            assert status == {None: 0, signal.SIGINT: 1}.get(how, -signal.SIGKILL), (status, err)
            badday.wait_until(lambda: not badday.processes_of(BUILD), 1, "no process of vmsnap left")
            assert guest.qmp.command("query-status")["status"] == "paused"
            assert not badday.troubles(guest.pid)
            badday.check_unfinished(guest, f"{folder}/image")
        guest.qmp.command("cont")
        # QEMU closes a descriptor that was removed while the guest stood still when it next looks: after a client.
        qemu.Qmp(guest.sockets[0]).close()
        guest.check_released()


# ---- QEMU goes -----------------------------------------------------------------------------------------------


def qemu_that_goes_is_told(folder):
    """Killed, or told to quit: at once, when it is watched, in the sweep."""
    def kill(guest):
        guest.process.kill()

    def quit_it(guest):
        guest.qmp.command("quit")
    for number, (goes, wait) in enumerate([(kill, badday.Save.wait_sweeping), (kill, badday.Save.wait_watching),
                                           (kill, lambda save: time.sleep(0.03)),
                                           (quit_it, badday.Save.wait_sweeping)]):
        os.mkdir(f"{folder}/{number}")
        with badday.QemuUnderTest(BUILD, f"{folder}/{number}") as guest:
            save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "16M")
            wait(save)
            goes(guest)
            line = save.check_failed(timeout=5)
            assert re.search("ended|closed the connection|No such process", line), line
            badday.check_incomplete(BUILD, f"{folder}/image")
            badday.check_no_process_left(BUILD)


def qemu_that_is_reset_is_saved(folder):
    """The guest starts again in the middle of it: what was, is saved."""
    with badday.QemuUnderTest(BUILD, folder) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "16M")
        save.wait_sweeping()
        guest.qmp.command("system_reset")
        status, _out, err = save.finish(60)
        assert status == 0, err
        badday.check_complete(guest, f"{folder}/image")


def guest_stopped_in_the_sweep_stays_so(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "40M")
        save.wait_sweeping()
        guest.qmp.command("stop")
        status, _out, err = save.finish(60)
        assert status == 0, err
        assert guest.qmp.command("query-status")["status"] == "paused"
        guest.qmp.command("cont")
        guest.check_released()
        badday.check_complete(guest, f"{folder}/image")


# ---- vmsnap goes ---------------------------------------------------------------------------------------------


def length_of_a_save(guest, image):
    begin = time.monotonic()
    result = badday.vmsnap(BUILD, "save", *guest.target, image, *PACE)
    assert result.returncode == 0, result.stderr
    length = time.monotonic() - begin
    badday.check_complete(guest, image)
    print(f"seed {SEED}; a save takes {length:.2f} s")
    return length


def check_after(guest, save, image, number, what):
    try:
        status, out, err = save.finish()
        assert status in (0, -number, 1 if number == signal.SIGINT else 0), (status, out, err)
        badday.check_no_process_left(BUILD)
        guest.check_released()
        badday.check_unfinished(guest, image)
    except (AssertionError, qemu.QmpError, OSError) as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def signal_at_moments(folder, guest, number, count, group=False):
    image = f"{folder}/image"
    length = length_of_a_save(guest, image)
    chance = random.Random(SEED)
    for i in range(count):
        at = length * (i + chance.random()) / count
        save = badday.Save(guest, image, *PACE, start_new_session=group)
        if number == signal.SIGINT:
            badday.wait_until(lambda save=save: not save.runs() or badday.catches(save.pid, number), 5, "a handler")
        time.sleep(at)
        if group:
            os.killpg(save.pid, number)
        else:
            save.kill(number)
        check_after(guest, save, image, number, f"signal {number} after {at * 1000:.1f} ms")
    badday.check_saves(guest, image, *PACE)
    guest.check_no_errors()


def killed_at_random_moments_leaves_the_guest(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        signal_at_moments(folder, guest, signal.SIGKILL, MOMENTS)


def killed_with_its_group_leaves_the_guest(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        signal_at_moments(folder, guest, signal.SIGKILL, FEW, group=True)


def interrupted_at_moments_cancels(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        signal_at_moments(folder, guest, signal.SIGINT, FEW)


def killed_when_the_guest_stops_lets_it_run(folder):
    """The event STOP is the gun: vmsnap dies in the pause, or right after it, and the guard sends `cont`."""
    with badday.QemuUnderTest(BUILD, folder) as guest:
        for i in range(FEW):
            guest.qmp.take_events()
            save = badday.Save(guest, f"{folder}/image", *PACE)
            guest.qmp.wait_event("STOP")
            time.sleep(0.0002 * (i % 3))
            save.kill()
            begin = time.monotonic()
            check_after(guest, save, f"{folder}/image", signal.SIGKILL, f"killed {i}")
            pause_us = qemu.longest_pause_us(guest.qmp.take_events())
            print(f"pause {pause_us} us, checked in {time.monotonic() - begin:.1f} s")
        guest.check_no_errors()


def killed_while_the_guest_is_held_lets_it_run(folder):
    """The pause is made long: QEMU itself is stopped in it, and vmsnap killed before it goes on."""
    with badday.QemuUnderTest(BUILD, folder) as guest:
        for _ in range(FEW):
            guest.qmp.take_events()
            save = badday.Save(guest, f"{folder}/image", *PACE)
            guest.qmp.wait_event("STOP")
            os.kill(guest.pid, signal.SIGSTOP)
            save.kill()
            time.sleep(0.1)
            os.kill(guest.pid, signal.SIGCONT)
            check_after(guest, save, f"{folder}/image", signal.SIGKILL, "killed")
        guest.check_no_errors()


def stopped_for_a_while_completes(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        length = length_of_a_save(guest, f"{folder}/image")
        chance = random.Random(SEED)
        count = FEW
        for i in range(count):
            save = badday.Save(guest, f"{folder}/image", *PACE)
            if i == 0:
                guest.qmp.wait_event("STOP")
            else:
                time.sleep(length * (i + chance.random()) / count)
            save.kill(signal.SIGSTOP)
            time.sleep(0.3)
            save.kill(signal.SIGCONT)
            status, _out, err = save.finish()
            assert status == 0, err
            guest.check_released()
            badday.check_complete(guest, f"{folder}/image")
        guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
