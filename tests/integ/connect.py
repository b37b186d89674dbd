#!/usr/bin/env python3
"""vmsnap --connect: the same answers as without it, and what goes wrong between here and the helper.

connect.py BUILD [WORD...]      only the cases whose names hold a WORD
"""
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import guests  # noqa: E402
import helper  # noqa: E402

BUILD = sys.argv[1]
TIMES = re.compile(r"-(us|ms)$")


def local(*arguments, **options):
    return badday.vmsnap(BUILD, *arguments, **options)


def answer(result):
    assert result.returncode == 0 and result.stderr == "", (result.args[1:], result.returncode, result.stderr)
    return json.loads(result.stdout)


def check_same(daemon, *arguments):
    """The same output, text and JSON, and the same exit status, here and there; its JSON."""
    for form in (), ("--json",):
        here, there = local(*arguments, *form), daemon.run(*arguments, *form)
        assert (here.returncode, here.stderr) == (there.returncode, there.stderr), (arguments, here, there)
        if form and here.returncode == 0:
            assert json.loads(here.stdout) == json.loads(there.stdout), (arguments, here.stdout, there.stdout)
            return json.loads(here.stdout)
        assert here.stdout == there.stdout, (arguments, here.stdout, there.stdout)
    return None


def make_images(where):
    """WHERE/first and second, its child; of a guest that is no more."""
    with badday.ProcessUnderTest(BUILD, size="8M") as guest:
        for name, parent in ("first", ()), ("second", ("--parent", f"{where}/first")):
            answer(local("save", *guest.target, f"{where}/{name}", *parent, "--json"))


# ---- images --------------------------------------------------------------------------------------------------


def images_are_told_of_alike(folder):
    make_images(folder)
    with helper.Helper(BUILD, folder) as daemon:
        info = check_same(daemon, "info", f"{folder}/second")
        assert info["parents"] == 1, info
        listed = check_same(daemon, "list", folder, f"{folder}/first")
        assert len(listed["images"]) == 3, listed
        check_same(daemon, "verify", f"{folder}/second")
        check_same(daemon, "probe")
        for command in "info", "verify", "list", "delete":
            check_same(daemon, command, f"{folder}/missing")
        daemon.check_idle()


def images_are_worked_on_alike(folder):
    make_images(folder)
    region = max(answer(local("info", f"{folder}/first", "--json"))["regions"], key=lambda r: r["length-bytes"])
    raw = ("export", f"{folder}/second", "-o", f"{folder}/out", "--format", "raw")
    with helper.Helper(BUILD, folder) as daemon:
        for more in ("--region", region["name"]), ("--address", region["host-address"], "--length", "64K"):
            contents = []
            for run in local, daemon.run:
                answer(run(*raw, *more, "--json"))
                with open(f"{folder}/out", "rb") as file:
                    contents.append(file.read())
            assert contents[0] == contents[1] and contents[0]
        assert check_same(daemon, "export", f"{folder}/second", "-o", f"{folder}/out", "--format", "elf")
        check_same(daemon, *raw)  # there are many regions: wrong usage
        assert daemon.run(*raw).returncode == 2
        merged = []
        for run in local, daemon.run:
            merged.append(answer(run("merge", f"{folder}/second", f"{folder}/merged", "--json")))
            answer(run("verify", f"{folder}/merged", "--json"))
            shutil.rmtree(f"{folder}/merged")
        assert merged[0] == merged[1] and merged[0]["merged"] == 2, merged
        for run, name in (local, "second"), (daemon.run, "first"):
            assert run("delete", f"{folder}/{name}").stdout == f"{folder}/{name}: deleted\n"
            assert not os.path.exists(f"{folder}/{name}")
        daemon.check_idle()


