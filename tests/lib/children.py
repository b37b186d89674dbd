"""Programs that are started for a while: ended when we end, however that happens.

start() is subprocess.Popen; what it started is killed at exit, and gets SIGTERM from the kernel when we are killed.
Whatever we start, and what that starts, is known by its environment, so that tests may run side by side.
"""
import atexit
import contextlib
import ctypes
import os
import signal
import subprocess

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_running = []

os.environ["SNAP_TEST_OF"] = str(os.getpid())


def is_ours(pid):
    """PID was started by us, or by what we started."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"SNAP_TEST_OF={os.getpid()}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start(command, **options):
    """Start COMMAND; options as of subprocess.Popen."""
    options.setdefault("stdin", subprocess.DEVNULL)
    child = subprocess.Popen(command, preexec_fn=_die_with_parent, **options)
    _running.append(child)
    return child


def stop(child):
    """Kill it if it still runs, and wait for it."""
    if child.poll() is None:
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            with contextlib.suppress(BrokenPipeError):  # what was not written yet is for nobody
                pipe.close()
    if child in _running:
        _running.remove(child)


@atexit.register
def stop_all():
    for child in list(_running):
        stop(child)


def end_by_signal():
    """Let SIGTERM and SIGHUP end us as an exception does: everything is cleaned up on the way out."""
    def leave(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def end(child, seconds=5):
    """Ask it to end by SIGTERM, and kill it if it does not."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    stop(child)


class Child:
    """A program with a way to end it: the base of the guests. Usable in a with statement."""

    def __init__(self, command, **options):
        self.process = start(command, **options)
        self.pid = self.process.pid

    def close(self):
        stop(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()
