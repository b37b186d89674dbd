#!/usr/bin/env python3
"""Bad days of the helper: what it is asked for cannot be, guests die, disks fill, it is killed itself.

    badday-helper.py BUILD [WORD...]      only the cases whose name holds one of these words

Guests must run on as if nothing had been, images must be complete or not there, and everybody is told once. Moments are
random: SNAP_TEST_SEED repeats a run, SNAP_TEST_MOMENTS says how many there are.
"""
import os
import random
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import guests  # noqa: E402
import qemu  # noqa: E402
import qmpd  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
SEED = int(os.environ.get("SNAP_TEST_SEED", random.randrange(1 << 32)))
MOMENTS = int(os.environ.get("SNAP_TEST_MOMENTS", 10))
SLOW = {"max_bandwidth": 8 << 20}  # of a guest of 64 MiB: time for something to happen
END_S = 10  # in which the helper has ended


def wait_sweeping(image, bytes_written=1 << 20):
    """The point in time is past: so much is on disk."""
    badday.wait_until(lambda: badday.disk_bytes(f"{image}/ram") >= bytes_written, 30, "sweeping")


def wait_job_failed(client, ident, image, *words):
    """It ends with an error that has WORDS, and without an image. Return: the error."""
    statistics = client.wait_job(ident)
    assert "error" in statistics, f"{ident} has succeeded: {statistics}"
    print(f"says: {statistics['error'][:200]}", flush=True)
    for word in words:
        assert word in statistics["error"], f"no {word!r} in: {statistics['error']}"
    assert not os.path.exists(image), f"{image} was left: {os.listdir(image)}"
    return statistics["error"]


def check_job_saves(client, target, guest, image):
    """The guest can be saved now, exactly; it is a target no longer afterwards."""
    client.run_job("snapshot-save", target=target, path=image)
    client.command("target-del", id=target)
    guest.check_released()
    check_image(guest, image)


def check_image(guest, image):
    if isinstance(guest, badday.QemuUnderTest):
        badday.check_tool(BUILD, "tests/guest/seqcheck", "--multiboot", f"{image}/ram/ram.img")
    badday.check_complete(guest, image)


# ---- what cannot be ------------------------------------------------------------------------------------------

def target_added_twice_is_refused(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD, size="4M") as guest, server.client() as client:
        client.add_process("a", guest.pid)
        client.refused("target-add", "Target ID 'a' already in use", id="a", driver="process", pid=guest.pid)
        client.refused("target-add", str(guest.pid), "'a' already", id="b", driver="process", pid=guest.pid)
        assert [target["id"] for target in client.command("query-targets")] == ["a"]
        check_job_saves(client, "a", guest, f"{folder}/image")
        client.add_process("b", guest.pid)
        check_job_saves(client, "b", guest, f"{folder}/image")


def target_added_by_many_at_once_is_added_once(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD, size="4M") as guest:
        clients = [server.client() for _ in range(16)]
        for number, client in enumerate(clients):
            client.request("target-add", {"id": f"t{number}", "driver": "process", "pid": guest.pid})
        answers = [client.answer() for client in clients]
        assert sum("return" in answer for answer in answers) == 1, answers
        targets = clients[0].command("query-targets")
        assert len(targets) == 1, targets
        check_job_saves(clients[0], targets[0]["id"], guest, f"{folder}/image")
        guest.check_no_errors()
        for client in clients:
            client.close()


def qemu_added_twice_is_refused(folder):
    with badday.QemuUnderTest(BUILD, folder, sockets=2) as guest, qmpd.Vmsnapd(BUILD, folder) as server, \
            server.client() as client:
        client.add_qemu("a", guest.sockets[0])
        client.refused("target-add", str(guest.pid), "'a' already", id="b", driver="qemu", qmp_socket=guest.sockets[1])
        begin = time.monotonic()
        error = client.refused("target-add", guest.sockets[0], id="b", driver="qemu", qmp_socket=guest.sockets[0])
        assert time.monotonic() - begin < 6, f"took {time.monotonic() - begin:.1f} s: {error}"
        check_job_saves(client, "a", guest, f"{folder}/image")


def target_that_is_none_is_refused(folder):
    with qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client, badday.ProcessUnderTest(BUILD, size="4M") as guest:
        for ident in ("", "1", "-a", "a b", "a/b", "\u00e4", "a" * 3 + "\n"):
            client.refused("target-add", "Invalid target ID", id=ident, driver="process", pid=guest.pid)
        for pid in (0, -1, 1 << 31, 1 << 40):
            client.refused("target-add", "pid", id="a", driver="process", pid=pid)
        client.refused("target-add", id="a", driver="process", pid=(1 << 31) - 1)
        client.refused("target-add", f"{folder}/none", id="a", driver="qemu", qmp_socket=f"{folder}/none")
        client.refused("target-add", "embedded", id="a", driver="embedded")
        client.refused("target-add", id="self", driver="process", pid=server.pid)
        client.refused("target-del", "nobody", id="nobody")
        assert client.command("query-targets") == []
        client.refused("snapshot-save", "no target", job_id="j", path="x")
        client.add_process("a", guest.pid)
        client.refused("snapshot-save", "nobody", job_id="j", path="x", target="nobody")


