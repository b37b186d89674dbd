#!/usr/bin/env python3
"""Bad days of an image: each kind of its files damaged in each way, and looked at through the command line.

    badday-image.py BUILD [WORD...]      only the cases whose name holds one of these words

The library's own tests do this at every byte; here it is seen that the commands say so, and write nothing.
"""
import json
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
SEED = int(os.environ.get("SNAP_TEST_SEED", random.randrange(1 << 32)))


# ---- ways to damage a file -----------------------------------------------------------------------------------


def cut(path, length):
    with open(path, "r+b") as file:
        file.truncate(length)


def flip(path, at, bit=0):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def replace(path, make):
    os.unlink(path)
    make(path)


def damages(path, chance):
    """Name → what does it."""
    size = os.path.getsize(path)
    found = {
        "missing": lambda: os.unlink(path),
        "empty": lambda: cut(path, 0),
        "cut by one": lambda: cut(path, size - 1),
        "cut in half": lambda: cut(path, size // 2),
        "longer by one": lambda: cut(path, size + 1),
        "a directory": lambda: replace(path, os.mkdir),
        "a FIFO": lambda: replace(path, os.mkfifo),
        "a link to nowhere": lambda: replace(path, lambda name: os.symlink("nowhere", name)),
        "a link to itself": lambda: replace(path, lambda name: os.symlink(os.path.basename(name), name)),
        "an endless device": lambda: replace(path, lambda name: os.symlink("/dev/zero", name)),
    }
    for at in (0, size // 2, size - 1, chance.randrange(size)):
        found[f"flipped at {at}"] = lambda at=at: flip(path, at, chance.randrange(8))
    return found


# ---- what the commands say -----------------------------------------------------------------------------------


def names_file(line, name):
    """A line that names the damaged file, or the region that it belongs to."""
    return name in line or os.path.splitext(os.path.basename(name))[0] in line


def check_damage_is_seen(folder, image, name, exports):
    verified = badday.check_refused(badday.vmsnap(BUILD, "verify", image, timeout=20))
    assert names_file(verified, name), verified
    # What the memory is, info does not read; all else it does.
    told = badday.vmsnap(BUILD, "info", image, timeout=20)
    assert told.returncode in (0, 1), told
    if told.returncode:
        badday.check_one_line(told.stderr)
    assert told.returncode == 1 or name != "manifest.json", told.stdout
    for options in exports:
        result = badday.vmsnap(BUILD, "export", image, *options, "-o", f"{folder}/out", timeout=20)
        line = badday.check_refused(result)
        assert names_file(line, name), line
        assert not os.path.exists(f"{folder}/out")
    if not name.endswith(".img"):  # pages of zeros are not read for it
        assert names_file(badday.check_refused(badday.vmsnap(BUILD, "merge", image, f"{folder}/out")), name)
    assert not [entry for entry in os.listdir(folder) if entry not in ("image", "good", "serial")], os.listdir(folder)


def damage_each(folder, names, exports_of):
    """Each of NAMES in each way, with the image as good as new between."""
    image, good = f"{folder}/image", f"{folder}/good"
    os.rename(image, good)
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    for name in names:
        for what in damages(f"{good}/{name}", chance):
            shutil.copytree(good, image)
            damages(f"{image}/{name}", chance)[what]() if not what.startswith("flipped") else flip(
                f"{image}/{name}", int(what.split()[-1]), chance.randrange(8))
            try:
                check_damage_is_seen(folder, image, name, exports_of(name))
            except AssertionError as error:
                raise AssertionError(f"{name} {what}: {error}") from error
            shutil.rmtree(image)
    os.rename(good, image)
    assert badday.vmsnap(BUILD, "verify", image).returncode == 0


def sample_of(image):
    """Of each kind of file one, of memory the largest."""
    regions = json.loads(badday.vmsnap(BUILD, "info", image, "--json").stdout)["regions"]
    raw = max((name for name in os.listdir(f"{image}/ram") if name.endswith(".img")),
              key=lambda name: os.stat(f"{image}/ram/{name}").st_blocks)
    return regions, [f"ram/{raw}", f"ram/{raw[:-4]}.idx", "manifest.json",
                     *(f"state/{name}" for name in sorted(os.listdir(f"{image}/state")))]


def damaged_process_image_is_told_by_its_file(folder):
    with badday.ProcessUnderTest(BUILD, size="2M") as guest:
        assert badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image").returncode == 0
        arena = guest.arena
    _regions, names = sample_of(f"{folder}/image")

    def exports(name):
        if name.startswith("ram/"):
            return (["--format", "raw", "--address", hex(arena), "--length", "2M"], ["--format", "elf"])
        return ([["--format", "elf"]])
    damage_each(folder, names, exports)


def damaged_qemu_image_is_told_by_its_file(folder):
    with badday.QemuUnderTest(BUILD, folder, size="64M") as guest:
        assert badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image").returncode == 0
    _regions, names = sample_of(f"{folder}/image")
    damage_each(folder, [names[1], *names[3:]], lambda _name: [["--format", "qemu"]])


def strange_directory_is_no_image(folder):
    """Every command that takes one says so."""
    os.mkdir(f"{folder}/empty")
    os.mkdir(f"{folder}/strange")
    with open(f"{folder}/strange/manifest.json", "w", encoding="ascii") as file:
        file.write("{}")
    with open(f"{folder}/file", "w", encoding="ascii") as file:
        file.write("{}")
    for name in ("empty", "strange", "file", "missing"):
        path = f"{folder}/{name}"
        for command in (["info", path], ["verify", path], ["export", path, "--format", "elf", "-o", f"{folder}/out"],
                        ["merge", path, f"{folder}/out"], ["restore", path, "--qemu", "--", "true"]):
            badday.check_refused(badday.vmsnap(BUILD, *command), path)
    assert sorted(os.listdir(folder)) == ["empty", "file", "strange"]


def export_that_finds_no_room_leaves_nothing(folder):
    with badday.ProcessUnderTest(BUILD, size="16M") as guest:
        assert badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image").returncode == 0
    try:
        disk = badday.Mounted(f"{folder}/disk", "tmpfs", "size=4m")
    except OSError as error:
        raise cases.Skip(f"skip: cannot mount tmpfs: {error}") from error
    with disk as place:
        for options in (["--format", "elf"], ["--format", "raw", "--address", hex(guest.arena), "--length", "16M"]):
            result = badday.vmsnap(BUILD, "export", f"{folder}/image", *options, "-o", f"{place}/out")
            badday.check_refused(result, f"{place}/out")
            assert os.listdir(place) == []
    for out in (f"{folder}/missing/out", folder, "/dev/full"):
        result = badday.vmsnap(BUILD, "export", f"{folder}/image", "--format", "elf", "-o", out)
        badday.check_refused(result, out)
    assert sorted(os.listdir(folder)) == ["disk", "image"]


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
