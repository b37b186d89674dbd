#!/usr/bin/env python3
"""vmsnap top: in a terminal, in a pipe, as JSON.

top.py BUILD [WORD...]      only the cases whose names hold a WORD
"""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import helper  # noqa: E402

BUILD = sys.argv[1]
ENTER, LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"


class Terminal:
    """vmsnap top in a terminal of its own."""

    def __init__(self, daemon, *options, columns=80, rows=24, **environment):
        self.control, self._terminal = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self._terminal)
        self.seen = ""
        self.process = children.start(
            [f"{BUILD}/tools/vmsnap", "--connect", daemon.path, "top", *options], stdin=self._terminal,
            stdout=self._terminal, stderr=self._terminal, start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environment})

    def resize(self, columns, rows):
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys):
        os.write(self.control, keys)

    def read(self):
        while select.select([self.control], [], [], 0)[0]:
            self.seen += os.read(self.control, 1 << 16).decode()
        return self.seen

    def frames(self):
        """What was drawn, from the upper left corner each."""
        return self.read().split("\033[H")[1:]

    def wait_frames(self, count, seconds=5):
        badday.wait_until(lambda: len(self.frames()) >= count or self.process.poll() is not None, seconds,
                          f"drawn {count} times: {self.seen!r}")
        assert self.process.poll() is None, self.read()
        return self.frames()

    def is_raw(self):
        return termios.tcgetattr(self._terminal) != self.before

    def check_restored(self):
        assert not self.is_raw()
        assert self.read().count(ENTER) == self.seen.count(LEAVE), self.seen

    def check_ends(self, status, seconds=3):
        assert self.process.wait(seconds) == status, (self.process.returncode, self.read())
        self.check_restored()
        return self.seen.split(LEAVE)[-1]


def lines_of(frame):
    return [line.rstrip("\r") for line in frame.split(LEAVE)[0].replace("\033[J", "").replace("\033[K", "").split("\n")]


def start_save(daemon, guest, image):
    daemon.qmp.command("target-add", id="guest", driver="process", pid=guest.pid)
    daemon.qmp.command("snapshot-save", job_id="job", path=image, max_bandwidth=4 << 20)
    badday.wait_until(lambda: daemon.qmp.command("query-job-statistics")[0]["save"]["phase"] == "sweeping", 10,
                      "sweeping")


# ---- without a terminal ------------------------------------------------------------------------------------------


def json_shows_a_running_save(folder):
    with badday.ProcessUnderTest(BUILD) as guest, helper.Helper(BUILD, folder) as daemon:
        start_save(daemon, guest, f"{folder}/image")
        result = daemon.run("top", "--json", "--rounds", "4", "--interval", "200")
        assert result.returncode == 0 and result.stderr == "", result
        rounds = [json.loads(line) for line in result.stdout.splitlines()]
        assert [entry["round"] for entry in rounds] == [1, 2, 3, 4]
        for entry in rounds:
            (target,), (job,) = entry["targets"], entry["jobs"]
            assert (target["id"], target["driver"], target["pid"]) == ("guest", "process", guest.pid), target
            assert target["state"] == "attached" and target["jobs"] == 1 and not target["dirty-log"], target
            assert (job["id"], job["status"], job["target"]) == ("job", "running", "guest"), job
            assert job["save"]["fault-latency-us"]["histogram"] is not None
        done = [entry["jobs"][0]["save"]["pages"]["done"] for entry in rounds]
        assert done == sorted(done) and done[0] < done[-1], done
        daemon.qmp.command("job-cancel", id="job")


