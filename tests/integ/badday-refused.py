#!/usr/bin/env python3
"""Bad days of rights and places: who may not, and where an image cannot go. The guest is not even touched.

    badday-refused.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import children  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
NOBODY = 65534
MS_RDONLY = 1


def build_for_nobody(where):
    """A copy of the programs where everybody may run them."""
    os.chmod(where, 0o755)
    copy = f"{where}/build"
    for name in ("tools/vmsnap", "tests/guest/memguest"):
        os.makedirs(os.path.dirname(f"{copy}/{name}"), exist_ok=True)
        shutil.copy(f"{BUILD}/{name}", f"{copy}/{name}")
    return copy


def as_nobody(build, *arguments):
    return badday.vmsnap(build, *arguments, user=NOBODY, group=NOBODY, extra_groups=[])


def folder_of_nobody(where):
    path = f"{where}/nobody"
    os.mkdir(path)
    os.chown(path, NOBODY, NOBODY)
    return path


def refuse(guest, image, *words, options=()):
    result = badday.vmsnap(BUILD, "save", *guest.target, image, *options)
    line = badday.check_refused(result, *words)
    assert not badday.troubles(guest.pid), badday.troubles(guest.pid)
    assert badday.descriptors(guest.pid) == guest.descriptors_before
    badday.check_no_process_left(BUILD)
    return line


# Has 60 shared memories of 64 KiB, each from a memfd of its own.
SHARING_GUEST = """
import mmap, os, time
maps = []
for i in range(60):
    fd = os.memfd_create("one")
    os.ftruncate(fd, 1 << 16)
    maps.append(mmap.mmap(fd, 1 << 16))
    maps[-1].write(b"x" * (1 << 16))
    os.close(fd)
