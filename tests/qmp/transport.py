#!/usr/bin/env python3
"""Where clients come from: sockets, one that systemd has opened, standard input and output; and the command line.

    transport.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
VMSNAPD = f"{BUILD}/tools/vmsnapd"
NEGOTIATE = b'{"execute": "qmp_capabilities"}\n'
QUERY = b'{"execute": "query-version", "id": %d}\n'
USAGE, FAILED = 2, 1


def run(*arguments, **options):
    options.setdefault("timeout", 20)
    return subprocess.run([VMSNAPD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)


def check_refused(result, status, *words):
    """It ends with STATUS, and one line that has WORDS."""
    text = result.stderr.decode()
    assert result.returncode == status, (result.args, result.returncode, text)
    assert text.startswith("vmsnapd: ") and text.count("\n") == 1 and text.endswith("\n"), text
    for word in words:
        assert word in text, f"no {word!r} in: {text}"
    print(f"says: {text.strip()[:160]}", flush=True)


def messages(data):
    assert data.endswith(b"\r\n"), data[-80:]
    return [json.loads(line) for line in data.split(b"\r\n")[:-1]]


# ---- standard input and output -------------------------------------------------------------------------------

def stdio_is_answered_to_the_end_before_it_ends(_folder):
    """As of `printf … | vmsnapd --qmp stdio`."""
    result = run("--qmp", "stdio", input=NEGOTIATE + b"".join(QUERY % number for number in range(500)))
    assert result.returncode == 0 and not result.stderr, (result.returncode, result.stderr)
    greeting, negotiated, *answers = messages(result.stdout)
    assert "QMP" in greeting and negotiated == {"return": {}}
    assert [answer["id"] for answer in answers] == list(range(500))


def stdio_with_much_to_answer_is_not_cut_short(_folder):
    """More than pipes hold, from files and through pipes, to a reader that takes its time."""
    reader = subprocess.Popen([VMSNAPD, "--qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    reader.stdin.write(NEGOTIATE + b'{"execute": "query-qmp-schema"}' * 100)
    reader.stdin.close()
    time.sleep(0.5)
    assert len(messages(reader.stdout.read())) == 102
    assert reader.wait(5) == 0
    reader.stdout.close()


def stdio_of_plain_files_is_served(folder):
    with open(f"{folder}/in", "wb") as file:
        file.write(NEGOTIATE + QUERY % 7)
    with open(f"{folder}/in", "rb") as given, open(f"{folder}/out", "wb") as taken:
        assert subprocess.run([VMSNAPD, "--qmp", "stdio"], stdin=given, stdout=taken, timeout=20, check=False).returncode == 0
    with open(f"{folder}/out", "rb") as file:
        assert [sorted(message) for message in messages(file.read())] == [["QMP"], ["return"], ["id", "return"]]


def stdio_of_a_socket_takes_descriptors(_folder):
    ours, theirs = socket.socketpair()
    server = children.start([VMSNAPD, "--qmp", "stdio"], stdin=theirs, stdout=theirs)
    theirs.close()
    ours.settimeout(10)
    socket.send_fds(ours, [NEGOTIATE + b'{"execute": "getfd", "arguments": {"fdname": "a"}}'], [0])
    received = b""
    while received.count(b"\r\n") < 3:
        received += ours.recv(65536)
    ours.close()
    assert server.wait(5) == 0
    if messages(received)[2] != {"return": {}}:
        raise AssertionError(received)


def stdio_ends_with_its_reader(_folder):
    """Who has been reading is gone; or a signal comes, and everything is cleaned up."""
    for how in ("reader", "signal"):
        server = children.start([VMSNAPD, "--qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        server.stdin.write(NEGOTIATE)
        server.stdin.flush()
        server.stdout.readline()
        if how == "reader":
            server.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # it may have noticed by itself: it had to answer
                server.stdin.write(QUERY % 1)
                server.stdin.flush()
        else:
            server.send_signal(signal.SIGTERM)
        assert server.wait(5) == 0, (how, server.returncode)


def stdio_and_a_socket_end_together(folder):
    """The end of standard input is the end of the helper, whoever else is there."""
    path = f"{folder}/socket"
    server = children.start([VMSNAPD, "--qmp", "stdio", "--qmp", f"unix:{path}"], stdin=subprocess.PIPE,
                            stdout=subprocess.DEVNULL)
    badday.wait_until(lambda: os.path.exists(path), 5, "a socket")
    with qmpd.Client(path).negotiate() as client:
        server.stdin.close()
        assert client.is_closed()
    assert server.wait(5) == 0 and not os.path.exists(path)


# ---- sockets -------------------------------------------------------------------------------------------------

def two_sockets_serve_the_same_helper(folder):
    with badday.ProcessUnderTest(BUILD, size="4M") as guest, \
            qmpd.Vmsnapd(BUILD, folder, "--qmp", f"unix:{folder}/second") as server:
        with server.client() as first, qmpd.Client(f"{folder}/second").negotiate() as second:
            first.add_process("guest", guest.pid)
            assert [target["id"] for target in second.command("query-targets")] == ["guest"]
            first.command("snapshot-delete", job_id="j", path="nope")
            second.wait_event("JOB_STATUS_CHANGE", id="j", status="concluded")
        server.end()
        assert not os.path.exists(server.path) and not os.path.exists(f"{folder}/second")


def socket_is_for_its_user_alone(folder):
    for mask in (0, 0o777):
        before = os.umask(mask)
        try:
            with qmpd.Vmsnapd(BUILD, folder) as server:
                mode = os.stat(server.path).st_mode
                assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) & 0o177 == 0, oct(mode)
        finally:
            os.umask(before)


def socket_that_a_killed_helper_left_is_replaced(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        server.end(signal.SIGKILL)
        assert os.path.exists(server.path)
    with qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.command("query-version")


def socket_of_a_living_helper_is_left_alone(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server:
        check_refused(run("--qmp", f"unix:{server.path}"), FAILED, server.path, "another server")
        with server.client() as client:
            client.command("query-version")


def socket_of_a_busy_server_is_left_alone(folder):
    """One whose queue is full is there all the same."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/busy")
    listener.listen(0)
    waiting = []
    for _ in range(3):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        waiting.append(client)
        try:
            client.connect(f"{folder}/busy")
        except BlockingIOError:
            break
    check_refused(run("--qmp", f"unix:{folder}/busy"), FAILED, f"{folder}/busy", "another server")
    for client in (*waiting, listener):
        client.close()


