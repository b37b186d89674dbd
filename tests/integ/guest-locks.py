#!/usr/bin/env python3
"""Locks that the kernel writes for a guest survive that its memory is write-protected.

    guest-locks.py BUILD [WORD...]      only the cases whose name holds one of these words

The kernel writes a lock with priority inheritance that is waited for, and a robust one whose owner ends, without
waiting for a protected page: it refuses the call, and the C library aborts (libsnap/spared.h).
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import children  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
SLOW = ("--max-bandwidth", "16M", "--buffer", "4M")  # of the 16 MiB that it has: a second, and its end comes last
MANY = int(os.environ.get("SNAP_TEST_MOMENTS", "3"))
SPENT_MAX = 0.01  # of the saves may cost a guest that does nothing but fight for one lock: see libsnap/spared.h


class LockGuest(badday.UnderTest):
    """tests/integ/lock-guest.c"""

    def __init__(self, kind):
        self.process = children.start([f"{BUILD}/tests/integ/lock-guest", kind], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)
        self.pid, self.build, self.target = self.process.pid, BUILD, ["--pid", str(self.process.pid)]
        self.expect("ready")
        self.remember()

    def expect(self, answer):
        line = self.process.stdout.readline().strip()
        assert line == answer, f"'{line}' instead of '{answer}', status {self.process.poll()}"

    def tell(self, step, answer):
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()
        self.expect(answer)

    def check_ends_well(self):
        self.tell("end", "good")
        assert self.process.wait(timeout=5) == 0


def check_saved(guest, image):
    result = badday.vmsnap(BUILD, "save", *guest.target, image)
    assert result.returncode == 0, result


def waiting_thread_goes_on_after_a_save(folder):
    """It is in the call when it is stopped, and the kernel begins the call anew."""
    guest = LockGuest("waits")
    save = badday.Save(guest, f"{folder}/image", *SLOW)
    assert save.finish()[0] == 0, save.finish()
    guest.check_ends_well()


def signal_in_the_sweep_lets_a_thread_wait_on(folder):
    """Begun anew as well, on a page that was not written since the point."""
    guest = LockGuest("waits")
    save = badday.Save(guest, f"{folder}/image", *SLOW)
    save.wait_sweeping()
    guest.tell("signal", "done")
    assert save.runs()
    assert save.finish()[0] == 0, save.finish()
    guest.check_ends_well()


def lock_is_waited_for_over_a_chain(folder):
    """Pages stay protected from one snapshot to the next."""
    guest = LockGuest("waits")
    save = badday.Save(guest, f"{folder}/chain", "--every", "300ms", "--count", "4")
    while save.runs():
        guest.tell("signal", "done")
    assert save.finish()[0] == 0, save.finish()
    guest.check_ends_well()


def lock_is_waited_for_while_writes_are_logged(_folder):
    for log in ("async", "sync"):
        guest = LockGuest("waits")
        track = children.start([f"{BUILD}/tools/vmsnap", "track", *guest.target, "--interval", "20", "--log", log],
                               stdout=subprocess.PIPE, text=True)
        for _ in range(20):
            assert track.stdout.readline().startswith("round")
            guest.tell("signal", "done")
        children.stop(track)
        guest.check_ends_well()


def robust_lock_of_a_thread_that_ends_in_the_sweep_is_marked(folder):
    guest = LockGuest("robust")
    save = badday.Save(guest, f"{folder}/image", *SLOW)
    save.wait_sweeping()
    guest.check_ends_well()
    save.finish()


def threads_that_end_while_saved_are_joined(folder):
    """Each end clears the thread's number, which another thread waits for."""
    guest = LockGuest("churn")
    for i in range(MANY):
        check_saved(guest, f"{folder}/{i}")
    guest.check_ends_well()


def lock_that_is_fought_for_seldom_ends_its_guest(folder):
    """In a hundred nanoseconds of each fight a protected page is fatal; a save protects the page once at most."""
    spent, guest = 0, LockGuest("contended")
    for i in range(MANY):
        if badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/{i}").returncode != 0:
            assert guest.process.wait(timeout=5) < 0
            spent, guest = spent + 1, LockGuest("contended")
    guest.check_ends_well()
    print(f"{spent} of {MANY} saves cost the guest")
    assert spent <= 1 + SPENT_MAX * MANY


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
