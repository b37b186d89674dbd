#!/usr/bin/env python3
"""The microvm from outside: guest.bin runs in it, is stopped, saved and moved.

microvm.py BUILD [WORD...]      only the cases whose names hold a WORD
"""
import json
import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # noqa: E402
import cases  # noqa: E402
import children  # noqa: E402
import guests  # noqa: E402
import migrate  # noqa: E402

BUILD = sys.argv[1]
MICROVM = f"{BUILD}/tools/microvm"
KERNEL = f"{BUILD}/tests/guest/guest.bin"
HUGE_MIB = 2
RATE = 20000
NOBODY = 65534
BUSY_US = 2000000  # what a busy machine may add to a stall


def boot(folder, name="source", **options):
    return migrate.Microvm(BUILD, folder, name, **options)


def arriving(folder, name="destination", **options):
    return boot(folder, name, incoming=f"unix:{folder}/way-in", **options)


def run(*arguments, timeout=30, **options):
    """The program, to its end."""
    return subprocess.run([MICROVM, *arguments], capture_output=True, text=True, timeout=timeout, **options)


def check_fails(result, status, *words):
    """One line on standard error that holds WORDS, and nothing else."""
    assert result.returncode == status and result.stdout == "", result
    assert result.stderr.count("\n") == 1 and all(word in result.stderr for word in words), result.stderr


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise cases.Skip("skip: no /dev/kvm that may be used")


def need_huge_pages(mib):
    with open("/proc/meminfo", encoding="ascii") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("HugePages_Free"))
    if free < mib // HUGE_MIB:
        raise cases.Skip(f"skip: only {free} huge pages are free")


def check_exact(vm, image):
    """A snapshot by the command line is the guest's memory after one write; it is verified and deleted. Return: what
    it cost."""
    saved = badday.vmsnap(BUILD, "--connect", vm.path, "save", "--pid", str(vm.pid), image, "--json")
    assert saved.returncode == 0, saved.stderr
    badday.check_tool(BUILD, "tools/vmsnap", "verify", image)
    badday.check_tool(BUILD, "tests/guest/seqcheck", "--multiboot", f"{image}/ram/ram.img")
    badday.check_tool(BUILD, "tools/vmsnap", "delete", image)
    return json.loads(saved.stdout)


def move(source, destination):
    """Until the guest is there. Return: what query-migrate says."""
    source.migrate(f"unix:{destination.folder}/way-in")
    found = source.wait_status("completed")
    destination.wait_status("completed")
    return found


# ---- running -------------------------------------------------------------------------------------------------


def guest_at_full_rate_reports_no_error(folder):
    with boot(folder) as vm:
        ready = vm.serial.ready()
        assert ready["arena"] == 16 << 20 and ready["cpus"] == 1, ready
        first, second = vm.serial.wait_reports(2)[:2]
        assert second["N"] > first["N"] > RATE and second["errors"] == 0, (first, second)
        vm.end()


def guest_at_a_rate_keeps_to_it(folder):
    with boot(folder, words=f"rate={RATE}") as vm:
        reports = vm.serial.wait_reports(2)
        rates = [report["rate"] for report in reports]
        assert max(rates) > RATE / 4 and max(rates) <= RATE * 1.05, rates
        vm.end()


def guest_that_ends_gives_the_exit_status(_folder):
    need_kvm()
    result = run("--kernel", KERNEL, "--serial", "stdio", "--append", "writes=20000")
    assert result.returncode == 0 and result.stderr == "", result
    assert guests.parse_line(result.stdout.splitlines()[-1])["errors"] == 0, result.stdout


def client_stops_and_continues_it(folder):
    with boot(folder) as vm:
        vm.wait_writes()
        vm.command("stop")
        assert vm.run_state() == "paused"
        vm.serial.skip()
        time.sleep(1.5)
        assert vm.serial.reports() == []
        vm.command("cont")
        assert vm.run_state() == "running"
        vm.wait_writes()
        vm.end()


def signal_ends_it(folder):
    for number in signal.SIGTERM, signal.SIGINT:
        with boot(folder) as vm:
            vm.process.send_signal(number)
            vm.process.wait(10)
            assert vm.process.returncode == 0, (number, vm.process.returncode, vm.log())
            assert not os.path.exists(vm.path)
            vm.check_complaints()


