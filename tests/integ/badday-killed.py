#!/usr/bin/env python3
"""Bad days of vmsnap itself, saving a process: killed, killed with its group, stopped for a while, interrupted.

    badday-killed.py BUILD [WORD...]      only the cases whose name holds one of these words

The moments are random: SNAP_TEST_SEED repeats a run, SNAP_TEST_MOMENTS says how many there are.
"""
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
SEED = int(os.environ.get("SNAP_TEST_SEED", random.randrange(1 << 32)))
MOMENTS = int(os.environ.get("SNAP_TEST_MOMENTS", 20))
FEW = max(MOMENTS // 5, 1)
PACE = ("--max-bandwidth", "100M")
SIZE = "32M"


def moments(guest, folder, count):
    """COUNT random times of a save, spread over its whole length."""
    begin = time.monotonic()
    status, _out, err = badday.Save(guest, f"{folder}/whole", *PACE).finish()
    assert status == 0, err
    length = time.monotonic() - begin
    badday.check_complete(guest, f"{folder}/whole")
    print(f"seed {SEED}; a save takes {length:.2f} s")
    chance = random.Random(SEED)
    return [length * (i + chance.random()) / count for i in range(count)]


def check_after_kill(guest, save, image, at, number=signal.SIGKILL):
    """It was killed AT some time, or was faster."""
    try:
        status, out, err = save.finish()
        assert status in (0, -number), (status, out, err)
        # Who is killed while the guest is entered leaves a helper that ends that, and itself.
        badday.check_no_process_left(BUILD)
        guest.check_released()
        if status == 0:
            badday.check_complete(guest, image)
        else:
            badday.check_unfinished(guest, image)
    except AssertionError as error:
        raise AssertionError(f"killed after {at * 1000:.1f} ms: {error}") from error


# ---- killed --------------------------------------------------------------------------------------------------


def kill_at_moments(folder, guest, count, how=lambda save: save.kill(), **popen):
    for at in moments(guest, folder, count):
        save = badday.Save(guest, f"{folder}/image", *PACE, **popen)
        time.sleep(at)
        how(save)
        check_after_kill(guest, save, f"{folder}/image", at)
    badday.check_saves(guest, f"{folder}/image")
    guest.check_no_errors()


def killed_at_random_moments_leaves_the_guest(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE, threads=2) as guest:
        kill_at_moments(folder, guest, MOMENTS)


def killed_over_a_memfd_leaves_the_guest(folder):
    with badday.ProcessUnderTest(BUILD, memory="memfd", size=SIZE, threads=2) as guest:
        kill_at_moments(folder, guest, FEW)


def killed_while_the_guest_discards_leaves_it(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE, threads=2, events="remap,unmap,dontneed,free") as guest:
        kill_at_moments(folder, guest, FEW)


def killed_with_its_group_leaves_the_guest(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        kill_at_moments(folder, guest, FEW, start_new_session=True,
                        how=lambda save: os.killpg(save.pid, signal.SIGKILL))


def killed_with_all_its_helpers_leaves_the_guest(folder):
    """Not even the guard process is left to do anything.

    From when the guest is watched on: who kills the helper that runs a system call in the guest, within the third of
    a millisecond that this takes, leaves the guest with that call's registers. Nobody could put them back.
    """
    def everything(save):
        badday.wait_until(lambda: not save.runs() or badday.watched_mappings(guest.pid), 5, "watched")
        for pid in badday.processes_of(BUILD) or [save.pid]:
            badday.kill_quietly(pid)
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        kill_at_moments(folder, guest, FEW, how=everything)


def kill_when_traced(folder, guest, nth):
    """Kill it when it attaches to the guest for the NTH time: to get in, or to stop it for the point."""
    save = badday.Save(guest, f"{folder}/image", *PACE)
    begin = time.monotonic()
    seen = badday.catch_traced(save)
    for _ in range(1, nth):
        seen = seen and badday.catch_traced(save, traced=False) and badday.catch_traced(save)
    save.kill()
    check_after_kill(guest, save, f"{folder}/image", time.monotonic() - begin)
    return seen


def killed_while_attached_leaves_the_guest(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE, threads=4) as guest:
        seen = [kill_when_traced(folder, guest, nth) for nth in (1, 2, 1, 2, 1, 2)]
        print(f"caught {sum(seen)} of {len(seen)}")
        guest.check_no_errors()


def killed_guard_is_told_or_survived(folder):
    """The helper process dies, for want of memory say: the save fails or is complete, the guest runs on."""
    with badday.ProcessUnderTest(BUILD) as guest:
        for at in (0.0, 0.01, 0.3):
            save = badday.Save(guest, f"{folder}/image", *PACE)
            guards = badday.wait_until(
                lambda save=save: [pid for pid in badday.processes_of(BUILD) if pid != save.pid], 5, "a guard")
            time.sleep(at)
            for pid in guards:
                badday.kill_quietly(pid)
            status, out, err = save.finish()
            guest.check_released()
            if status == 0:
                badday.check_complete(guest, f"{folder}/image")
            else:
                assert status == 1 and not out, (status, out)
                badday.check_one_line(err)
                badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


# ---- stopped for a while -------------------------------------------------------------------------------------


def stopped_for_a_while_completes(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE, threads=2) as guest:
        for at in moments(guest, folder, FEW):
            save = badday.Save(guest, f"{folder}/image", *PACE)
            time.sleep(at)
            save.kill(signal.SIGSTOP)
            time.sleep(0.3)
            save.kill(signal.SIGCONT)
            status, _out, err = save.finish()
            assert status == 0, err
            guest.check_released()
            badday.check_complete(guest, f"{folder}/image")
        guest.check_no_errors()


def stopped_and_killed_leaves_the_guest(folder):
    with badday.ProcessUnderTest(BUILD) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "8M", "--buffer", "4M")
        save.wait_sweeping()
        save.kill(signal.SIGSTOP)
        badday.wait_until(lambda: badday.blocked_threads(guest.pid), 5, "a write that waits for the stopped handler")
        save.kill()
        check_after_kill(guest, save, f"{folder}/image", 0)
        guest.check_no_errors()


# ---- signals that ask ----------------------------------------------------------------------------------------


def signalled_at_moments(folder, number, count):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        for at in moments(guest, folder, count):
            # Before a program is ready for it, a signal is the end of it as of any other.
            save = badday.Save(guest, f"{folder}/image", *PACE)
            badday.wait_until(lambda save=save: not save.runs() or badday.catches(save.pid, number), 5, "a handler")
            time.sleep(at)
            save.kill(number)
            begin = time.monotonic()
            status, out, err = save.finish()
            took = time.monotonic() - begin
            assert took < 5, f"took {took:.1f} s to end: {status} {err}"  # an fsync is not interrupted
            guest.check_released()
            badday.check_no_process_left(BUILD)
            if status == 0:
                badday.check_complete(guest, f"{folder}/image")
                continue
            assert status == 1 and not out, (status, out, err)
            badday.check_one_line(err, "cancel")
            badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


def interrupted_at_moments_cancels(folder):
    signalled_at_moments(folder, signal.SIGINT, FEW)


def terminated_at_moments_cancels(folder):
    signalled_at_moments(folder, signal.SIGTERM, 2)


def hung_up_at_moments_cancels(folder):
    signalled_at_moments(folder, signal.SIGHUP, 2)


def interrupted_while_the_guest_waits_cancels(folder):
    with badday.ProcessUnderTest(BUILD) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "4M", "--buffer", "4M")
        save.wait_sweeping()
        badday.wait_until(lambda: badday.blocked_threads(guest.pid), 5, "a write that waits for the sink")
        save.kill(signal.SIGINT)
        save.check_failed("cancel", timeout=2)
        guest.check_released()
        badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


