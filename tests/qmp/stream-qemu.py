#!/usr/bin/env python3
"""Our JSON stream against the monitor of a real QEMU: the same bytes, the same answers.

stream-qemu.py STREAM-ECHO [SEED]

QEMU shows what it read by the id in its answers, and what it did not like by the text of the error. STREAM-ECHO prints
both for the same bytes; it gets them in pieces of several sizes. Behind each case comes a command that brings both back
into step and marks the place. Bytes that would take minutes, such as a string of 64 MiB, are left to the unit tests: QEMU
reads its monitor byte by byte.

Exit status 0, 1, or 77 when there is no QEMU.
"""
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import children  # noqa: E402
import qemu  # noqa: E402
import stream_corpus as corpus  # noqa: E402

N_MUTATED = 4000
MARK = b'\x01\n{"execute": "query-name", "id": {"case": %d}}\n'


def marked(cases):
    """The bytes of all @cases, each followed by its mark."""
    return b"".join(case + MARK % number for number, case in enumerate(cases))


def split(lines, is_mark, count):
    """The lines of each case; what a mark itself answers is left out."""
    cases = [[]]
    for line in lines:
        if is_mark(line, len(cases) - 1):
            cases.append([])
        else:
            cases[-1].append(line)
    if len(cases) != count + 1 or cases[-1]:
        raise AssertionError(f"{len(cases) - 1} of {count} cases were answered; then {cases[-1][:5]}")
    return cases[:-1]


# ---- the two sides -------------------------------------------------------------------------------------------

class Monitor:
    """A connection to QEMU's monitor that cares for bytes only."""

    def __init__(self, path, timeout=60):
        self._timeout = timeout
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.setblocking(False)
        self.exchange(b'{"execute": "qmp_capabilities"}', lambda lines: len(lines) == 2)

    def exchange(self, data, is_all):
        """Send @data and read lines until @is_all of them; whatever is first possible, since neither side may block."""
        view, lines, alive = memoryview(data), [], time.monotonic()
        while len(view) or not is_all(lines):
            if time.monotonic() - alive > self._timeout:
                raise AssertionError(f"QEMU is silent; {len(view)} bytes not sent, last answers {lines[-3:]}")
            can_read, can_write, _ = select.select([self._socket], [self._socket] if len(view) else [], [], 1)
            if can_write:
                view = view[self._socket.send(view[:65536]):]
                alive = time.monotonic()
            if can_read:
                received = self._socket.recv(1 << 20)
                if not received:
                    raise AssertionError(f"QEMU is gone; last answers {lines[-3:]}")
                alive = time.monotonic()
                *more, self._buffer = (self._buffer + received).split(b"\r\n")
                lines += more
        return lines


def is_qemu_mark(line, number):
    return line == b'{"return": {}, "id": {"case": %d}}' % number


def ask_qemu(monitor, cases):
    end = len(cases) - 1
    lines = monitor.exchange(marked(cases), lambda lines: lines and is_qemu_mark(lines[-1], end))
    return split(lines, is_qemu_mark, len(cases))


def is_echo_mark(line, number):
    return line == b'{"execute": "query-name", "id": {"case": %d}}' % number


def ask_echo(program, piece_bytes, cases):
    result = subprocess.run([program, str(piece_bytes)], input=marked(cases), stdout=subprocess.PIPE, timeout=300)
    if result.returncode != 0:
        raise AssertionError(f"{program} ended with {result.returncode}")
    return split(result.stdout.split(b"\n")[:-1], is_echo_mark, len(cases))


# ---- comparing -----------------------------------------------------------------------------------------------

def error(name, text):
    return b'{"error": {"class": "%s", "desc": %s}}' % (name, text)


def expected(line):
    """What QEMU answers to what we print as @line; None: that is up to its next layer, which is not asked here."""
    if line.startswith(b"error "):
        _, name, text = line.split(b" ", 2)
        return error(name, text)
    if not line.startswith(b"{"):
        return error(b"GenericError", b'"QMP input must be a JSON object"')
    if line == b'{"execute": "query-name"}':
        return b'{"return": {}}'
    if line.startswith(corpus.PREFIX):
        return b'{"return": {}, "id": ' + line[len(corpus.PREFIX):]
    return None


def in_any_order(line):
    """@line with the members of objects sorted, and numbers as they stand there: QEMU sorts by a hash."""
    line = re.sub(rb"\binf\b", b"Infinity", line)
    return repr(json.loads(line, parse_int=lambda text: ("number", text), parse_float=lambda text: ("number", text),
                           object_pairs_hook=lambda pairs: sorted(pairs, key=lambda pair: pair[0])))


def agree(theirs, ours):
    wanted = expected(ours)
    if wanted is None:
        return b'"desc": "JSON ' not in theirs
    return theirs == wanted or (sorted(theirs) == sorted(wanted) and in_any_order(theirs) == in_any_order(wanted))


def differences(cases, theirs, ours):
    """Of each case that differs, a line."""
    for case, their, our in zip(cases, theirs, ours):
        if len(their) == len(our) and all(agree(*pair) for pair in zip(their, our)):
            continue
        first = next((i for i, pair in enumerate(zip(their, our)) if not agree(*pair)), min(len(their), len(our)))
        yield (f"{case[:200]!r}: answer {first}: QEMU {b''.join(their[first:first + 1])[:300]!r}, "
               f"we {b''.join(our[first:first + 1])[:300]!r} ({len(their)} and {len(our)} answers)")


def check(name, program, monitor, cases, pieces):
    theirs = ask_qemu(monitor, cases)
    bad = 0
    for piece_bytes in pieces:
        for line in differences(cases, theirs, ask_echo(program, piece_bytes, cases)):
            bad += 1
            if bad <= 20:
                print(f"pieces of {piece_bytes}: {line}")
    answers = sum(len(case) for case in theirs)
    print(f"{'FAILED' if bad else 'ok'}: {name}: {len(cases)} cases, {answers} answers of QEMU, {bad} differ", flush=True)
    return bad == 0


def main():
    program = sys.argv[1]
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    if not shutil.which("qemu-system-x86_64"):
        print("skip: qemu-system-x86_64 is missing")
        return 77
    children.end_by_signal()
    values = list(corpus.VALUES)
    with qemu.Qemu(["-S", "-machine", "none", "-nodefaults", "-display", "none"]) as guest:
        monitor = Monitor(guest.sockets[0])
        results = [
            check("values as ids", program, monitor, [corpus.PREFIX + value + b"}" for value in values], (1, 7, 65536)),
            check("values by themselves", program, monitor, [value + b" " for value in values], (1, 65536)),
            check("streams", program, monitor, corpus.STREAMS, (1, 3, 65536)),
            check(f"mutated, seed {seed}", program, monitor, list(corpus.mutated(N_MUTATED, seed)), (1, 65536)),
            *(check(name, program, monitor, [case], (5, 65536)) for name, case in corpus.big()),
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
