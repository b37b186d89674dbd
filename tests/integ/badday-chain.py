#!/usr/bin/env python3
"""Bad days of chains: a parent that is missing, altered, of another guest, newer, or its own child; kills between two
incremental snapshots and while old ones are merged away; merging that is killed or interrupted.

    badday-chain.py BUILD [WORD...]      only the cases whose name holds one of these words

SNAP_TEST_SEED repeats a run, SNAP_TEST_MOMENTS says how many kills there are.
"""
import ctypes
import filecmp
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import children  # pylint: disable=wrong-import-position
import guests  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
SEED = int(os.environ.get("SNAP_TEST_SEED", random.randrange(1 << 32)))
MOMENTS = int(os.environ.get("SNAP_TEST_MOMENTS", 20))
SIZE = "8M"


def run(*arguments):
    """A vmsnap that succeeds."""
    result = badday.vmsnap(BUILD, *arguments)
    assert result.returncode == 0, (arguments, result.stderr)
    return result.stdout


def save_chain(guest, folder, count=3):
    """FOLDER/0, FOLDER/1 …, each the parent of the next."""
    images = [f"{folder}/{i}" for i in range(count)]
    for i, image in enumerate(images):
        run("save", *guest.target, image, *(["--parent", images[i - 1]] if i else []))
    return images


def entries_of(place):
    return json.loads(run("list", place, "--json"))["images"]


# ---- a manifest that was made up -----------------------------------------------------------------------------


def xxh3(data):
    try:
        function = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    except OSError as error:
        raise cases.Skip(f"skip: {error}") from error
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return function(data, len(data))


def forge(image, pattern, replacement):
    """Replace the first match of PATTERN in the manifest; the checksum is right again."""
    path = f"{image}/manifest.json"
    with open(path, "rb") as file:
        body = file.read().split(b'  "checksum"')[0]
    body, n = re.subn(pattern.encode(), replacement.encode(), body, count=1)
    assert n == 1, pattern
    with open(path, "wb") as file:
        file.write(body + b'  "checksum": "%016x"\n}\n' % xxh3(body))


def manifest(image):
    with open(f"{image}/manifest.json", encoding="utf-8") as file:
        return json.load(file)


# ---- what every command says ---------------------------------------------------------------------------------


def check_refused_by_all(folder, image, *words, but=()):
    """Every command that reads IMAGE says so, in one line with WORDS, and writes nothing."""
    before = sorted(os.listdir(folder))
    commands = {"info": [], "verify": [], "merge": [f"{folder}/out"],
                "export": ["--format", "elf", "-o", f"{folder}/out"], "restore": ["--qemu", "--", "true"]}
    for command, options in commands.items():
        if command not in but:
            badday.check_refused(badday.vmsnap(BUILD, command, image, *options), *words)
    assert sorted(os.listdir(folder)) == before, os.listdir(folder)
    entry = next(entry for entry in entries_of(folder) if entry["dir"] == image)
    if "info" not in but:
        assert not entry["complete"] and words[-1] in entry["problem"], entry


def parent_that_is_missing_is_told_by_every_command(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        images = save_chain(guest, folder)
        shutil.rmtree(images[0])
        check_refused_by_all(folder, images[1], images[1], "missing")
        check_refused_by_all(folder, images[2], images[1], "missing")
        refused = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/3", "--parent", images[2])
        badday.check_refused(refused, "missing")
        guest.check_released()
        assert not os.path.exists(f"{folder}/3")


def parent_that_is_incomplete_is_told_by_every_command(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        images = save_chain(guest, folder)
    os.unlink(f"{images[1]}/manifest.json")
    check_refused_by_all(folder, images[2], images[1], "incomplete")
    assert entries_of(folder)[0]["complete"]


def flip_every_page(path):
    with open(path, "r+b") as file:
        for at in range(0, os.fstat(file.fileno()).st_size, 4096):
            byte = os.pread(file.fileno(), 1, at)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 0x40]), at)