def job_with_a_bad_or_taken_id_is_refused(folder):
    image = f"{folder}/image"
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD) as guest, server.client() as client:
        client.add_process("g", guest.pid)
        for ident in ("", "1a", "a b", "\u00e4", "/"):
            client.refused("snapshot-save", "Invalid job ID", job_id=ident, path=image)
        client.command("snapshot-save", job_id="j", path=image, **SLOW)
        client.refused("snapshot-save", "'j' already in use", job_id="j", path=f"{folder}/other")
        client.refused("snapshot-delete", "'j' already in use", job_id="j", path=f"{folder}/other")
        client.refused("snapshot-save", "g is busy", job_id="k", path=f"{folder}/other")
        client.refused("job-dismiss", "'running'", id="j")
        client.refused("target-del", "g is busy", id="g")
        assert not os.path.exists(f"{folder}/other")
        client.command("job-set-speed", id="j", speed=0)
        assert "error" not in client.wait_job("j")
        check_image(guest, image)
        client.command("target-del", id="g")
        guest.check_released()


def snapshot_to_a_path_that_cannot_be_is_refused(folder):
    def refused(path, *words):
        try:
            client.run_job("snapshot-save", path=path)
        except qmpd.Refused as refusal:
            print(f"says: {refusal.desc[:200]}", flush=True)
            for word in (path, *words):
                assert word in refusal.desc, f"no {word!r} in {refusal.desc}"
            return
        raise AssertionError(f"a snapshot was saved to {path}")

    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD, size="4M") as guest, server.client() as client:
        client.add_process("g", guest.pid)
        client.run_job("snapshot-save", path=f"{folder}/image")
        with open(f"{folder}/file", "w", encoding="ascii") as file:
            file.write("mine")
        os.mkdir(f"{folder}/full")
        shutil.copy(f"{folder}/file", f"{folder}/full/file")
        for path in (f"{folder}/image", f"{folder}/file", f"{folder}/full", f"{folder}/nowhere/image",
                     f"{folder}/file/image", "/proc/image", "/sys/image"):
            refused(path)
        refused(f"{folder}/" + "x" * 300)
        refused("", "expects an image directory")
        assert os.listdir(f"{folder}/full") == ["file"] and open(f"{folder}/file", encoding="ascii").read() == "mine"
        check_image(guest, f"{folder}/image")
        guest.check_released()


def disk_that_fills_ends_the_job(folder):
    if os.geteuid() != 0:
        raise cases.Skip("skip: mounting a small file system needs root")
    with badday.Mounted(f"{folder}/small", "tmpfs", "size=16m") as small, qmpd.Vmsnapd(BUILD, folder) as server, \
            badday.ProcessUnderTest(BUILD) as guest, server.client() as client:
        client.add_process("g", guest.pid)
        client.command("snapshot-save", job_id="j", path=f"{small}/image")
        wait_job_failed(client, "j", f"{small}/image", "no space left")
        guest.check_released()
        client.refused("dump-guest-memory", "space left", paging=False, protocol=f"file:{small}/core")
        assert os.listdir(small) == [], os.listdir(small)
        check_job_saves(client, "g", guest, f"{folder}/image")
        guest.check_no_errors()


# ---- guests that end -----------------------------------------------------------------------------------------

def guest_killed_in_mid_save_is_told_once(folder):
    """The other guest's save is not harmed."""
    with qmpd.Vmsnapd(BUILD, folder) as server, badday.ProcessUnderTest(BUILD) as guest, \
            badday.ProcessUnderTest(BUILD, memory="memfd") as other, server.client() as client:
        client.add_process("g", guest.pid)
        client.add_process("other", other.pid)
        client.command("snapshot-save", job_id="j", target="g", path=f"{folder}/image", **SLOW)
        client.command("snapshot-save", job_id="o", target="other", path=f"{folder}/other", **SLOW)
        wait_sweeping(f"{folder}/image")
        wait_sweeping(f"{folder}/other")
        guest.process.kill()
        guest.process.wait()
        events = [client.wait_event("TARGET_GONE", id="g")]
        client.command("query-targets")
        wait_concluded(client, "j", events)
        statistics = client.command("query-job-statistics", id="j")[0]
        assert "error" in statistics, statistics
        print(f"says: {statistics['error']}", flush=True)
        assert not os.path.exists(f"{folder}/image"), os.listdir(f"{folder}/image")
        assert client.command("query-targets")[0]["state"] == "gone"
        client.refused("snapshot-save", "has ended", job_id="k", target="g", path=f"{folder}/image")
        client.refused("query-status", "has ended", target="g")
        client.command("job-set-speed", id="o", speed=0)
        wait_concluded(client, "o", events)
        assert len(events) == 1, events
        client.command("target-del", id="g")
        other.check_released()
        check_image(other, f"{folder}/other")
        other.check_no_errors()


