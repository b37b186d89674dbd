#!/usr/bin/env python3
"""Jobs that are cancelled: job-cancel that was answered by {} means that the job fails, and leaves nothing.

    badday-cancel.py BUILD [WORD...]      only the cases whose name holds one of these words

Moments are random, spread over the whole length of a job: SNAP_TEST_SEED repeats a run, SNAP_TEST_MOMENTS says how many
there are.
"""
import concurrent.futures
import os
import random
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
SEED = int(os.environ.get("SNAP_TEST_SEED", random.randrange(1 << 32)))
MOMENTS = int(os.environ.get("SNAP_TEST_MOMENTS", 50))
SHORT = {"max_bandwidth": 300 << 20}


def cancel_at(client, ident, seconds):
    """After so long. Return: whether it was taken."""
    time.sleep(seconds)
    try:
        client.command("job-cancel", id=ident)
        return True
    except qmpd.Refused as refusal:
        assert "cannot accept command verb" in refusal.desc, refusal
        return False


def check_authoritative(client, begin, made, complete, count):
    """COUNT times: BEGIN() a job j, cancel it. Once that is taken, the job fails, and MADE is not there."""
    chance = random.Random(SEED)
    for _ in range(2):  # the first one may be slow
        begin()
        start = time.monotonic()
        client.wait_job("j")
        length = time.monotonic() - start
        complete()
    n_taken = 0
    for number in range(count):
        begin()
        taken = cancel_at(client, "j", length * 1.05 * (number + chance.random()) / count)
        statistics = client.wait_job("j")
        assert ("error" in statistics) == taken, (taken, statistics)
        assert os.path.exists(made) == (not taken), (taken, statistics)
        if not taken:
            complete()
        n_taken += taken
    print(f"seed {SEED}; a job takes {length:.2f} s; {n_taken} of {count} were cancelled", flush=True)
    assert n_taken > 0


def save_cancelled_at_any_moment_leaves_no_image(folder):
    image = f"{folder}/image"
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD, size="32M", threads=2) as guest, \
            server.client() as client:
        client.add_process("g", guest.pid)
        check_authoritative(client, lambda: client.command("snapshot-save", job_id="j", path=image, **SHORT), image,
                            lambda: badday.check_complete(guest, image), MOMENTS)
        guest.check_released()
        guest.check_no_errors()


def merge_and_export_cancelled_at_any_moment_leave_nothing(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD) as guest, server.client() as client:
        client.add_process("g", guest.pid)
        client.run_job("snapshot-save", path=f"{folder}/1", keep_log=True)
        client.run_job("snapshot-save", path=f"{folder}/2", parent=f"{folder}/1")
        client.command("target-del", id="g")
        out = f"{folder}/out"

        def remove():
            if os.path.isdir(out):
                shutil.rmtree(out)
            else:
                os.unlink(out)
        few = max(MOMENTS // 5, 1)
        check_authoritative(client, lambda: client.command("snapshot-merge", job_id="j", path=f"{folder}/2", out=out), out,
                            remove, few)
        check_authoritative(client, lambda: client.command("snapshot-export", job_id="j", path=f"{folder}/2", out=out,
                                                           format="elf"), out, remove, few)
        client.run_job("snapshot-verify", path=f"{folder}/2")


def jobs_cancelled_paused_and_resumed_by_many_end(folder):
    """Whatever comes in whatever order: the job ends, and the guest is let go."""
    image, chance = f"{folder}/image", random.Random(SEED)
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD, size="32M") as guest:
        with server.client() as client:
            client.add_process("g", guest.pid)

            def meddle(seed):
                own = random.Random(seed)
                with server.client() as meddler:
                    for _ in range(40):
                        name, more = own.choice([("job-pause", {}), ("job-resume", {}), ("job-resume", {}),
                                                 ("job-set-speed", {"speed": own.choice([0, 50 << 20, 500 << 20])})])
                        try:
                            meddler.command(name, id="j", **more)
                        except qmpd.Refused as refusal:
                            assert "ob" in refusal.desc, refusal
                        time.sleep(own.random() * 0.02)
            for _ in range(3):
                client.command("snapshot-save", job_id="j", path=image, **SHORT)
                with concurrent.futures.ThreadPoolExecutor(4) as pool:
                    list(pool.map(meddle, [chance.random() for _ in range(4)]))
                for verb in ("job-resume", "job-cancel"):
                    try:
                        client.command(verb, id="j")
                    except qmpd.Refused:
                        pass
                statistics = client.wait_job("j")
                assert os.path.exists(image) == ("error" not in statistics)
                if "error" not in statistics:
                    badday.check_complete(guest, image)
        guest.check_released()
        guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
