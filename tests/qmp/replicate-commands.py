#!/usr/bin/env python3
"""The commands of replication, as their clients see them: into a standby, and into images.

replicate-commands.py BUILD [WORD...]      only the cases whose name holds one of these words

The guest is threads of a thread-vm (tests/migrate), a process, or a QEMU.
"""
import functools
import json
import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import migrate  # noqa: E402
import qmpd  # noqa: E402
import two_vmms  # noqa: E402
from two_vmms import END_S, check_fields, follow  # noqa: E402

BUILD = os.path.abspath(sys.argv[1])
EPOCHS_S = 60  # for some of them
Two = functools.partial(two_vmms.Two, BUILD)


def check_replicates(vm, epochs=3):
    """Until some epochs are in force."""
    vm.wait_status("colo")
    badday.wait_until(lambda: vm.migration()["epoch"] >= epochs, EPOCHS_S, f"{epochs} epochs")
    return check_fields(vm.migration(), ["epoch", "epoch-pause"])


# ---- a standby -----------------------------------------------------------------------------------------------

def standby_is_promoted_when_its_source_was_killed(folder):
    with Two(folder) as two:
        two.source.command("replicate", uri=two.uri, interval=50)
        check_replicates(two.source)
        seen = follow(two.source, "colo")
        assert seen == ["setup", "active", "colo"], seen
        assert two.destination.wait_status("colo")["epoch"] >= 2
        assert two.destination.run_state() == "inmigrate"
        two.destination.qmp.refused("cont", "has not come yet")
        two.destination.qmp.refused("replicate-promote", "the source is connected")
        two.source.kill()
        two.destination.wait_status("postcopy-paused")
        two.destination.command("replicate-promote")
        assert follow(two.destination, "completed", "failed")[-2:] == ["RESUME", "completed"]
        two.destination.check_guest()
        two.journal.check(exact=1)


def replicated_guest_is_handed_over(folder):
    with Two(folder) as two:
        two.source.command("replicate", uri=two.uri, interval=50)
        check_replicates(two.source)
        two.source.qmp.refused("replicate-promote", "no standby")
        two.source.command("replicate-hand-over")
        seen = follow(two.source, "completed", "failed")
        assert seen == ["setup", "active", "colo", "STOP", "device", "completed"], seen
        two.check_moved()


def replication_is_ended_by_cancel(folder):
    with Two(folder) as two:
        two.source.command("replicate", uri=two.uri, interval=50)
        check_replicates(two.source)
        two.source.command("migrate_cancel")
        assert follow(two.source, "cancelled", "failed")[-2:] == ["cancelling", "cancelled"]
        two.check_stayed()
        two.source.qmp.refused("replicate", "either uri or path", uri=two.uri, path="images")
        two.source.qmp.refused("replicate", "either uri or path")
        two.source.qmp.refused("replicate", "'interval' expects", uri=two.uri, interval=0)


# ---- images --------------------------------------------------------------------------------------------------

def check_images(path, at_least=3):
    """They are a chain, and every byte of the last one is right."""
    found = sorted(name for name in os.listdir(path) if os.path.exists(f"{path}/{name}/manifest.json"))
    assert len(found) >= at_least, found
    shown = badday.vmsnap(BUILD, "verify", f"{path}/{found[-1]}")
    assert shown.returncode == 0, shown


def embedded_guest_is_replicated_into_images(folder):
    with Two(folder) as two:
        two.source.command("replicate", path="images", interval=100)
        check_replicates(two.source)
        two.source.command("migrate_cancel")
        two.source.wait_status("cancelled")
        two.check_stayed()
    check_images(f"{folder}/images")


