#!/usr/bin/env python3
"""The command line: words, options, exit status, what is printed where, Ctrl-C.

    cli.py VMSNAP

Prints a line for each case, as cmocka does. Exit status 0, 1, or 77 when this user cannot take snapshots.
"""
import inspect
import json
import mmap
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

VMSNAP = sys.argv[1]
PAGE = mmap.PAGESIZE
MIB = 1 << 20
GUEST_MIB = 32

# Holds GUEST_MIB of memory that is not zero, says where, and sleeps.
GUEST = f"""
import ctypes, mmap, sys, time
memory = mmap.mmap(-1, {GUEST_MIB} << 20)
memory.write(bytes(range(1, 252)) * (({GUEST_MIB} << 20) // 251))
print(hex(ctypes.addressof(ctypes.c_char.from_buffer(memory))), flush=True)
time.sleep(600)
"""


class Guest:
    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-c", GUEST], stdout=subprocess.PIPE, text=True)
        self.address = int(self.process.stdout.readline(), 16)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def pid(self):
        return str(self.process.pid)

    def read(self, address, length):
        with open(f"/proc/{self.pid}/mem", "rb") as memory:
            memory.seek(address)
            return memory.read(length)

    def check_untouched(self):
        """Runs, is traced by nobody, has no userfaultfd left."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            text = status.read()
        assert re.search(r"^State:\s+[SR]", text, re.MULTILINE), text
        assert re.search(r"^TracerPid:\s+0$", text, re.MULTILINE), text
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            assert "userfaultfd" not in os.readlink(f"/proc/{self.pid}/fd/{fd}")


def run(*args, **options):
    return subprocess.run([VMSNAP, *args], capture_output=True, text=True, timeout=60, check=False, **options)


def check_refused(status, result, *words):
    """One line on stderr that holds these words, nothing on stdout."""
    assert result.returncode == status, (result.args, result)
    assert result.stdout == "", result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("vmsnap"), result.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])


def save(guest, folder, *options):
    result = run("save", "--pid", guest.pid, *options, folder)
    assert result.returncode == 0, result.stderr
    return result


# ---- words and options -------------------------------------------------------------------------------------------


def wrong_usage_exits_2_with_one_line(_folder):
    for args, word in [
        ([], "COMMAND"),
        (["fly"], "fly"),
        (["--fly"], "--fly"),
        (["info"], "DIR"),
        (["info", "a", "b"], "b"),
        (["info", "--fly", "a"], "--fly"),
        (["track"], "--pid"),
        (["track", "--pid", "1", "--qemu", "s"], "one target"),
        (["track", "--pid", "x"], "--pid"),
        (["track", "--libvirt", "guest"], "--libvirt"),
        (["track", "--pid", "1", "what"], "what"),
        (["track", "--pid", "1", "--interval", "0"], "--interval"),
        (["track", "--pid", "1", "--interval", "1.5"], "--interval"),
        (["track", "--pid", "1", "--interval", "100ms"], "--interval"),
        (["track", "--pid", "1", "--rounds", "0"], "--rounds"),
        (["track", "--pid", "1", "--rounds", "-1"], "--rounds"),
        (["track", "--pid", "1", "--log", "off"], "off"),
        (["track", "--pid", "1", "--disks", "ignore"], "--disks"),
        (["probe", "--connect"], "--connect"),
        (["save", "--pid", "1", "--every", "5s", "--connect", "x", "d"], "--every"),
        (["export", "d", "--format", "raw", "-o", "-", "--connect", "x"], "-o -"),
        (["restore", "d", "--qemu", "--map", "never", "--connect", "x", "--", "qemu"], "--map"),
        (["top"], "--connect"),
        (["top", "--connect", "x", "what"], "what"),
        (["top", "--connect", "x", "--interval", "0"], "--interval"),
        (["top", "--connect", "x", "--rounds", "x"], "--rounds"),
        (["save", "d"], "--pid"),
        (["save", "--pid", "1"], "DIR"),
        (["save", "--pid", "1", "--qemu", "s", "d"], "one target"),
        (["save", "--pid", "0", "d"], "--pid"),
        (["save", "--pid", "-1", "d"], "--pid"),
        (["save", "--pid", "12x", "d"], "--pid"),
        (["save", "--pid", "99999999999", "d"], "--pid"),
        (["save", "--libvirt", "guest", "d"], "--libvirt"),
        (["save", "--pid", "1", "--every", "5s", "--parent", "p", "d"], "--parent"),
        (["save", "--pid", "1", "--keep", "3", "d"], "--every"),
        (["save", "--pid", "1", "--every", "5s", "--keep", "0", "d"], "--keep"),
        (["save", "--pid", "1", "--every", "5s", "--count", "x", "d"], "--count"),
        (["save", "--pid", "1", "--compress", "zstd", "d"], "--compress"),
        (["save", "--pid", "1", "--every", "0", "d"], "--every"),
        (["save", "--pid", "1", "--every", "5x", "d"], "5x"),
        (["save", "--pid", "1", "--disks", "ignore", "d"], "--disks"),
        (["save", "--qemu", "s", "--disks", "external", "d"], "--disks"),
        (["save", "--pid", "1", "--at-cap", "cry", "d"], "--at-cap"),
        (["save", "--pid", "1", "--buffer", "64X", "d"], "64X"),
        (["save", "--pid", "1", "--buffer", "64MB", "d"], "64MB"),
        (["save", "--pid", "1", "--buffer", " 64M", "d"], "--buffer"),
        (["save", "--pid", "1", "--buffer", "-1", "d"], "--buffer"),
        (["save", "--pid", "1", "--buffer", "0", "d"], "--buffer"),
        (["save", "--pid", "1", "--buffer", "99999999T", "d"], "--buffer"),
        (["save", "--pid", "1", "--max-bandwidth", "1.5M", "d"], "--max-bandwidth"),
        (["export", "d", "-o", "f"], "--format"),
        (["export", "d", "--format", "tar", "-o", "f"], "tar"),
        (["export", "d", "--format", "libvirt", "-o", "f"], "libvirt"),
        (["export", "d", "--format", "raw"], "-o"),
        (["export", "d", "--format", "raw", "-o", "f", "--address", "1"], "--length"),
        (["export", "d", "--format", "raw", "-o", "f", "--address", "z", "--length", "1"], "--address"),
        (["export", "d", "--format", "raw", "-o", "f", "--region", "r", "--address", "1", "--length", "1"], "--region"),
        (["export", "d", "--format", "elf", "-o", "f", "--region", "r"], "--region"),
        (["restore", "d", "--", "qemu"], "--qemu"),
        (["restore", "d", "--qemu"], "--"),
    ]:
        check_refused(2, run(*args), word)


def help_teaches_and_exits_0(_folder):
    text = run("--help").stdout
    assert "Commands:" in text and "Exit status" in text
    commands = re.findall(r"^  (\w+)  +[A-Z]", text.split("Commands:")[1], re.MULTILINE)
    assert commands == ["probe", "save", "track", "info", "verify", "list", "merge", "export", "delete",
                        "restore", "top"], commands
    for command in commands:
        for args in ([command, "--help"], ["--help", command], [command, "-h"]):
            result = run(*args)
            assert result.returncode == 0 and f"vmsnap {command}" in result.stdout, (args, result)
            assert result.stderr == ""


def json_is_accepted_before_and_after_the_command(_folder):
    before, after = run("--json", "probe"), run("probe", "--json")
    assert before.returncode == after.returncode == 0
    assert json.loads(before.stdout) == json.loads(after.stdout)


def probe_json_has_every_feature(_folder):
    answer = json.loads(run("probe", "--json").stdout)
    items = answer["items"]
    assert set(answer) == {"ready", "dirty-log", "items"}, set(answer)
    assert {"group", "name", "answer", "required", "lost", "remedy"} == set(items[0])
    assert {item["answer"] for item in items} <= {"yes", "no", "denied"}
    text = run("probe").stdout
    for item in items:
        assert item["name"] in text
        assert (item["lost"] in text) == (item["answer"] != "yes")
    assert re.search(rf"^dirty log: {answer['dirty-log']} \(", text, re.MULTILINE), text


def stdout_that_is_full_fails(_folder):
    with open("/dev/full", "w", encoding="ascii") as full:
        result = subprocess.run([VMSNAP, "probe"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result


# ---- images that are not there -----------------------------------------------------------------------------------


def missing_image_exits_1_with_its_name(folder):
    missing = f"{folder}/missing"
    for args in (["info", missing], ["verify", missing], ["list", missing], ["delete", missing],
                 ["export", missing, "--format", "raw", "-o", f"{folder}/out"],
                 ["restore", missing, "--qemu", "--", "true"]):
        check_refused(1, run(*args), missing)
    assert os.listdir(folder) == []


def foreign_folder_is_not_deleted(folder):
    with open(f"{folder}/precious", "w", encoding="ascii") as file:
        file.write("mine")
    result = run("delete", folder)
    check_refused(1, result, folder)
    assert os.listdir(folder) == ["precious"]


# ---- save --------------------------------------------------------------------------------------------------------


def save_json_has_the_members_of_the_manual(folder):
    with Guest() as guest:
        result = json.loads(save(guest, f"{folder}/image", "--json").stdout)
        guest.check_untouched()
    assert set(result) == {"image", "attempts", "pause-us", "prepare-ms", "total-ms", "pages", "bytes-written",
                           "faults", "fault-latency-us", "peak-buffer-bytes"}, result
    assert set(result["pages"]) == {"total", "zero", "unchanged", "by-sweep", "by-fault"}
    assert set(result["fault-latency-us"]) == {"p50", "p99", "p999", "max"}
    assert result["bytes-written"] >= GUEST_MIB * MIB
    assert result["pages"]["total"] >= GUEST_MIB * MIB // PAGE


def save_with_parent_holds_what_differs(folder):
    with Guest() as guest, Guest() as other:
        save(guest, f"{folder}/first")
        result = json.loads(save(guest, f"{folder}/second", "--parent", f"{folder}/first", "--json").stdout)
        assert result["parent"] == f"{folder}/first", result
        assert result["bytes-written"] < MIB and result["pages"]["unchanged"] > GUEST_MIB * MIB // PAGE, result
        refused = run("save", "--pid", other.pid, f"{folder}/third", "--parent", f"{folder}/first")
        check_refused(1, refused, f"{folder}/first")
        missing = run("save", "--pid", guest.pid, f"{folder}/third", "--parent", f"{folder}/missing")
        check_refused(1, missing, f"{folder}/missing")
    assert sorted(os.listdir(folder)) == ["first", "second"]
    assert run("verify", f"{folder}/second").returncode == 0


def save_every_makes_a_chain(folder):
    with Guest() as guest:
        result = run("save", "--pid", guest.pid, f"{folder}/chain", "--every", "100ms", "--count", "3", "--json")
        assert result.returncode == 0, result.stderr
        images = [json.loads(line) for line in result.stdout.splitlines()]
        assert [os.path.basename(image["image"]) for image in images] == ["000001", "000002", "000003"], images
        assert [image.get("parent") for image in images[1:]] == [image["image"] for image in images[:2]], images
        with open(f"{folder}/chain/mine", "w", encoding="ascii"):
            pass
        check_refused(1, run("save", "--pid", guest.pid, f"{folder}/chain", "--every", "1"), "mine")
        guest.check_untouched()


def save_with_options_in_any_order_succeeds(folder):
    with Guest() as guest:
        for i, args in enumerate([
            ["save", "{dir}", "--pid", guest.pid, "--buffer", "16M"],
            ["--json", "save", "--buffer=16M", "{dir}", f"--pid={guest.pid}"],
            ["save", "--at-cap", "abort", "--pid", guest.pid, "--", "{dir}"],
        ]):
            image = f"{folder}/{i}"
            result = run(*[arg.format(dir=image) for arg in args])
            assert result.returncode == 0, (args, result.stderr)
            assert run("verify", image).returncode == 0
        listed = json.loads(run("list", folder, "--json").stdout)["images"]
        assert [(image["dir"], image["complete"]) for image in listed] == [(f"{folder}/{i}", True) for i in range(3)]


def save_into_a_full_folder_is_refused(folder):
    with open(f"{folder}/precious", "w", encoding="ascii") as file:
        file.write("mine")
    with Guest() as guest:
        check_refused(1, run("save", "--pid", guest.pid, folder), folder)
        guest.check_untouched()
    assert os.listdir(folder) == ["precious"]


def save_of_no_process_is_refused(folder):
    child = subprocess.Popen(["true"])
    child.wait()
    check_refused(1, run("save", "--pid", str(child.pid), f"{folder}/image"), str(child.pid))
    assert os.listdir(folder) == []


def interrupt_save(folder, number):
    with Guest() as guest:
        process = subprocess.Popen([VMSNAP, "save", "--pid", guest.pid, f"{folder}/image", "--max-bandwidth", "4M"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(1)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        begin = time.monotonic()
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - begin < 2
        assert process.returncode == 1 and out == "", (process.returncode, out)
        assert len(err.splitlines()) == 1 and "cancel" in err, err
        guest.check_untouched()
    assert os.listdir(folder) == []


def interrupted_save_leaves_nothing(folder):
    interrupt_save(folder, signal.SIGINT)


def terminated_save_leaves_nothing(folder):
    interrupt_save(folder, signal.SIGTERM)


def progress_is_drawn_on_a_terminal_only(folder):
    with Guest() as guest:
        quiet = save(guest, f"{folder}/quiet")
        assert quiet.stderr == "" and "pause" in quiet.stdout
        control, terminal = pty.openpty()
        process = subprocess.Popen([VMSNAP, "save", "--pid", guest.pid, f"{folder}/drawn", "--max-bandwidth", "24M"],
                                   stdout=subprocess.PIPE, stderr=terminal)
        os.close(terminal)
        drawn = b""
        while True:
            try:
                data = os.read(control, 1 << 16)
            except OSError:
                break
            if not data:
                break
            drawn += data
        process.communicate()
        os.close(control)
    assert process.returncode == 0
    lines = drawn.decode().split("\r")
    assert any(re.search(r"saving \[#*\.*\] +\d+% .*/s", line) for line in lines), lines
    assert all(len(line.replace("\x1b[K", "")) < 80 for line in lines), lines


# ---- track -------------------------------------------------------------------------------------------------------


def track_shows_what_a_sleeping_guest_writes(_folder):
    with Guest() as guest:
        result = run("track", "--pid", guest.pid, "--interval", "50", "--rounds", "3", "--json")
        assert result.returncode == 0 and result.stderr == "", result
        rounds = [json.loads(line) for line in result.stdout.splitlines()]
        assert [entry["round"] for entry in rounds] == [1, 2, 3], rounds
        assert all(entry["pages-total"] >= GUEST_MIB * MIB // PAGE for entry in rounds), rounds
        assert all(entry["dirty-pages"] < 16 for entry in rounds[1:]), rounds
        guest.check_untouched()


def track_ends_by_ctrl_c_with_status_0(_folder):
    with Guest() as guest:
        process = subprocess.Popen([VMSNAP, "track", "--pid", guest.pid, "--interval", "100"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline().startswith("round 1: ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=2)
        assert process.returncode == 0 and err == "", (process.returncode, err)
        guest.check_untouched()


# ---- export raw --------------------------------------------------------------------------------------------------


def export_by_address_is_the_memory(folder):
    image, out = f"{folder}/image", f"{folder}/out"
    with Guest() as guest:
        save(guest, image)
        for offset, length in [(0, GUEST_MIB * MIB), (0, 1), (PAGE - 1, 2), (PAGE + 7, 3 * PAGE), (5, 300 * PAGE + 11)]:
            result = run("export", image, "--format", "raw", "--address", hex(guest.address + offset),
                         "--length", str(length), "-o", out)
            assert result.returncode == 0, result.stderr
            with open(out, "rb") as file:
                assert file.read() == guest.read(guest.address + offset, length), (offset, length)
        piped = subprocess.run([VMSNAP, "export", image, "--format", "raw", "--address", str(guest.address),
                                "--length", "1M", "-o", "-"], stdout=subprocess.PIPE, check=True)
        assert piped.stdout == guest.read(guest.address, MIB)
    assert sorted(os.listdir(folder)) == ["image", "out"]


def export_by_region_has_its_length_and_holes(folder):
    image, out = f"{folder}/image", f"{folder}/out"
    with Guest() as guest:
        save(guest, image)
    regions = json.loads(run("info", image, "--json").stdout)["regions"]
    stack = next(region for region in regions if "stack" in region["name"])
    for name in (stack["name"], "*stack*"):
        assert run("export", image, "--format", "raw", "--region", name, "-o", out).returncode == 0
        found = os.stat(out)
        assert found.st_size == stack["length-bytes"]
        assert found.st_blocks * 512 <= stack["data-bytes"] + PAGE
        assert found.st_mode & 0o077 == 0
        os.unlink(out)
    check_refused(1, run("export", image, "--format", "raw", "--region", "*", "-o", out), "regions match")
    check_refused(1, run("export", image, "--format", "raw", "--region", "none", "-o", out), "none")
    check_refused(1, run("export", image, "--format", "raw", "--address", "1", "--length", "1", "-o", out), "0x1")
    assert os.listdir(folder) == ["image"]


def export_that_fails_leaves_the_old_file(folder):
    image, out = f"{folder}/image", f"{folder}/out"
    with Guest() as guest:
        save(guest, image)
    with open(out, "w", encoding="ascii") as file:
        file.write("old")
    raw = max((f"{image}/ram/{name}" for name in os.listdir(f"{image}/ram") if name.endswith(".img")),
              key=os.path.getsize)
    with open(raw, "r+b") as file:
        file.seek(GUEST_MIB * MIB // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    name = max(json.loads(run("info", image, "--json").stdout)["regions"], key=lambda r: r["length-bytes"])["name"]
    check_refused(1, run("export", image, "--format", "raw", "--region", name, "-o", out), name)
    check_refused(1, run("verify", image))
    with open(out, encoding="ascii") as file:
        assert file.read() == "old"
    assert sorted(os.listdir(folder)) == ["image", "out"]


# ---- running -----------------------------------------------------------------------------------------------------


def require_rights():
    answers = json.loads(run("probe", "--json").stdout)
    missing = [item["name"] for item in answers["items"]
               if item["answer"] != "yes" and (item["required"] or item["name"] in ("ptrace", "pidfd-getfd"))]
    if missing:
        print(f"skip: snapshots need {', '.join(missing)}")
        sys.exit(77)


def main():
    require_rights()
    cases = [(name, case) for name, case in globals().items()
             if inspect.isfunction(case) and list(inspect.signature(case).parameters) in (["folder"], ["_folder"])]
    failed = 0
    for name, case in cases:
        folder = tempfile.mkdtemp(prefix="vmsnap-cli-")
        print(f"[ RUN      ] {name}", flush=True)
        try:
            case(folder)
            print(f"[       OK ] {name}", flush=True)
        except (AssertionError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            print(f"{type(error).__name__} in line {error.__traceback__.tb_next.tb_lineno}: {error}")
            print(f"[  FAILED  ] {name}", flush=True)
            failed += 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
