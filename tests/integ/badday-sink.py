#!/usr/bin/env python3
"""Bad days of the sink: the disk is full, breaks, is slow, or takes no more than so much of one file.

    badday-sink.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import fcntl
import os
import resource
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
MIB = 1 << 20
F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; Python's fcntl lacks it


def mounted(folder, kind, options="", **more):
    try:
        return badday.Mounted(folder, kind, options, **more)
    except OSError as error:
        raise cases.Skip(f"skip: cannot mount {kind}: {error}") from error


def make_ext4(path, size):
    """A sparse file of SIZE with an empty ext4."""
    with open(path, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", path], check=True)


def fail_on(guest, image, *words, **save):
    badday.Save(guest, image, **save).check_failed(image, *words)
    guest.check_released()
    badday.check_incomplete(BUILD, image)


# ---- full ----------------------------------------------------------------------------------------------------


def disk_full_on_tmpfs_fails(folder):
    with badday.ProcessUnderTest(BUILD, threads=2) as guest, mounted(f"{folder}/disk", "tmpfs", "size=20m"):
        fail_on(guest, f"{folder}/disk/image", "no space", "free some room")
        badday.check_saves(guest, f"{folder}/image")
        guest.check_no_errors()


def disk_full_on_ext4_fails(folder):
    make_ext4(f"{folder}/ext4", 24 * MIB)
    with badday.ProcessUnderTest(BUILD, memory="memfd") as guest, \
            mounted(f"{folder}/disk", "ext4", device=f"{folder}/ext4"):
        fail_on(guest, f"{folder}/disk/image", "no space", "free some room")
        badday.check_saves(guest, f"{folder}/image")
        guest.check_no_errors()


def disk_full_for_a_qemu_guest_fails(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest, mounted(f"{folder}/disk", "tmpfs", "size=20m"):
        fail_on(guest, f"{folder}/disk/image", "no space", "free some room")
        badday.check_saves(guest, f"{folder}/image")
        guest.check_no_errors()


def disk_full_at_the_last_bytes_fails(folder):
    """Everything fits but the end: indices, state, manifest."""
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image")
        assert result.returncode == 0, result.stderr
        du = subprocess.run(["du", "-sk", f"{folder}/image"], stdout=subprocess.PIPE, text=True, check=True)
        needed = int(du.stdout.split()[0])
        failed = 0
        for less in (8, 16, 32, 64, 128):
            with mounted(f"{folder}/disk{less}", "tmpfs", f"size={needed - less}k"):
                image = f"{folder}/disk{less}/image"
                if badday.Save(guest, image).finish()[0] == 0:
                    badday.check_complete(guest, image)  # the measure of the other file system was too large
                    continue
                fail_on(guest, image, "no space")
                failed += 1
        assert failed >= 3, failed
        guest.check_no_errors()


def disk_without_inodes_fails(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        for inodes in (3, 6, 12):
            with mounted(f"{folder}/disk{inodes}", "tmpfs", f"nr_inodes={inodes}"):
                fail_on(guest, f"{folder}/disk{inodes}/image", "o space")
        guest.check_no_errors()


# ---- broken --------------------------------------------------------------------------------------------------


def disk_that_breaks_half_way_fails(folder):
    """A loop device over a memfd that is sealed while the save runs: each write from then on is EIO."""
    disk = os.memfd_create("disk", os.MFD_ALLOW_SEALING)
    path = f"/proc/{os.getpid()}/fd/{disk}"
    make_ext4(path, 256 * MIB)
    try:
        with badday.ProcessUnderTest(BUILD) as guest, \
                mounted(f"{folder}/disk", "ext4", "errors=continue", device=path):
            image = f"{folder}/disk/image"
            save = badday.Save(guest, image, "--max-bandwidth", "16M")
            save.wait_sweeping()
            fcntl.fcntl(disk, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
            save.check_failed(image, "nput/output error")
            guest.check_released()
            assert not os.path.exists(f"{image}/manifest.json")
            guest.check_no_errors()
    finally:
        os.close(disk)


def device_without_room_fails(folder):
    """Thin provisioning: the file system has room, the device below it has not."""
    with mounted(f"{folder}/small", "tmpfs", "size=16m"):
        make_ext4(f"{folder}/small/ext4", 256 * MIB)
        with badday.ProcessUnderTest(BUILD) as guest, \
                mounted(f"{folder}/disk", "ext4", "errors=continue", device=f"{folder}/small/ext4"):
            fail_on(guest, f"{folder}/disk/image")
            badday.check_saves(guest, f"{folder}/image")
            guest.check_no_errors()


def file_size_limit_fails(folder):
    """ulimit -f: by default the kernel kills who writes beyond it."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, 10 * MIB))
    with badday.ProcessUnderTest(BUILD) as guest:
        status, out, err = run_limited(limit, guest, f"{folder}/image")
        assert status == 1 and not out, (status, out, err)
        badday.check_one_line(err, f"{folder}/image")
        guest.check_released()
        badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


def run_limited(limit, guest, image):
    result = subprocess.run([f"{BUILD}/tools/vmsnap", "save", *guest.target, image], preexec_fn=limit, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
    return result.returncode, result.stdout, result.stderr


def few_descriptors_fail_or_do(folder):
    """Where the hard limit of descriptors is reached, that is said; where it is enough, it works."""
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        outcomes = set()
        for number in (5, 8, 10, 12, 16, 24, 32, 48, 96):
            def limit(number=number):
                resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
            image = f"{folder}/image{number}"
            status, out, err = run_limited(limit, guest, image)
            outcomes.add(status)
            if status == 0:
                guest.check_released()
                badday.check_complete(guest, image)
            else:
                assert status == 1 and not out, (number, status, out, err)
                badday.check_one_line(err)
                guest.check_released()
                badday.check_incomplete(BUILD, image)
        assert outcomes == {0, 1}, outcomes
        guest.check_no_errors()


# ---- slow ----------------------------------------------------------------------------------------------------


def slow_sink_with_room_does_not_hold_the_guest(folder):
    with badday.ProcessUnderTest(BUILD, size="16M") as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "5M", "--at-cap", "abort")
        save.wait_sweeping()
        guest.check_runs()
        status, _out, err = save.finish(60)
        assert status == 0, err
        guest.check_released()
        badday.check_complete(guest, f"{folder}/image")
        guest.check_no_errors()


def slow_sink_with_block_holds_the_guest_and_is_exact(folder):
    with badday.ProcessUnderTest(BUILD, size="16M", threads=2) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "5M", "--buffer", "4M")
        save.wait_sweeping()
        badday.wait_until(lambda: badday.blocked_threads(guest.pid), 3, "a guest's write that waits")
        status, _out, err = save.finish(60)
        assert status == 0, err
        guest.check_released()
        badday.check_complete(guest, f"{folder}/image")
        guest.check_no_errors()


def slow_sink_with_abort_fails(folder):
    for size, options in (("24M", ("--buffer", "4M")), ("96M", ())):
        with badday.ProcessUnderTest(BUILD, size=size) as guest:
            save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "5M", "--at-cap", "abort", *options)
            save.check_failed("buffer")
            guest.check_released()
            badday.check_incomplete(BUILD, f"{folder}/image")
            guest.check_no_errors()


def slow_sink_of_a_qemu_guest_with_abort_fails(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "5M", "--at-cap", "abort", "--buffer", "4M")
        save.check_failed("buffer")
        guest.check_released()
        badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