def relative_paths_are_the_clients(folder):
    make_images(folder)
    os.mkdir(f"{folder}/theirs")
    with helper.Helper(BUILD, folder, "--snapshot-dir", f"{folder}/theirs") as daemon:
        assert answer(daemon.run("info", "first", "--json", cwd=folder))["dir"] == f"{folder}/first"
        assert answer(daemon.run("merge", "second", "merged", "--json", cwd=folder))["out"] == f"{folder}/merged"
        assert os.listdir(f"{folder}/theirs") == []
    assert answer(local("info", "first", "--json", cwd=folder))["dir"] == "first"


def names_that_are_not_utf8_are_refused(folder):
    with helper.Helper(BUILD, folder) as daemon:
        for command in "info", "verify":
            badday.check_refused(daemon.run(command, os.fsdecode(b"/tmp/\xff")), "UTF-8")


# ---- saves ---------------------------------------------------------------------------------------------------


def without_times(object_):
    return {name: value for name, value in object_.items() if not TIMES.search(name)}


def save_is_exact_and_leaves_nothing_behind(folder):
    with badday.ProcessUnderTest(BUILD, size="32M") as guest, helper.Helper(BUILD, folder) as daemon:
        here = answer(local("save", *guest.target, f"{folder}/here", "--json"))
        there = answer(daemon.run("save", *guest.target, "there", "--json", cwd=folder))
        assert set(here) == set(there) and set(here["pages"]) == set(there["pages"]), (here, there)
        assert there["image"] == f"{folder}/there" and set(there["fault-latency-us"]) == {"p50", "p99", "p999", "max"}
        daemon.check_idle()
        guest.check_released()
        badday.check_complete(guest, f"{folder}/there")
        child = answer(daemon.run("save", *guest.target, "child", "--parent", "here", "--json", cwd=folder))
        assert child["parent"] == f"{folder}/here" and child["pages"]["unchanged"] > 0, child
        guest.check_no_errors()


def save_of_a_target_that_is_there_leaves_it(folder):
    with badday.ProcessUnderTest(BUILD, size="8M") as guest, helper.Helper(BUILD, folder) as daemon:
        daemon.qmp.command("target-add", id="mine", driver="process", pid=guest.pid)
        answer(daemon.run("save", *guest.target, f"{folder}/image", "--json"))
        assert [target["id"] for target in daemon.qmp.command("query-targets")] == ["mine"]
        assert daemon.qmp.command("query-jobs") == []


def save_that_fails_says_the_same(folder):
    tight = ("--buffer", "1M", "--at-cap", "abort", "--max-bandwidth", "100K")
    with badday.ProcessUnderTest(BUILD, size="16M") as guest, helper.Helper(BUILD, folder) as daemon:
        badday.check_refused(local("save", *guest.target, f"{folder}/image", *tight), "--buffer")
        badday.check_refused(daemon.run("save", *guest.target, f"{folder}/image", *tight), "--buffer")
        full = f"{folder}/full"
        os.mkdir(full)
        with open(f"{full}/mine", "w", encoding="ascii"):
            pass
        check_same(daemon, "save", *guest.target, full)
        check_same(daemon, "save", *guest.target, f"{folder}/image", "--parent", f"{folder}/missing")
        check_same(daemon, "save", "--qemu", f"{folder}/missing", f"{folder}/image")
        daemon.check_idle()
        guest.check_released()
    check_same_gone(folder, guest.pid)


def check_same_gone(folder, pid):
    with helper.Helper(BUILD, folder) as daemon:
        check_same(daemon, "save", "--pid", pid, f"{folder}/image")
        check_same(daemon, "track", "--pid", pid)


def save_under_way(daemon, guest, image):
    save = badday.Save(guest, image, "--max-bandwidth", "4M", "--connect", daemon.path)
    save.wait_sweeping()
    assert len(daemon.qmp.command("query-targets")) == 1
    return save


def interrupted_save_is_cancelled(folder):
    with badday.ProcessUnderTest(BUILD) as guest, helper.Helper(BUILD, folder) as daemon:
        for number in signal.SIGINT, signal.SIGTERM:
            save = save_under_way(daemon, guest, f"{folder}/image")
            save.kill(number)
            save.check_failed("cancel", timeout=5)
            badday.check_incomplete(BUILD, f"{folder}/image")
            daemon.check_idle()
            guest.check_released()
        guest.check_no_errors()