# ---- being saved ---------------------------------------------------------------------------------------------


def check_saves(folder, **options):
    with boot(folder, **options) as vm:
        vm.serial.wait_populated()
        for _ in range(3):
            cost = check_exact(vm, f"{folder}/image")
        assert vm.wait_writes()["errors"] == 0
        print(f"pause {cost['pause-us']} us, {cost['pages']['by-fault']} pages by fault")
        vm.end()


def snapshots_of_anon_memory_are_exact(folder):
    check_saves(folder)


def snapshots_of_a_memfd_are_exact(folder):
    check_saves(folder, memory="memfd")


def snapshots_of_huge_pages_are_exact(folder):
    need_huge_pages(64)
    check_saves(folder, memory="hugetlb")


def snapshot_of_a_stopped_guest_leaves_it_stopped(folder):
    with boot(folder) as vm:
        vm.serial.wait_populated()
        vm.command("stop")
        check_exact(vm, f"{folder}/image")
        assert vm.run_state() == "paused"
        vm.command("cont")
        vm.wait_writes()
        vm.end()


# ---- being moved ---------------------------------------------------------------------------------------------


def check_moves(folder, memory, words):
    """There and back again: the guest counts on, finds no error, and sees no longer stall than it stood for."""
    vm = boot(folder, "vm0", memory=memory, words=words)
    try:
        last = vm.serial.wait_populated()
        for number in (1, 2):
            destination = boot(folder, f"vm{number}", incoming=f"unix:{folder}/way-in", memory=memory, words=words)
            found = move(vm, destination)
            first = destination.serial.wait_reports(1)[0]
            assert first["N"] > last["N"] and first["errors"] == 0, (last, first)
            print(f"{memory}: downtime {found['downtime']} ms, stall {first['stall-us']} us")
            destination.check_guest()
            vm.end()
            vm.close()
            vm, last = destination, first
        vm.end()
    finally:
        vm.close()


def guest_moved_goes_on_in_anon_memory(folder):
    check_moves(folder, "anon", "")


def guest_moved_goes_on_in_a_memfd(folder):
    check_moves(folder, "memfd", "")


def guest_moved_goes_on_in_huge_pages(folder):
    need_huge_pages(128)
    check_moves(folder, "hugetlb", f"rate={RATE}")


def guest_moved_sees_no_more_than_its_downtime(folder):
    words = f"rate={RATE}"
    with boot(folder, words=words) as source, arriving(folder) as destination:
        source.wait_writes()
        found = move(source, destination)
        stall_us = destination.serial.wait_reports(1)[0]["stall-us"]
        assert stall_us < found["downtime"] * 1000 + BUSY_US, (stall_us, found["downtime"])
        source.end()
        destination.end()


def guest_moved_while_stopped_stays_stopped(folder):
    with boot(folder) as source, arriving(folder) as destination:
        source.serial.wait_populated()
        source.command("stop")
        move(source, destination)
        assert destination.run_state() == "paused", destination.run_state()
        destination.command("cont")
        destination.wait_writes()
        destination.check_guest()
        source.end()
        destination.end()


def source_afterwards_answers_and_runs_nothing(folder):
    with boot(folder) as source, arriving(folder) as destination:
        source.serial.wait_populated()
        move(source, destination)
        source.serial.skip()
        assert source.run_state() == "postmigrate", source.run_state()
        source.qmp.refused("cont")
        source.qmp.refused("snapshot-save", job_id="save", path="image")
        time.sleep(1.2)
        assert source.serial.reports() == []
        destination.end()
        source.end()