def wait_concluded(client, ident, gone):
    """Until the job has; events TARGET_GONE on the way are added to GONE."""
    while (client.job(ident) or {})["status"] != "concluded":
        time.sleep(0.02)
    gone += [event for event in client.events if event["event"] == "TARGET_GONE"]
    client.events = []


def qemu_killed_in_mid_save_is_told_once(folder):
    with badday.QemuUnderTest(BUILD, folder) as guest, qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.add_qemu("g", guest.sockets[0])
        client.command("snapshot-save", job_id="j", path=f"{folder}/image", **SLOW)
        wait_sweeping(f"{folder}/image")
        guest.process.kill()
        guest.process.wait()
        client.wait_event("TARGET_GONE", id="g", pid=guest.pid)
        gone = []
        wait_concluded(client, "j", gone)
        assert not gone and "error" in client.job("j"), (gone, client.job("j"))
        assert not os.path.exists(f"{folder}/image")


def target_of_a_guest_that_ends_can_be_deleted_at_any_moment(folder):
    chance = random.Random(SEED)
    with qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        n_descriptors = len(server.descriptors())
        for _ in range(20):
            with badday.ProcessUnderTest(BUILD, size="4M") as guest:
                client.add_process("g", guest.pid)
                client.request("snapshot-save", {"job-id": "j", "path": f"{folder}/image"})
                time.sleep(chance.random() * 0.05)
                guest.process.kill()
                client.answer()
                while client.job("j") and client.job("j")["status"] != "concluded":
                    time.sleep(0.005)
                client.command("target-del", id="g")
                if client.job("j"):
                    client.command("job-dismiss", id="j")
                shutil.rmtree(f"{folder}/image", ignore_errors=True)
                client.events = []
        server.wait_descriptors(n_descriptors + 3)  # of the thread that watches guests


def guest_stopped_in_mid_save_stays_so(folder):
    """By command; the save goes on, and so does nobody else."""
    os.mkdir(f"{folder}/qemu")
    with badday.ProcessUnderTest(BUILD) as process, badday.QemuUnderTest(BUILD, f"{folder}/qemu") as machine, \
            qmpd.Vmsnapd(BUILD, folder) as server:
        both = Both(folder, server, process, machine)
        for name, guest in both.guests.items():
            both.client.events = []
            both.client.command("stop", target=name)
            both.client.wait_event("STOP", target=name)
            both.client.command("job-set-speed", id=name, speed=0)
            assert "error" not in both.client.wait_job(name)
            assert both.client.command("query-status", target=name)["status"] == "paused"
            before = guest.counter()
            time.sleep(0.2)
            assert guest.counter() == before, "it runs"
            both.client.command("cont", target=name)
            both.client.wait_event("RESUME", target=name)
            check_image(guest, both.image(name))
            both.client.command("target-del", id=name)
        both.check_released()
        both.client.close()
        for guest in both.guests.values():
            guest.check_no_errors()


# ---- the helper itself ---------------------------------------------------------------------------------------

class Both:
    """A process and a QEMU under load, both being saved by a helper."""

    def __init__(self, folder, server, process, machine):
        self.folder, self.guests = folder, {"p": process, "q": machine}
        self.client = server.client()
        self.client.add_process("p", process.pid)
        self.client.add_qemu("q", machine.sockets[0])
        for name in self.guests:
            self.client.command("snapshot-save", job_id=name, target=name, path=self.image(name), **SLOW)
        for name in self.guests:
            wait_sweeping(self.image(name))

    def image(self, name):
        return f"{self.folder}/image-{name}"

    def check_released(self):
        for guest in self.guests.values():
            guest.check_released()

    def check_no_images(self):
        for name in self.guests:
            assert not os.path.exists(self.image(name)), os.listdir(self.image(name))

    def check_taken_over(self, server):
        """By another helper, which saves both."""
        with server.client() as client:
            client.add_process("p", self.guests["p"].pid)
            client.add_qemu("q", self.guests["q"].sockets[0])
            for name, guest in self.guests.items():
                check_job_saves(client, name, guest, f"{self.folder}/again-{name}")
                guest.check_no_errors()