def helper_killed_in_a_save_is_told(folder):
    with badday.ProcessUnderTest(BUILD) as guest:
        with helper.Helper(BUILD, folder) as daemon:
            save = save_under_way(daemon, guest, f"{folder}/image")
            daemon.end(signal.SIGKILL)
            save.check_failed(daemon.path, "has ended", timeout=5)
        guest.check_released()
        badday.check_incomplete(BUILD, f"{folder}/image", left=True)
        guest.check_no_errors()


def helper_that_hangs_is_given_up(folder):
    with badday.ProcessUnderTest(BUILD) as guest, helper.Helper(BUILD, folder) as daemon:
        save = save_under_way(daemon, guest, f"{folder}/image")
        daemon.process.send_signal(signal.SIGSTOP)
        save.kill(signal.SIGINT)
        save.check_failed(daemon.path, "no answer", timeout=15)
        daemon.process.send_signal(signal.SIGCONT)


def save_of_a_qemu_and_restore_of_it(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest, helper.Helper(BUILD, folder) as daemon:
        relative = os.path.relpath(guest.sockets[0], folder)
        answer(daemon.run("save", "--qemu", relative, "image", "--json", cwd=folder))
        daemon.check_idle()
        guest.check_released()
        rounds = daemon.run("track", *guest.target, "--rounds", "2", "--interval", "100", "--json").stdout.splitlines()
        assert [json.loads(line)["round"] for line in rounds] == [1, 2], rounds
        guest.check_released()
        serial = guests.Serial(f"{folder}/restored")
        command = ["qemu-system-x86_64", *guests.multiboot_arguments(BUILD, serial.path, size="80M")]
        begin = time.monotonic()
        restored = daemon.run("restore", "image", "--qemu", "--json", "--", *command, cwd=folder)
        restored = answer(restored)
        assert restored["running"] and time.monotonic() - begin < 20, restored
        serial.wait_reports(1)
        os.kill(restored["pid"], signal.SIGKILL)
        guest.check_no_errors()


def save_does_not_take_over_ignored_disks(folder):
    disk = f"{folder}/disk.img"
    with open(disk, "wb") as file:
        file.truncate(1 << 20)
    drive = ["-drive", f"file={disk},format=raw,if=ide"]
    with badday.QemuUnderTest(BUILD, folder, arguments=drive) as guest, helper.Helper(BUILD, folder) as daemon:
        badday.check_refused(daemon.run("save", *guest.target, f"{folder}/image"), "disk")
        track = badday.children.start([f"{BUILD}/tools/vmsnap", "--connect", daemon.path, "track", *guest.target,
                                       "--interval", "100"], stdout=badday.subprocess.PIPE, text=True)
        assert track.stdout.readline().startswith("round 1")
        badday.check_refused(daemon.run("save", *guest.target, f"{folder}/image"), "ignores its disks")
        answer(daemon.run("save", *guest.target, f"{folder}/image", "--disks", "ignore", "--json"))
        track.send_signal(signal.SIGINT)
        assert track.wait(5) == 0
        daemon.check_idle()


# ---- track ---------------------------------------------------------------------------------------------------


def track_tells_the_same(folder):
    common = ("--interval", "200", "--rounds", "3")
    with badday.ProcessUnderTest(BUILD, size="8M") as guest, helper.Helper(BUILD, folder) as daemon:
        shapes = []
        for run in local, daemon.run:
            result = run("track", *guest.target, *common, "--json", "--region", "*")
            rounds = [json.loads(line) for line in result.stdout.splitlines()]
            assert result.returncode == 0 and [r["round"] for r in rounds] == [1, 2, 3], result
            assert all(r["dirty-pages"] > 0 and r["rate-pages-per-second"] > 0 for r in rounds), rounds
            assert all(sum(range_["length"] for range_ in r["ranges"]) > 0 for r in rounds)
            shapes.append((set(rounds[0]), set(rounds[0]["ranges"][0]), rounds[0]["log"]))
            text = run("track", *guest.target, *common, "--ranges").stdout.splitlines()
            assert re.fullmatch(r"round 1: \d+ pages dirty \(.+\), \d+/s, in \d+ ranges?, scan .+s", text[0]), text
            assert re.fullmatch(r"  0x[0-9a-f]+-0x[0-9a-f]+  .+ \+ 0x[0-9a-f]+", text[1]), text
        assert shapes[0] == shapes[1], shapes
        daemon.check_idle()
        guest.check_released()
        check_same(daemon, "track", *guest.target, "--region", "nothing")
        guest.check_no_errors()


def start_track(daemon, guest, *options):
    track = badday.children.start([f"{BUILD}/tools/vmsnap", "--connect", daemon.path, "track", *guest.target,
                                   *options], stdout=badday.subprocess.PIPE, stderr=badday.subprocess.PIPE, text=True)
    assert track.stdout.readline().startswith("round 1")
    return track


def track_ends_by_ctrl_c_and_with_its_guest(folder):
    with helper.Helper(BUILD, folder) as daemon:
        with badday.ProcessUnderTest(BUILD, size="8M") as guest:
            track = start_track(daemon, guest, "--interval", "100")
            track.send_signal(signal.SIGINT)
            _, err = track.communicate(timeout=5)
            assert track.returncode == 0 and err == "", (track.returncode, err)
            daemon.check_idle()
            guest.check_released()
            track = start_track(daemon, guest, "--interval", "2000")
            guest.process.kill()
            guest.process.wait()
            begin = time.monotonic()
            _, err = track.communicate(timeout=5)
            assert time.monotonic() - begin < 1.5, "it waited for the round"
            assert track.returncode == 1, track.returncode
            badday.check_one_line(err, f"process {guest.pid} has ended")


# ---- the other side ------------------------------------------------------------------------------------------


def nobody_at_the_socket_is_told(folder):
    missing = f"{folder}/missing"
    dead = f"{folder}/dead"
    badday.listen(dead).close()
    for path in missing, dead:
        for command in (["probe"], ["info", "x"], ["verify", "x"], ["save", "--pid", "1", "x"],
                        ["track", "--pid", "1"], ["top"], ["restore", "x", "--qemu", "--", "qemu"]):
            badday.check_refused(local("--connect", path, *command), path, "no helper", "vmsnapd")


def qemu_at_the_socket_is_told(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest:
        for command in ["probe"], ["delete", "x"], ["top"], ["save", "--qemu", "x", "y"]:
            badday.check_refused(local("--connect", guest.sockets[0], *command), guest.sockets[0], "no helper",
                                 "--qemu")
        guest.check_released()


def stranger_at_the_socket_is_told(folder):
    """Each speaks to one client, and then no more."""
    def speak(server, words):
        client, _ = server.accept()
        client.sendall(words)
        client.recv(1)
        client.close()

    greeting = b'{"QMP": {"version": {"qemu": {}}, "capabilities": []}}\n'
    for i, (words, told) in enumerate([(b"220 mail.example.org\r\n", "QMP"), (b"", "no answer"),
                                       (greeting, "has ended"), (greeting + b"{]", "QMP")]):
        server = badday.listen(f"{folder}/{i}")
        thread = threading.Thread(target=speak, args=(server, words))
        thread.start()
        badday.check_refused(local("--connect", f"{folder}/{i}", "probe"), f"{folder}/{i}", told)
        thread.join()
        server.close()


def helper_that_has_no_room_left_for_us(folder):
    """A listening socket whose queue is full."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{folder}/full")
    server.listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(f"{folder}/full")
    badday.check_refused(local("--connect", f"{folder}/full", "probe"), f"{folder}/full", "no answer")


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