def parent_that_was_altered_is_told_by_its_file(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        images = save_chain(guest, folder)
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    for image in images[:2]:
        raw = max((name for name in os.listdir(f"{image}/ram") if name.endswith(".img")),
                  key=lambda name, ram=f"{image}/ram": os.stat(f"{ram}/{name}").st_blocks)
        index = f"ram/{raw[:-4]}.idx"
        for name, but in (("manifest.json", ()), (index, ()), ("state/maps", ()),
                          (f"ram/{raw}", ("info", "merge", "export", "restore"))):
            path = f"{image}/{name}"
            with open(path, "r+b") as file:
                good = file.read()
                at = chance.randrange(len(good))
                file.seek(at)
                file.write(bytes([good[at] ^ 1 << chance.randrange(8)]))
            check_refused_by_all(folder, images[2], path, but=but)
            with open(path, "r+b") as file:
                file.write(good)
    run("verify", images[2])
    # Memory is checked as it is read: all of the oldest image is damaged, and whoever reads what it still has sees it.
    for name in os.listdir(f"{images[0]}/ram"):
        if name.endswith(".img"):
            flip_every_page(f"{images[0]}/ram/{name}")
    check_refused_by_all(folder, images[2], f"{images[0]}/ram/", but=("info", "restore"))


def parent_that_cannot_be_one_is_told_by_every_command(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        images = save_chain(guest, folder, 2)
    good = f"{folder}/good"
    shutil.copytree(images[0], good)
    for pattern, replacement, word in (
            ('"driver": "process"', '"driver": "qemu"', "another kind of guest"),
            ('"guest": "[^"]*"', '"guest": "somebody else"', "another guest"),
            (r'"created": "\d{4}', '"created": "3024', "newer"),
            ('"parent-id": null', f'"parent-id": "{manifest(images[1])["id"]}"', "circle"),
            ('"parent-id": null', f'"parent-id": "{manifest(images[0])["id"]}"', "circle")):
        shutil.rmtree(images[0])
        shutil.copytree(good, images[0])
        forge(images[0], pattern, replacement)
        if word == "circle":  # a parent is not newer than its child: in a circle they are all of one time
            forge(images[0], '"created": "[^"]*"', f'"created": "{manifest(images[1])["created"]}"')
        moved = f"{os.path.dirname(folder)}/{os.path.basename(folder)}-good"
        os.rename(good, moved)  # beside them it would be found as the parent that is looked for
        try:
            check_refused_by_all(folder, images[1], images[0] if word != "circle" else "", word)
        finally:
            os.rename(moved, good)


def parent_of_another_guest_is_refused_before_the_guest_is_touched(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest, badday.ProcessUnderTest(BUILD, size=SIZE) as other:
        run("save", *guest.target, f"{folder}/0")
        refused = badday.vmsnap(BUILD, "save", *other.target, f"{folder}/1", "--parent", f"{folder}/0")
        badday.check_refused(refused, f"{folder}/0")
        other.check_released()
        assert os.listdir(folder) == ["0"]


def parent_is_not_deleted_before_its_children(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        images = save_chain(guest, folder)
    for i in (0, 1):
        badday.check_refused(badday.vmsnap(BUILD, "delete", images[i]), images[i + 1])
    run("verify", images[2])
    for image in reversed(images):
        run("delete", image)
    assert os.listdir(folder) == []


# ---- merging -------------------------------------------------------------------------------------------------


def merged_image_is_the_chain_in_every_form(folder):
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        images = save_chain(guest, folder, 4)
        run("merge", images[3], f"{folder}/merged")
        guest.check_exact(f"{folder}/merged")
        arena = guest.arena
    run("verify", f"{folder}/merged")
    for name, options in (("core", ["--format", "elf"]),
                          ("raw", ["--format", "raw", "--address", hex(arena), "--length", SIZE])):
        for image in (images[3], f"{folder}/merged"):
            run("export", image, *options, "-o", f"{folder}/{name}-of-{os.path.basename(image)}")
        assert filecmp.cmp(f"{folder}/{name}-of-3", f"{folder}/{name}-of-merged", shallow=False), name
    for image in reversed(images):
        run("delete", image)
    run("verify", f"{folder}/merged")


def chain_of_a_qemu_is_exported_and_restored_as_its_merged_image(folder):
    with badday.QemuUnderTest(BUILD, folder, size="64M") as guest:
        images = save_chain(guest, folder)
        command = guest.process.args
    run("merge", images[2], f"{folder}/merged")
    for image in (images[2], f"{folder}/merged"):
        run("export", image, "--format", "qemu", "-o", f"{folder}/stream-of-{os.path.basename(image)}")
    assert filecmp.cmp(f"{folder}/stream-of-2", f"{folder}/stream-of-merged", shallow=False)
    # A raw file of a chain holds a part: it is never mapped, and a restore copies.
    assert all("raw-path" not in region for region in json.loads(run("info", images[2], "--json"))["regions"])
    program = [word for word in command if not word.startswith("-qmp")]
    badday.check_refused(badday.vmsnap(BUILD, "restore", images[2], "--qemu", "--map=always", "--", *program), "mapped")
    check_restored(folder, images[2], command)


def check_restored(folder, image, command):
    """The guest goes on from IMAGE, and finds its memory as it left it."""
    words = iter(command)
    program = []
    for word in words:  # without the monitors of the first one
        if word in ("-qmp", "-chardev", "-mon"):
            next(words)
        else:
            program.append(word.replace(f"{folder}/serial", f"{folder}/serial-again"))
    with open(f"{folder}/restored", "w+", encoding="ascii") as out:  # a pipe would stay open as long as QEMU runs
        subprocess.run([f"{BUILD}/tools/vmsnap", "restore", image, "--qemu", "--detach", "--json", "--", *program],
                       stdout=out, stderr=out, timeout=60, check=False)
        out.seek(0)
        restored = json.loads(out.read())
    assert restored["mapped-bytes"] == 0 and restored["running"], restored
    try:
        serial = guests.Serial(f"{folder}/serial-again")
        assert all(report["errors"] == 0 for report in serial.wait_reports(2))
    finally:
        badday.kill_quietly(restored["pid"])


def merge_killed_leaves_the_chain_and_what_can_be_deleted(folder):
    with badday.ProcessUnderTest(BUILD, size="32M") as guest:
        images = save_chain(guest, folder)
    chance = random.Random(SEED)
    begin = time.monotonic()
    run("merge", images[2], f"{folder}/out")
    length = time.monotonic() - begin
    run("delete", f"{folder}/out")
    for number in [signal.SIGKILL] * (MOMENTS // 4) + [signal.SIGINT] * (MOMENTS // 4):
        process = children.start([f"{BUILD}/tools/vmsnap", "merge", images[2], f"{folder}/out"],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(length * chance.random())
        process.send_signal(number)
        _out, err = process.communicate(timeout=20)
        assert process.returncode in (0, 1, -number), (process.returncode, err)
        if process.returncode == 0:
            run("verify", f"{folder}/out")
            run("delete", f"{folder}/out")
        elif process.returncode == 1:
            badday.check_one_line(err, "cancelled")
            assert not os.path.exists(f"{folder}/out")
        else:  # SIGINT before it is caught, or SIGKILL
            if os.path.exists(f"{folder}/out/manifest.json"):  # killed when all was done
                run("verify", f"{folder}/out")
            if os.path.exists(f"{folder}/out"):
                run("delete", f"{folder}/out")
    run("verify", images[2])


# ---- a chain that is being made ------------------------------------------------------------------------------


class Series:
    """A `vmsnap save --every` under way."""

    def __init__(self, guest, chain, *options):
        self.process = children.start([f"{BUILD}/tools/vmsnap", "save", *guest.target, chain, *options],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def kill_after(self, seconds):
        time.sleep(seconds)
        self.process.kill()
        _out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == -signal.SIGKILL and not err, (self.process.returncode, err)


def check_chain_after_kill(chain):
    """Whatever has a manifest reads well, but an image that is being merged away."""
    for entry in entries_of(chain) if os.path.isdir(chain) else []:
        if entry["complete"]:
            run("verify", entry["dir"])
        else:
            badday.check_one_line("vmsnap: " + entry["problem"])
            assert "incomplete" in entry["problem"] or "being merged" in entry["problem"], entry


def check_goes_on(guest, chain, *options):
    """The next run finishes or undoes what was interrupted."""
    run("save", *guest.target, chain, "--every", "10ms", "--count", "1", *options)
    entries = entries_of(chain)
    assert all(entry["complete"] for entry in entries), entries
    assert len(os.listdir(chain)) == len(entries), os.listdir(chain)  # nothing hidden is left
    assert [entry["parents"] for entry in entries] == list(range(len(entries))), entries
    run("verify", entries[-1]["dir"])
    guest.check_exact(entries[-1]["dir"])
    return entries


def kill_at_moments(folder, *options):
    chain, chance = f"{folder}/chain", random.Random(SEED)
    print(f"seed {SEED}")
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        for turn in range(MOMENTS // 2):
            Series(guest, chain, "--every", "10ms", *options).kill_after(0.05 + chance.random())
            badday.check_no_process_left(BUILD)
            guest.check_released()
            check_chain_after_kill(chain)
            entries = check_goes_on(guest, chain, *options)
            print(f"kill {turn}: {len(entries)} images", flush=True)
        guest.check_no_errors()
    return entries


def chain_that_is_not_whole_is_not_gone_on_with_and_nothing_is_removed(folder):
    chain, series = f"{folder}/chain", ["--every", "1ms", "--count", "1"]
    with badday.ProcessUnderTest(BUILD, size=SIZE) as guest:
        run("save", *guest.target, f"{chain}/", "--every", "1ms", "--count", "3")
        os.mkdir(f"{chain}/000004")  # as far as a killed run may have come
        run("save", *guest.target, f"{chain}/", *series)
        assert [entry["parents"] for entry in entries_of(chain)] == list(range(4))
        for file, words in (("000002/manifest.json", ["000002", "incomplete"]), ("000001/ram", ["000001"]),
                            ("000003", ["000003", "missing"])):
            os.rename(f"{chain}/{file}", f"{folder}/away")
            before = sorted(os.walk(chain))
            badday.check_refused(badday.vmsnap(BUILD, "save", *guest.target, chain, *series), *words)
            assert sorted(os.walk(chain)) == before, file
            os.rename(f"{folder}/away", f"{chain}/{file}")
        for name in ("0000004", "000000", "notes"):
            os.mkdir(f"{chain}/{name}")
            badday.check_refused(badday.vmsnap(BUILD, "save", *guest.target, chain, *series), f"{chain}/{name}")
            os.rmdir(f"{chain}/{name}")
        guest.check_released()
        check_goes_on(guest, chain)


def kill_between_and_in_incrementals_leaves_a_chain(folder):
    entries = kill_at_moments(folder)
    assert len(entries) > MOMENTS // 2, entries


def kill_while_old_images_are_merged_leaves_a_chain(folder):
    entries = kill_at_moments(folder, "--keep", "2")
    assert len(entries) == 2, entries


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