def path_that_is_no_socket_is_left_alone(folder):
    with open(f"{folder}/file", "w", encoding="ascii") as file:
        file.write("mine")
    os.symlink("file", f"{folder}/link")
    for name in ("file", "link", ""):
        check_refused(run("--qmp", f"unix:{folder}/{name}"), FAILED, f"{folder}/{name}")
    with open(f"{folder}/file", encoding="ascii") as file:
        assert file.read() == "mine"


def path_that_cannot_be_made_is_refused(folder):
    check_refused(run("--qmp", f"unix:{folder}/nowhere/socket"), FAILED, f"{folder}/nowhere/socket")
    longest = f"{folder}/" + "x" * (107 - len(folder) - 1)
    check_refused(run("--qmp", f"unix:{longest}x"), USAGE, "too long", "107")
    with qmpd.Vmsnapd(BUILD, folder, path=longest) as server, server.client() as client:
        client.command("query-version")


def second_socket_that_fails_takes_the_first_away(folder):
    check_refused(run("--qmp", f"unix:{folder}/one", "--qmp", f"unix:{folder}/nowhere/two"), FAILED, "nowhere/two")
    assert os.listdir(folder) == [], os.listdir(folder)


# ---- systemd -------------------------------------------------------------------------------------------------

def launch(listeners, *arguments, pid=None, count=None, **options):
    """As systemd does it: descriptors from 3 on, and the environment says so. PID: another one than the helper's."""
    def become():
        for number, listener in enumerate(listeners):
            os.dup2(listener.fileno(), 100 + number)
        for number in range(len(listeners)):
            os.dup2(100 + number, 3 + number)
            os.close(100 + number)
            os.set_inheritable(3 + number, True)
        os.environ["LISTEN_PID"] = str(pid or os.getpid())
        os.environ["LISTEN_FDS"] = str(len(listeners) if count is None else count)
        os.environ["G_DEBUG"] = "fatal-warnings"
        os.execv(VMSNAPD, [VMSNAPD, *arguments])
    return subprocess.Popen([VMSNAPD], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            preexec_fn=become, close_fds=False, **options)