def process_is_replicated_into_images(folder):
    with badday.ProcessUnderTest(BUILD, size="16M") as guest, qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.add_process("g", guest.pid)
        client.command("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        client.command("replicate", path="images", interval=100)
        client.wait_event("MIGRATION", status="colo")
        badday.wait_until(lambda: replicates(client, 3), EPOCHS_S, "three epochs")
        client.refused("snapshot-save", "busy", job_id="j", path="image")
        client.refused("target-del", "busy", id="g")
        client.command("migrate_cancel")
        client.wait_event("MIGRATION", status="cancelled")
        client.command("target-del", id="g")
        guest.check_released()
        guest.check_no_errors()
        check_images(f"{folder}/images")


def process_is_replicated_in_part_and_the_newest_images_are_kept(folder):
    with badday.ProcessUnderTest(BUILD, size="16M") as guest, qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.add_process("g", guest.pid)
        client.refused("replicate", "for images", uri=f"unix:{folder}/nobody", keep=2)
        client.command("replicate", path="nothing", region="no-such-*")
        badday.wait_until(lambda: client.command("query-migrate")["status"] == "failed", END_S, "it fails")
        assert "no region of such a name" in client.command("query-migrate")["error-desc"]
        badday.wait_until(lambda: not os.path.exists(f"{folder}/nothing"), END_S, "the folder that was made is gone")
        client.command("replicate", path="images", interval=50, region="heap*", keep=2)
        badday.wait_until(lambda: replicates(client, 5), EPOCHS_S, "five epochs")
        client.command("migrate_cancel")
        badday.wait_until(lambda: client.command("query-migrate")["status"] == "cancelled", END_S, "it is cancelled")
        images = sorted(os.listdir(f"{folder}/images"))
        assert len(images) == 2 and images[1] >= "000005", images
        for image in images:
            shown = badday.vmsnap(BUILD, "verify", f"{folder}/images/{image}")
            assert shown.returncode == 0, shown
            regions = json.loads(badday.vmsnap(BUILD, "info", "--json", f"{folder}/images/{image}").stdout)["regions"]
            assert regions and all(region["name"].startswith("heap") for region in regions), regions


def replicates(client, epochs):
    """Whether so many are in force; one that has failed says why."""
    state = client.command("query-migrate")
    assert state["status"] != "failed", state
    return state.get("epoch", 0) >= epochs


def helper_that_ends_lets_a_replicated_process_go(folder):
    with badday.ProcessUnderTest(BUILD, size="16M") as guest, qmpd.Vmsnapd(BUILD, folder) as server, server.client() as client:
        client.add_process("g", guest.pid)
        client.command("replicate", path="images", interval=100)
        badday.wait_until(lambda: replicates(client, 2), EPOCHS_S, "two epochs")
        client.command("quit")
        server.wait_end(END_S)
        guest.check_released()
        guest.check_no_errors()
        check_images(f"{folder}/images", at_least=2)


def qemu_is_replicated_into_images(folder):
    with badday.QemuUnderTest(BUILD, folder, size="64M") as guest, qmpd.Vmsnapd(BUILD, folder) as server, \
            server.client() as client:
        client.add_qemu("g", guest.sockets[0])
        client.command("replicate", path="images", interval=200)
        badday.wait_until(lambda: replicates(client, 3), EPOCHS_S, "three epochs")
        client.command("migrate_cancel")
        badday.wait_until(lambda: client.command("query-migrate")["status"] == "cancelled", END_S, "it is cancelled")
        client.command("target-del", id="g")
        guest.check_released()
        guest.check_no_errors()
        check_images(f"{folder}/images")


def helper_takes_replications_in_as_images(folder):
    """One after another, each into a folder of its own."""
    os.mkdir(f"{folder}/there")
    uri = f"unix:{folder}/way"
    journal = migrate.Journal(folder)
    with qmpd.Vmsnapd(BUILD, f"{folder}/there", "--incoming", uri) as server, server.client() as client, \
            migrate.ThreadVm(BUILD, folder, "source", journal, rate=2000, prefill=True) as source:
        assert client.command("query-migrate")["status"] == "setup"
        with socket.socket(socket.AF_UNIX) as stranger:  # who does not replicate takes no number
            stranger.connect(f"{folder}/way")
            stranger.send(b"x" * 100)
        client.wait_event("MIGRATION", status="failed")
        client.wait_event("MIGRATION", status="setup")
        for number in (1, 2):
            source.command("replicate", uri=uri, interval=100)
            check_replicates(source)
            assert client.command("query-migrate")["status"] == "colo"
            source.command("migrate_cancel")
            source.wait_status("cancelled")
            badday.wait_until(lambda: client.command("query-migrate")["status"] == "setup", END_S, "it listens again")
            check_images(f"{folder}/there/incoming-{number}")
        source.check_guest()
        source.end()
    assert sorted(os.listdir(f"{folder}/there")) == ["incoming-1", "incoming-2", "vmsnapd.log"], os.listdir(f"{folder}/there")


if __name__ == "__main__":
    children.end_by_signal()
    cases.run(globals(), sys.argv[2:])