print("ready", flush=True)
time.sleep(1000)
"""


def too_few_descriptors_are_told(folder):
    """One for each shared memory, to read it by."""
    child = children.start([sys.executable, "-c", SHARING_GUEST], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().startswith("ready")
    for limit in (24, 40, 60, 80, 100):
        command = ["prlimit", f"--nofile={limit}", f"{BUILD}/tools/vmsnap", "save", "--pid", str(child.pid)]
        result = subprocess.run([*command, f"{folder}/image"], capture_output=True, text=True, timeout=20, check=False)
        badday.check_refused(result, "open files")
        badday.check_incomplete(BUILD, f"{folder}/image")
        assert not badday.troubles(child.pid)
    assert child.poll() is None


# ---- who may not ---------------------------------------------------------------------------------------------


def stranger_may_not_save(folder):
    build = build_for_nobody(folder)
    image = f"{folder_of_nobody(folder)}/image"
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        badday.check_refused(as_nobody(build, "save", *guest.target, image), str(guest.pid), "root")
        badday.check_incomplete(BUILD, image)
        guest.check_released()
        badday.check_refused(as_nobody(build, "save", "--pid", "1", image), "process 1", "root")
        guest.check_no_errors()


def owner_without_userfaultfd_is_told(folder):
    """Its own process, but the kernel gives userfaultfd to root only."""
    with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
        if file.read().strip() != "0":
            raise cases.Skip("skip: vm.unprivileged_userfaultfd is not 0")
    build = build_for_nobody(folder)
    image = f"{folder_of_nobody(folder)}/image"
    with badday.ProcessUnderTest(build, size="8M", user=NOBODY) as guest:
        badday.check_refused(as_nobody(build, "save", *guest.target, image), "userfaultfd")
        badday.check_incomplete(BUILD, image)
        guest.check_released()
        guest.check_no_errors()


def root_may_save_for_nobody(folder):
    """A process without rights of its own is no obstacle to root."""
    build = build_for_nobody(folder)
    with badday.ProcessUnderTest(build, size="8M", user=NOBODY) as guest:
        result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image")
        guest.check_released()
        assert result.returncode == 0, result.stderr
        assert badday.vmsnap(BUILD, "verify", f"{folder}/image").returncode == 0
        guest.check_no_errors()


def stranger_may_not_ask_a_qemu(folder):
    build = build_for_nobody(folder)
    image = f"{folder_of_nobody(folder)}/image"
    with badday.QemuUnderTest(BUILD, folder) as guest:
        os.chmod(guest.dir, 0o755)
        badday.check_refused(as_nobody(build, "save", *guest.target, image), guest.sockets[0])
        os.chmod(guest.sockets[0], 0o777)
        badday.check_refused(as_nobody(build, "save", *guest.target, image), guest.sockets[0], "may not be read")
        badday.check_incomplete(BUILD, image)
        guest.check_released()


# ---- where it cannot go --------------------------------------------------------------------------------------


def place_that_is_taken_is_refused(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        with open(f"{folder}/file", "w", encoding="ascii") as file:
            file.write("mine")
        os.mkdir(f"{folder}/full")
        with open(f"{folder}/full/precious", "w", encoding="ascii") as file:
            file.write("mine")
        os.symlink(f"{folder}/nowhere", f"{folder}/dangling")
        os.symlink("loop", f"{folder}/loop")
        before = sorted(os.listdir(folder))
        for name in ("file", "full", "dangling", "loop"):
            refuse(guest, f"{folder}/{name}", f"{folder}/{name}")
        assert sorted(os.listdir(folder)) == before
        assert os.listdir(f"{folder}/full") == ["precious"]
        refuse(guest, f"{folder}/file/image", f"{folder}/file/image")
        guest.check_no_errors()


def image_is_not_overwritten(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        image = f"{folder}/image"
        assert badday.vmsnap(BUILD, "save", *guest.target, image).returncode == 0
        refuse(guest, image, image)
        badday.check_complete(guest, image)
        guest.check_no_errors()


def place_that_is_nowhere_is_refused(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        for name in ("missing/image", "n" * 300, "missing/" * 50 + "image"):
            refuse(guest, f"{folder}/{name}", f"{folder}/{name}"[:200])
        refuse(guest, f"{folder}/" + "d/" * 4000, "ame too long")
        refuse(guest, "/proc/image", "/proc/image")
        refuse(guest, "/dev/null", "/dev/null")
        refuse(guest, "/", "/")
        refuse(guest, f"{folder}/missing/line\nbreak\x1b[31m", "missing/line")
        result = badday.vmsnap(BUILD, "save", *guest.target, "")
        assert result.returncode in (1, 2), result
        badday.check_one_line(result.stderr)
        assert os.listdir(folder) == []
        guest.check_released()
        guest.check_no_errors()


def place_that_may_not_be_written_is_refused(folder):
    build = build_for_nobody(folder)
    os.mkdir(f"{folder}/root", 0o755)
    with badday.ProcessUnderTest(build, size="8M", user=NOBODY) as guest:
        badday.check_refused(as_nobody(build, "save", *guest.target, f"{folder}/root/image"))
        assert os.listdir(f"{folder}/root") == []
        guest.check_released()
        try:
            disk = badday.Mounted(f"{folder}/disk", "tmpfs", flags=MS_RDONLY)
        except OSError as error:
            raise cases.Skip(f"skip: cannot mount tmpfs: {error}") from error
        with disk:
            refuse(guest, f"{folder}/disk/image", f"{folder}/disk/image", "ead-only")
            refuse(guest, f"{folder}/disk", f"{folder}/disk", "ead-only")
        guest.check_no_errors()


def empty_directory_that_is_there_is_used_and_kept_clean(folder):
    """What is refused later than that leaves it as it was found: empty, or gone."""
    with badday.ProcessUnderTest(BUILD) as guest:
        os.mkdir(f"{folder}/image")
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "8M", "--buffer", "4M", "--at-cap", "abort")
        save.check_failed("--buffer")
        guest.check_released()
        assert not os.path.exists(f"{folder}/image") or os.listdir(f"{folder}/image") == []
        guest.check_no_errors()


def directory_that_vanishes_half_way_is_told(folder):
    """Somebody removes or moves the directory while it is written."""
    with badday.ProcessUnderTest(BUILD) as guest:
        for spoil in (lambda image: shutil.rmtree(image), lambda image: os.rename(image, f"{folder}/moved")):
            image = f"{folder}/image"
            save = badday.Save(guest, image, "--max-bandwidth", "32M")
            save.wait_sweeping()
            spoil(image)
            status, out, err = save.finish()
            guest.check_released()
            if status == 0:
                badday.check_complete(guest, image if os.path.exists(image) else f"{folder}/moved")
            else:
                assert status == 1 and not out, (status, out, err)
                badday.check_one_line(err)
                for place in (image, f"{folder}/moved"):
                    assert not os.path.exists(f"{place}/manifest.json")
            shutil.rmtree(f"{folder}/moved", ignore_errors=True)
            shutil.rmtree(image, ignore_errors=True)
        guest.check_no_errors()


# ---- what makes no sense for this guest ----------------------------------------------------------------------


def options_that_do_not_fit_are_refused(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image", "--buffer", "64K")
        badday.check_refused(result, "buffer", status=2)
        badday.check_incomplete(BUILD, f"{folder}/image")
        refuse(guest, f"{folder}/image", "nosuch*", options=("--region", "nosuch*"))
        badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_released()
        guest.check_no_errors()


def shared_memory_that_another_writes_is_refused(folder):
    """What another process writes is not seen: by name, or left out with --region."""
    with badday.ProcessUnderTest(BUILD, memory="memfd", size="8M") as guest:
        number = next(n for n, what in guest.descriptors_before.items() if "memfd" in what)
        text = (f"import mmap, os, sys, time\nfd = os.open('/proc/{guest.pid}/fd/{number}', os.O_RDWR)\n"
                "memory = mmap.mmap(fd, mmap.PAGESIZE)\nprint('ready', flush=True)\ntime.sleep(100)")
        other = badday.children.start([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline()
        refuse(guest, f"{folder}/image", "memfd", str(other.pid))
        badday.check_incomplete(BUILD, f"{folder}/image")
        badday.children.stop(other)
        badday.check_saves(guest, f"{folder}/image")
        guest.check_no_errors()


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skip: needs root")
        sys.exit(cases.EXIT_SKIP)
    cases.run(globals(), sys.argv[2:])