def with_both(folder, end, check):
    """END(server, both) ends the helper in mid-save; then CHECK(both), and another one takes over."""
    os.mkdir(f"{folder}/qemu")
    with badday.ProcessUnderTest(BUILD) as process, badday.QemuUnderTest(BUILD, f"{folder}/qemu") as machine:
        with qmpd.Vmsnapd(BUILD, folder) as server:
            both = Both(folder, server, process, machine)
            end(server, both)
        both.check_released()
        check(both)
        both.client.close()
        with qmpd.Vmsnapd(BUILD, folder) as server:
            both.check_taken_over(server)


def helper_killed_in_mid_save_leaves_the_guests(folder):
    def check(both):
        for name in both.guests:
            badday.check_incomplete(BUILD, both.image(name), left=True)
    with_both(folder, lambda server, both: server.end(signal.SIGKILL), check)


def helper_terminated_in_mid_save_cleans_up(folder):
    def end(server, both):
        server.end(signal.SIGTERM, END_S)
        assert both.client.wait_event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-signal"}
        assert both.client.is_closed() and not os.path.exists(server.path)
    with_both(folder, end, Both.check_no_images)


def helper_that_quits_in_mid_save_cleans_up(folder):
    def end(server, both):
        both.client.command("quit")
        assert both.client.wait_event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
        server.wait_end(END_S)
        assert both.client.is_closed() and not os.path.exists(server.path)
    with_both(folder, end, Both.check_no_images)


def helper_terminated_while_all_kinds_of_work_run_ends(folder):
    processes = {name: badday.ProcessUnderTest(BUILD) for name in ("g", "logged", "measured", "dumped")}
    with qmpd.Vmsnapd(BUILD, folder) as server:
        clients = [server.client(oob=True) for _ in range(4)]
        first = clients[0]
        for name, guest in processes.items():
            first.add_process(name, guest.pid)
        first.command("snapshot-save", job_id="j", target="g", path=f"{folder}/image", **SLOW)
        first.command("dirty-log-start", target="logged")
        first.command("calc-dirty-rate", target="measured", calc_time=60)
        first.command("job-pause", id="j")
        clients[1].request("dump-guest-memory", {"paging": False, "protocol": f"file:{folder}/core", "target": "dumped"})
        for client in clients[2:]:
            client.send(b'{"execute": "query-qmp-schema"}' * 200)
        time.sleep(0.3)
        server.end(signal.SIGTERM, END_S)
        for guest in processes.values():
            guest.check_released()
        left = [name for name in os.listdir(folder) if name not in ("core", "vmsnapd.log")]
        assert not left, left


def guest_that_the_helper_loaded_outlives_it(folder):
    """It goes on from the image, and does not care about the helper's end, nor about that of the first guest."""
    serial = guests.Serial(f"{folder}/loaded-serial")
    command = ["qemu-system-x86_64", *guests.multiboot_arguments(BUILD, serial.path, size="80M", words=f"rate={badday.RATE}"),
               "-qmp", f"unix:{folder}/loaded,server=on,wait=off"]
    with qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        with badday.QemuUnderTest(BUILD, folder) as guest:
            client.add_qemu("g", guest.sockets[0])
            client.run_job("snapshot-save", path=f"{folder}/image")
        loaded = client.run_job("snapshot-load", path=f"{folder}/image", command=command)["pid"]
        try:
            serial.wait_reports(2)
            client.add_qemu("loaded", f"{folder}/loaded")
            client.command("quit")
            server.wait_end(END_S)
            serial.skip()
            assert all(report["errors"] == 0 for report in serial.wait_reports(2))
            monitor = qemu.Qmp(f"{folder}/loaded")
            assert monitor.command("query-status")["running"]
            monitor.close()
        finally:
            badday.kill_quietly(loaded)


def helper_killed_at_random_moments_leaves_the_guest(folder):
    """From the first command to the end of the save."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    with badday.ProcessUnderTest(BUILD, size="32M", threads=2) as guest:
        for _ in range(MOMENTS):
            with qmpd.Vmsnapd(BUILD, folder) as server:
                client = server.client()
                client.request("target-add", {"id": "g", "driver": "process", "pid": guest.pid})
                client.request("snapshot-save", {"job-id": "j", "path": f"{folder}/image", "max-bandwidth": 200 << 20})
                time.sleep(chance.random() * 0.3)
                server.end(signal.SIGKILL)
                client.close()
            guest.check_released()
            if os.path.exists(f"{folder}/image/manifest.json"):
                check_image(guest, f"{folder}/image")
            shutil.rmtree(f"{folder}/image", ignore_errors=True)
        guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