def guest_that_waits_for_a_page_is_stopped_nevertheless(folder):
    with boot(folder, size="256M") as source, arriving(folder, size="256M") as destination:
        source.serial.wait_populated()
        for vm in source, destination:
            vm.set_capabilities("postcopy-ram")
        source.set_parameters(max_bandwidth=8 << 20, max_postcopy_bandwidth=4 << 20)
        source.migrate(f"unix:{folder}/way-in")
        badday.wait_until(lambda: source.status() == "active", 10, "memory goes over")
        source.command("migrate-start-postcopy")
        source.wait_status("postcopy-active")
        source.command("migrate-pause")
        destination.wait_status("postcopy-paused")
        badday.wait_until(lambda: badday.blocked_threads(destination.pid), 10, "its processor waits for a page")
        begin = time.monotonic()
        destination.command("stop")
        assert destination.run_state() == "paused"
        destination.command("cont")
        destination.end()
        assert time.monotonic() - begin < 10
        source.end()


def machine_of_another_size_is_refused(folder):
    with boot(folder, size="64M") as source, arriving(folder, size="96M") as destination:
        source.serial.wait_populated()
        source.migrate(f"unix:{folder}/way-in")
        source.wait_status("failed")
        destination.process.wait(10)
        assert destination.process.returncode == 1 and destination.log().count("\n") == 0, destination.log()
        assert destination.log().startswith("microvm: "), destination.log()
        source.check_guest()
        source.end()


def incoming_garbage_ends_it_in_one_line(folder):
    with arriving(folder) as destination:
        assert destination.run_state() == "inmigrate"
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(f"{folder}/way-in")
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n" * 8)
            destination.process.wait(10)
        assert destination.process.returncode == 1, destination.process.returncode
        assert destination.log().startswith("microvm: ") and "\n" not in destination.log(), destination.log()


def machine_that_waits_is_ended_by_quit(folder):
    for incoming in f"unix:{folder}/way-in", "defer":
        with boot(folder, incoming=incoming) as vm:
            assert vm.run_state() == "inmigrate"
            vm.qmp.refused("cont")
            vm.end()


# ---- what is wrong from the beginning ------------------------------------------------------------------------


def wrong_usage_is_named(folder):
    kernel = ("--kernel", KERNEL)
    for words, *arguments in [("--kernel or --incoming",), ("--qmp",  *kernel, "--qmp", "tcp:x"),
                              ("--memory", *kernel, "--memory", "paper"), ("--size", *kernel, "-m", "much"),
                              ("32M to 3G", *kernel, "-m", "8M"), ("what is 'x' for", *kernel, "x")]:
        if words == "32M to 3G":
            need_kvm()
        check_fails(run(*arguments), 2, words, "--help")
    check_fails(run(*kernel, "--serial", f"{folder}/no/file"), 1, "--serial", "No such file")
    check_fails(run(*kernel, "--snapshot-dir", f"{folder}/no"), 1, "--snapshot-dir")


def kernel_that_is_none_is_refused(folder):
    need_kvm()
    check_fails(run("--kernel", f"{folder}/none"), 1, "none", "No such file")
    with open(f"{folder}/text", "w") as file:
        file.write("no kernel" * 1000)
    check_fails(run("--kernel", f"{folder}/text"), 1, "text: it is no multiboot image")


def socket_that_is_taken_is_refused(folder):
    with boot(folder) as vm:
        check_fails(run("--kernel", KERNEL, "--qmp", f"unix:{vm.path}"), 1, vm.path)
        vm.end()


def machine_without_kvm_is_refused(_folder):
    if os.getuid() != 0:
        raise cases.Skip("skip: only root can hide /dev/kvm")
    hide = 'mount -t tmpfs none /dev && exec "$@"'
    hidden = ["unshare", "--mount", "sh", "-c", hide, "sh", MICROVM, "--kernel", KERNEL]
    result = subprocess.run(hidden, capture_output=True, text=True, stdin=subprocess.PIPE, timeout=30)
    check_fails(result, 1, "/dev/kvm: this machine has no KVM")


def user_without_rights_is_refused(_folder):
    need_kvm()
    nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    if os.getuid() != 0 or os.stat("/dev/kvm").st_mode & 0o006:
        raise cases.Skip("skip: everybody may use /dev/kvm, or we are nobody else")
    if children.start(["test", "-x", MICROVM], **nobody).wait() != 0:
        raise cases.Skip("skip: the build directory is closed to others")
    check_fails(run("--kernel", KERNEL, **nobody), 1, "/dev/kvm: Permission denied")


cases.run(globals(), sys.argv[2:])