def check_launch_refused(process, status, *words):
    _, text = process.communicate(timeout=10)
    check_refused(subprocess.CompletedProcess(process.args, process.returncode, b"", text), status, *words)


def sockets_passed_by_systemd_are_served_and_stay(folder):
    listeners = [badday.listen(f"{folder}/a"), badday.listen(f"{folder}/b")]
    server = launch(listeners, "--qmp", f"unix:{folder}/own", "--snapshot-dir", folder)
    for name in ("a", "b", "own", "a"):
        badday.wait_until(lambda path=f"{folder}/{name}": os.path.exists(path), 5, "a socket")
        with qmpd.Client(f"{folder}/{name}").negotiate() as client:
            assert client.command("query-targets") == []
    inherited = os.readlink(f"/proc/{server.pid}/fd/3")
    assert inherited.startswith("socket:"), inherited
    server.terminate()
    assert server.wait(5) == 0, server.stderr.read()
    server.stderr.close()
    assert sorted(os.listdir(folder)) == ["a", "b"], "sockets of systemd are systemd's to remove"
    for listener in listeners:
        listener.close()


def socket_passed_by_systemd_alone_is_enough(folder):
    listener = badday.listen(f"{folder}/a")
    server = launch([listener])
    with qmpd.Client(f"{folder}/a").negotiate() as client:
        client.command("quit")
    assert server.wait(5) == 0
    server.stderr.close()
    listener.close()


def what_systemd_passes_and_is_no_socket_is_refused(folder):
    with open(f"{folder}/file", "w", encoding="ascii") as file:
        check_launch_refused(launch([file]), USAGE, "descriptor 3")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        check_launch_refused(launch([datagrams]), USAGE, "descriptor 3")
    ours, theirs = socket.socketpair()
    check_launch_refused(launch([theirs]), USAGE, "descriptor 3")
    ours.close()
    theirs.close()


def sockets_passed_to_somebody_else_are_not_ours(folder):
    listener = badday.listen(f"{folder}/a")
    check_launch_refused(launch([listener], pid=1), USAGE, "--qmp is missing")
    for count in (0, -1, "x", 1000):
        check_launch_refused(launch([listener], count=count), USAGE, "--qmp is missing")
    listener.close()


# ---- the command line ----------------------------------------------------------------------------------------

def command_line_that_is_wrong_is_refused(folder):
    for arguments, words in (([], ["--qmp is missing"]), (["--qmp"], ["--qmp"]), (["--nope"], ["--nope"]),
                             (["--qmp", "stdio", "x"], ["'x'"]), (["--qmp", "tcp:1"], ["tcp:1"]),
                             (["--qmp", "unix:"], ["unix:"]), (["--qmp", ""], ["unix:PATH or stdio"])):
        check_refused(run(*arguments), USAGE, *words)
    check_refused(run("--qmp", "stdio", "--snapshot-dir", f"{folder}/nowhere"), FAILED, f"{folder}/nowhere")


def help_and_version_are_printed(_folder):
    for option, words in (("--help", ["--qmp=unix:PATH|stdio", "--snapshot-dir", "Exit status"]), ("--version", ["vmsnapd 0"])):
        result = run(option)
        assert result.returncode == 0 and not result.stderr, result
        for word in words:
            assert word in result.stdout.decode(), result.stdout.decode()
    assert run("--version").stdout.count(b"\n") == 1


def relative_paths_begin_in_the_snapshot_folder(folder):
    os.mkdir(f"{folder}/images")
    with badday.ProcessUnderTest(BUILD, size="4M") as guest, \
            qmpd.Vmsnapd(BUILD, folder, "--snapshot-dir", f"{folder}/images") as server, server.client() as client:
        client.add_process("guest", guest.pid)
        assert client.run_job("snapshot-save", path="one")["image"] == f"{folder}/images/one"
        assert client.run_job("snapshot-save", path="../two")["image"] == f"{folder}/two"
        assert [image["dir"] for image in client.command("query-snapshots")] == [f"{folder}/images/one"]
    assert os.path.exists(f"{folder}/images/one/manifest.json") and os.path.exists(f"{folder}/two/manifest.json")


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