def dirty_rate_is_shown_and_left_to_its_reader(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest, helper.Helper(BUILD, folder) as daemon:
        def dirty():
            (target,) = json.loads(daemon.run("top", "--json", "--rounds", "1").stdout)["targets"]
            return target["dirty-log"], target.get("dirty-pages-per-second")

        daemon.qmp.command("target-add", id="guest", driver="process", pid=guest.pid)
        assert dirty() == (False, None)
        assert daemon.run("top", "--rounds", "1").stdout.splitlines()[3].split()[-1] == "-"
        daemon.qmp.command("dirty-log-start")
        time.sleep(0.3)
        assert dirty() == (True, None)
        assert daemon.run("top", "--rounds", "1").stdout.splitlines()[3].split()[-1] == "on"
        collected = daemon.qmp.command("dirty-log-collect", ranges=False)
        assert collected["round"] == 1 and collected["dirty-pages"] > 0, collected
        assert dirty() == (True, int(collected["rate-pages-per-second"])), (dirty(), collected)
        daemon.qmp.command("dirty-log-stop")
        assert dirty() == (False, None)


def pipe_gets_a_block_a_round(folder):
    with badday.ProcessUnderTest(BUILD) as guest, helper.Helper(BUILD, folder) as daemon:
        start_save(daemon, guest, f"{folder}/image")
        result = daemon.run("top", "--rounds", "2", "--interval", "100")
        assert result.returncode == 0 and "\033" not in result.stdout, result
        blocks = result.stdout.split(f"{daemon.path}: 1 guest, 1 job\n")[1:]
        assert len(blocks) == 2, result.stdout
        for block in blocks:
            assert re.search(rf"^guest +process +{guest.pid}  attached +-$", block, re.MULTILINE), block
            assert re.search(r"^job +running +save +sweeping +\d+% +[\d.]+ [KM]iB/s  guest$", block, re.MULTILINE), block
            assert re.search(r"^    pages    \d+ by the sweep, \d+ by fault$", block, re.MULTILINE), block
            assert re.search(r"^    faults   \d+: half within .+, 99 % .+, longest .+$", block, re.MULTILINE), block
            assert re.search(r"^    buffers  .+ of 64.0 MiB$", block, re.MULTILINE), block
        daemon.qmp.command("job-cancel", id="job")
        badday.wait_until(lambda: daemon.qmp.command("query-jobs")[0]["status"] == "concluded", 5, "concluded")
        text = daemon.run("top", "--rounds", "1").stdout
        assert re.search(r"^    failed   cancelled", text, re.MULTILINE), text


def top_without_a_helper_is_wrong_usage(_folder):
    badday.check_refused(badday.vmsnap(BUILD, "top"), "--connect", "vmsnapd", status=2)


# ---- in a terminal -----------------------------------------------------------------------------------------------


def terminal_is_redrawn_until_q(folder):
    with badday.ProcessUnderTest(BUILD) as guest, helper.Helper(BUILD, folder) as daemon:
        start_save(daemon, guest, f"{folder}/image")
        terminal = Terminal(daemon, "--interval", "100")
        frames = terminal.wait_frames(4)
        assert terminal.is_raw() and terminal.seen.startswith(ENTER), terminal.seen
        assert frames[-2] != frames[0], "nothing changes"
        assert lines_of(frames[1])[0] == f"{daemon.path}: 1 guest, 1 job", frames[1]
        terminal.press(b"xy")
        terminal.wait_frames(len(terminal.frames()) + 2)
        terminal.press(b"q")
        assert terminal.check_ends(0) == ""
        daemon.qmp.command("job-cancel", id="job")


def terminal_ends_by_ctrl_c_and_signals(folder):
    with helper.Helper(BUILD, folder) as daemon:
        for end in b"\x03", signal.SIGTERM, signal.SIGHUP:
            terminal = Terminal(daemon, "--interval", "60000")
            terminal.wait_frames(1)
            if isinstance(end, bytes):
                terminal.press(end)
            else:
                terminal.process.send_signal(end)
            assert terminal.check_ends(0, seconds=1) == ""


def terminal_is_restored_when_it_dies(folder):
    with helper.Helper(BUILD, folder) as daemon:
        for number in signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV:
            terminal = Terminal(daemon)
            terminal.wait_frames(1)
            assert terminal.is_raw()
            terminal.process.send_signal(number)
            terminal.check_ends(-number)


def terminal_is_restored_while_it_is_suspended(folder):
    with helper.Helper(BUILD, folder) as daemon:
        terminal = Terminal(daemon, "--interval", "100")
        terminal.wait_frames(1)
        # Who has a session of its own is an orphan, which Ctrl-Z does not stop; so stop it where it would be.
        terminal.press(b"\x1a")
        badday.wait_until(lambda: terminal.read().count(ENTER) == 2, 3, "entered again")
        assert terminal.seen.count(LEAVE) == 1 and terminal.is_raw()
        terminal.wait_frames(len(terminal.frames()) + 1)
        terminal.press(b"q")
        terminal.check_ends(0)


def terminal_that_is_resized_is_filled_and_no_more(folder):
    with helper.Helper(BUILD, folder) as daemon:
        guests = [children.start(["sleep", "600"]) for _ in range(8)]
        for i, guest in enumerate(guests):
            daemon.qmp.command("target-add", id=f"guest{i}", driver="process", pid=guest.pid)
        terminal = Terminal(daemon, "--interval", "60000")
        (frame,) = terminal.wait_frames(1)
        assert len(lines_of(frame)) == 11, frame
        for columns, rows in (30, 24), (80, 5), (5, 2), (200, 50):
            drawn = len(terminal.frames())
            terminal.resize(columns, rows)
            terminal.process.send_signal(signal.SIGWINCH)  # it is not the terminal's foreground
            frame = terminal.wait_frames(drawn + 1)[-1]
            time.sleep(0.05)
            lines = lines_of(terminal.frames()[-1])
            assert len(lines) == min(rows, 11) and max(map(len, lines)) <= columns, (columns, rows, lines)
            assert rows > 11 or f"… {12 - rows} lines more"[:columns] == lines[-1], lines
        terminal.press(b"q")
        terminal.check_ends(0)


def helper_that_ends_ends_it(folder):
    with helper.Helper(BUILD, folder) as daemon:
        terminal = Terminal(daemon, "--interval", "100")
        terminal.wait_frames(1)
        daemon.end(signal.SIGKILL)
        last = terminal.check_ends(1)
        badday.check_one_line(last.strip(), daemon.path, "has ended")


def terminal_that_is_dumb_gets_plain_text(folder):
    with helper.Helper(BUILD, folder) as daemon:
        terminal = Terminal(daemon, "--interval", "10", "--rounds", "2", TERM="dumb")
        assert terminal.process.wait(5) == 0
        assert "\033" not in terminal.read() and terminal.seen.count("0 guests, 0 jobs") == 2, terminal.seen


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