def interrupted_twice_cancels(folder):
    with badday.ProcessUnderTest(BUILD) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "4M")
        save.wait_sweeping()
        for _ in range(5):
            save.kill(signal.SIGINT)
        save.check_failed("cancel", timeout=2)
        guest.check_released()
        badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


# ---- nobody listens ------------------------------------------------------------------------------------------


def output_without_reader_is_told(folder):
    """vmsnap save … | true"""
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        reader, writer = os.pipe()
        os.close(reader)
        save = badday.Save(guest, f"{folder}/image", stdout=writer)
        os.close(writer)
        err = save.process.stderr.read()
        assert save.process.wait(20) == 1
        badday.check_one_line(err, "standard output")
        guest.check_released()
        badday.check_complete(guest, f"{folder}/image")
        guest.check_no_errors()


def closed_standard_descriptors_spoil_no_image(folder):
    """vmsnap save … <&- >&- 2>&-: descriptors 0 to 2 must not become those of the image, with messages in it."""
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
            image = f"{folder}/image"
            command = f'exec "$@" {closed}'
            result = subprocess.run(["sh", "-c", command, "sh", f"{BUILD}/tools/vmsnap", "save", *guest.target, image],
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30, check=False)
            assert result.returncode in (0, 1), result
            guest.check_released()
            if os.path.exists(f"{image}/manifest.json"):
                badday.check_complete(guest, image)
            else:
                badday.check_incomplete(BUILD, image)
        # And a save that fails has a line to say.
        command = 'exec "$@" <&- >&- 2>&-'
        subprocess.run(["sh", "-c", command, "sh", f"{BUILD}/tools/vmsnap", "save", *guest.target, folder],
                       timeout=30, check=False)
        guest.check_released()
        guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
