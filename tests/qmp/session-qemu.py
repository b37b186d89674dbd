#!/usr/bin/env python3
"""One scripted session, played to a real QEMU and to vmsnapd with such a QEMU as its only target: the same answers.

session-qemu.py BUILD [--print]

What may differ stands in the table of docs/qmp-differences.md, which is read here: a difference that is not there
fails, and so does a row that no request of the session needs. @--print: all that differs, as rows of that table.
Exit status 0, 1, or 77 when there is no QEMU 7.2.
"""
import fnmatch
import json
import os
import re
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import qmpd  # noqa: E402
import session_script  # noqa: E402

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "qmp-differences.md")
NUMBER = "number"


# ---- playing -------------------------------------------------------------------------------------------------

class Side:
    """One of the two servers, and the folder it may write to. @name: of a step's own request for it."""

    def __init__(self, name, path, folder):
        self.name, self.path, self.folder = name, path, folder
        self.client = None
        os.mkdir(folder)
        os.mkfifo(f"{folder}/gate")

    def step(self, step, number):
        """Do one. Return: what came, as text: events, then the answer."""
        if isinstance(step, session_script.Connect):
            if self.client:
                self.client.close()
            self.client = qmpd.Client(self.path, timeout=20)
            return [self.client.read()]
        time.sleep(step.after)
        request = step.of(self.name)
        self._send(step, request, number)
        answer = self.client.answer()
        if request.is_object:
            assert answer.pop("id", None) == number, f"the id of {request.text} is not in {answer}"
        if step.keep:
            return [answer]
        before, self.client.events = self.client.events, []
        if step.opens:
            os.close(os.open(f"{self.folder}/gate", os.O_WRONLY))
        if not step.until:
            return [*before, answer]
        return [answer, *self._wait(step.until, before)]  # which come when they come

    def _send(self, step, request, number):
        files = [open(f"{self.folder}/passed", "w") for _ in range(step.descriptors)]
        try:
            self.client.send(request.bytes(number, self.folder), [file.fileno() for file in files])
        finally:
            for file in files:
                file.close()

    def _wait(self, until, seen):
        """The events up to the last of those that are waited for, less the SEEN ones."""
        for name, data in until:
            while not any(event["event"] == name and data.items() <= event.get("data", {}).items() for event in seen):
                event = self.client.read()
                assert "event" in event, f"an answer that nobody waits for: {event}"
                seen.append(event)
        return seen


# ---- comparing -----------------------------------------------------------------------------------------------

def without_figures(value):
    """What is measured is known by being a number."""
    if isinstance(value, dict):
        return {key: NUMBER if key in session_script.MEASURED and isinstance(part, (int, float))
                else without_figures(part) for key, part in value.items()}
    return [without_figures(part) for part in value] if isinstance(value, list) else value


def as_text(messages, side):
    """Of each message a line without what is never the same: time stamps, figures, and the folder."""
    lines = []
    for message in messages:
        message = without_figures({key: value for key, value in message.items() if key != "timestamp"})
        if "event" in message:
            data = message.get("data", {})
            if side.name == "ours" and message["event"] in session_script.EVENTS_OF_TARGETS:
                assert data.pop("target") == "guest"  # documented for all of them at once
            lines.append(f"{message['event']} {json.dumps(data, sort_keys=True)}" if data else message["event"])
        elif "error" in message:
            lines.append(f"{message['error']['class']}: {message['error']['desc']}")
        else:
            lines.append(json.dumps(message.get("return", message.get("QMP")), sort_keys=True))
        if "id" in message:
            lines[-1] += f" id {json.dumps(message['id'])}"
    return "; ".join(lines).replace(side.folder, "DIR")


class Row:
    """A documented difference. In all three cells … stands for anything."""

    def __init__(self, request, qemus, ours):
        self.patterns = [re.sub(r"([*?[])", r"[\1]", cell).replace("…", "*") for cell in (request, qemus, ours)]
        self.text = f"{request} | {qemus} | {ours}"
        self.used = False

    def covers(self, *texts):
        return all(fnmatch.fnmatchcase(text, pattern) for text, pattern in zip(texts, self.patterns))


def read_table():
    """The rows of the page whose first three cells are code."""
    rows = []
    with open(TABLE, encoding="utf-8") as file:
        for line in file:
            found = re.match(r"\| `([^`]*)` \| `([^`]*)` \| `([^`]*)` \|", line)
            if found:
                rows.append(Row(*found.groups()))
    assert rows, f"no table in {TABLE}"
    return rows


def one_step(side, step, number):
    try:
        return as_text(side.step(step, number), side)
    except (OSError, ValueError, qmpd.Closed, AssertionError) as error:
        raise AssertionError(f"step {number}, {side.name}, {step.text}: {type(error).__name__} {error}") from error


def play(side):
    """What it says to each step: one side after the other, so that nothing of the one takes the other's time."""
    return [one_step(side, step, number) for number, step in enumerate(session_script.STEPS)]


def compare(sides):
    rows, wrong = read_table(), []
    for step, qemus, ours in zip(session_script.STEPS, *map(play, sides)):
        request = step.text
        if step.meanwhile and (step.meanwhile in qemus or step.meanwhile in ours):
            continue
        covering = [row for row in rows if row.covers(request, qemus, ours)]
        for row in covering:
            row.used = row.used or qemus != ours
        if qemus != ours and not covering:
            wrong.append((request, qemus, ours))
    unused = [row.text for row in rows if not row.used]
    print(f"{len(session_script.STEPS)} steps, {len(rows)} rows of documented differences")
    if "--print" in sys.argv:
        print("\n".join(f"| `{request}` | `{qemus}` | `{ours}` |  |" for request, qemus, ours in wrong))
    assert not wrong, f"{len(wrong)} differences that are not documented:\n" + "\n".join(
        f"  {request}\n    QEMU    {qemus}\n    vmsnapd {ours}" for request, qemus, ours in wrong)
    assert not unused, "rows that are not needed:\n" + "\n".join(f"  {text}" for text in unused)


# ---- case ----------------------------------------------------------------------------------------------------

def is_old_enough(guest):
    version = guest.qmp.command("query-version")["qemu"]
    return (version["major"], version["minor"]) == (7, 2)


def session_played_to_both_gets_the_same_answers(folder):
    build = os.path.abspath(sys.argv[1])
    if not shutil.which("qemu-system-x86_64"):
        raise cases.Skip("skip: qemu-system-x86_64 is missing")
    for name in ("a", "b"):
        os.mkdir(f"{folder}/{name}")
    with badday.QemuUnderTest(build, f"{folder}/a", size="64M") as theirs, \
            badday.QemuUnderTest(build, f"{folder}/b", size="64M") as guest, \
            tempfile.TemporaryDirectory(prefix="session-") as short, qmpd.Vmsnapd(build, short) as server:
        if not is_old_enough(theirs):
            raise cases.Skip("skip: the answers are those of QEMU 7.2")
        with server.client() as client:
            client.add_qemu("guest", guest.sockets[0])
        try:
            compare([Side("qemu", theirs.sockets[0], f"{folder}/theirs"), Side("ours", server.path, f"{folder}/ours")])
        except AssertionError:
            print(f"QEMU: status {theirs.process.poll()}, {theirs.log()}")
            raise
        server.wait_end()
        guest.check_released()


if __name__ == "__main__":
    children.end_by_signal()
    cases.run(globals(), [word for word in sys.argv[2:] if not word.startswith("--")])
