#!/usr/bin/env python3
"""Bad days of the target: it dies or becomes another program while it is saved, or is none that can be saved.

    badday-target.py BUILD [WORD...]      only the cases whose name holds one of these words
"""
import os
import re
import signal
import subprocess
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import badday  # pylint: disable=wrong-import-position
import cases  # pylint: disable=wrong-import-position
import children  # pylint: disable=wrong-import-position

BUILD = sys.argv[1]
SLOW = ("--max-bandwidth", "16M")
GONE = re.compile(r"ended|no process|No such process|system call instruction")

# Writes over 32 MiB until it is told otherwise: SIGUSR1 makes it another program. argv: what it shall become.
PYTHON_GUEST = """
import mmap, os, signal, sys
memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
signal.signal(signal.SIGUSR1, lambda *_: os.execvp(sys.argv[1], sys.argv[1:]))
print("ready", flush=True)
while True:
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = (memory[at] + 1) & 255
"""


def python_program(text, *arguments):
    """A Python program that has said that it is ready."""
    child = children.start([sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, text=True)
    line = child.stdout.readline()
    assert line.startswith("ready"), line
    return child


def target(child):
    """A save's guest that is none of ours: enough of UnderTest to start a Save."""
    found = badday.UnderTest()
    found.pid, found.build, found.target = child.pid, BUILD, ["--pid", str(child.pid)]
    found.remember()
    return found


def check_gone(save, image, seconds=5):
    begin = time.monotonic()
    status, out, err = save.finish()
    assert time.monotonic() - begin < seconds, "told soon"
    assert status == 1 and not out, (status, out, err)
    line = badday.check_one_line(err)
    assert GONE.search(line), line
    badday.check_incomplete(BUILD, image)
    badday.check_no_process_left(BUILD)


def check_was_either(image):
    """The other program was there before anybody looked."""
    assert badday.vmsnap(BUILD, "verify", image).returncode == 0
    assert badday.vmsnap(BUILD, "delete", image).returncode == 0


# ---- it dies -------------------------------------------------------------------------------------------------


def target_killed_in_the_sweep_is_told(folder):
    for memory in ("anon", "memfd"):
        with badday.ProcessUnderTest(BUILD, memory=memory, threads=2) as guest:
            save = badday.Save(guest, f"{folder}/image", *SLOW)
            save.wait_sweeping()
            guest.process.kill()
            guest.process.wait()
            check_gone(save, f"{folder}/image")


def target_killed_while_it_is_not_reaped_is_told(folder):
    """A zombie still has a number."""
    with badday.ProcessUnderTest(BUILD) as guest:
        save = badday.Save(guest, f"{folder}/image", *SLOW)
        save.wait_sweeping()
        guest.process.kill()
        check_gone(save, f"{folder}/image")


def target_killed_while_it_waits_is_told(folder):
    """All its threads wait for the sink."""
    with badday.ProcessUnderTest(BUILD) as guest:
        save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "4M", "--buffer", "4M")
        save.wait_sweeping()
        badday.wait_until(lambda: badday.blocked_threads(guest.pid), 5, "a write that waits for the sink")
        guest.process.kill()
        check_gone(save, f"{folder}/image")


def target_killed_while_prepared_is_told(folder):
    """From before the first look at it until past the point in time."""
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04):
        with badday.ProcessUnderTest(BUILD, threads=4) as guest:
            save = badday.Save(guest, f"{folder}/image", *SLOW)
            time.sleep(delay)
            guest.process.kill()
            check_gone(save, f"{folder}/image")


def target_killed_when_watched_is_told(folder):
    for _ in range(3):
        with badday.ProcessUnderTest(BUILD) as guest:
            save = badday.Save(guest, f"{folder}/image", *SLOW)
            save.wait_watching()
            guest.process.kill()
            check_gone(save, f"{folder}/image")


def target_killed_while_stopped_is_told(folder):
    """In the pause, or while it is entered: whoever traces it is seen in its status."""
    for _ in range(4):
        with badday.ProcessUnderTest(BUILD, threads=4) as guest:
            save = badday.Save(guest, f"{folder}/image", *SLOW)
            if not badday.catch_traced(save):
                print("missed")
                continue
            guest.process.kill()
            check_gone(save, f"{folder}/image")


def target_that_exits_is_told(folder):
    with badday.ProcessUnderTest(BUILD, size="32M", seconds=1.0) as guest:
        save = badday.Save(guest, f"{folder}/image", *SLOW)
        save.wait_sweeping()
        guest.process.wait()
        check_gone(save, f"{folder}/image")
        assert guest.process.returncode == 0


def target_that_executes_another_program_is_told(folder):
    """The new program is not touched by what was meant for the old one."""
    for delay in (None, 0.0, 0.01, 0.02, 0.04):
        child = python_program(PYTHON_GUEST, "sleep", "100")
        guest = target(child)
        save = badday.Save(guest, f"{folder}/image", *SLOW)
        if delay is None:
            save.wait_sweeping()
        else:
            time.sleep(delay)
        child.send_signal(signal.SIGUSR1)
        if delay is None or save.finish()[0] != 0:
            check_gone(save, f"{folder}/image")
        else:
            check_was_either(f"{folder}/image")
        badday.wait_until(lambda pid=child.pid: os.readlink(f"/proc/{pid}/exe").endswith(("sleep", "coreutils")), 5,
                          "another program")
        badday.wait_until(lambda pid=child.pid: not badday.troubles(pid), 1, "released")
        left = [what for what in badday.descriptors(child.pid).values() if "userfaultfd" in what or "socket" in what]
        assert not left, left
        children.stop(child)


def thread_that_ends_does_no_harm(folder):
    """Threads come and go all the time while it is saved."""
    text = """
import threading, time
print("ready", flush=True)
while True:
    threads = [threading.Thread(target=time.sleep, args=(0.001 * i,)) for i in range(5)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
    child = python_program(text)
    guest = target(child)
    for _ in range(5):
        result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image")
        assert result.returncode == 0, result.stderr
        badday.wait_until(lambda: not badday.troubles(child.pid), 1, "released")
        assert badday.vmsnap(BUILD, "verify", f"{folder}/image").returncode == 0
        assert badday.vmsnap(BUILD, "delete", f"{folder}/image").returncode == 0
        assert child.poll() is None


# ---- it stands still -----------------------------------------------------------------------------------------


def stopped_target_is_saved_and_stays_stopped(folder):
    """Ctrl-Z: a job of a shell, that only its shell lets go on."""
    with badday.ProcessUnderTest(BUILD) as guest:
        guest.process.send_signal(signal.SIGSTOP)
        badday.wait_until(lambda: badday.stopped_threads(guest.pid), 2, "stopped")
        result = badday.vmsnap(BUILD, "save", *guest.target, f"{folder}/image")
        assert result.returncode == 0, result.stderr
        stopped = badday.stopped_threads(guest.pid)
        assert stopped and all(": T, traced by 0" in text for text in stopped), stopped
        badday.check_complete(guest, f"{folder}/image")
        guest.process.send_signal(signal.SIGCONT)
        guest.check_released()
        guest.check_no_errors()


def target_that_cannot_be_stopped_is_refused_in_time(folder):
    """A thread in vfork() does not stop until its child is another program, which here waits at a FIFO."""
    os.mkfifo(f"{folder}/fifo")
    text = f"""
import os, time
print("ready", flush=True)
os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "{folder}/fifo", os.O_RDONLY, 0)])
time.sleep(100)
"""
    child = python_program(text)
    time.sleep(0.2)
    assert "D" in badday.read_proc(child.pid, "stat").split(")")[1].split()[0], "in vfork"
    begin = time.monotonic()
    result = badday.vmsnap(BUILD, "save", "--pid", child.pid, f"{folder}/image")
    assert time.monotonic() - begin < 15, "bounded"
    badday.check_refused(result, str(child.pid))
    badday.check_incomplete(BUILD, f"{folder}/image")
    with open(f"{folder}/fifo", "wb"):
        badday.wait_until(lambda: badday.read_proc(child.pid, "stat").split(")")[1].split()[0] == "S", 5, "goes on")
    badday.wait_until(lambda: not badday.troubles(child.pid), 1, "released")
    badday.check_no_process_left(BUILD)
    left = [what for what in badday.descriptors(child.pid).values() if "userfaultfd" in what]
    assert not left, left


# ---- it is none that can be saved ----------------------------------------------------------------------------


def refuse(folder, pid, *words):
    begin = time.monotonic()
    result = badday.vmsnap(BUILD, "save", "--pid", pid, f"{folder}/image")
    assert time.monotonic() - begin < 6, "bounded"
    badday.check_refused(result, str(pid), *words)
    badday.check_incomplete(BUILD, f"{folder}/image")


def number_of_nobody_is_refused(folder):
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        refuse(folder, int(file.read()) - 1, "no process")
    refuse(folder, 2147483647, "no process")


def garbage_for_a_number_is_wrong_usage(folder):
    for garbage in ("x", "", "0", "-1", "1.0", "0x10", " 1", "1 ", "99999999999999999999", "$(pidof x)", "1\n2"):
        result = badday.vmsnap(BUILD, "save", "--pid", garbage, f"{folder}/image")
        badday.check_refused(result, "--pid", status=2)
    assert os.listdir(folder) == []


def zombie_is_refused(folder):
    child = subprocess.Popen(["true"])
    badday.wait_until(lambda: ") Z " in badday.read_proc(child.pid, "stat"), 5, "a zombie")
    refuse(folder, child.pid, "ended")
    child.wait()


def process_without_main_thread_is_refused(folder):
    text = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(100,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""
    child = python_program(text)
    badday.wait_until(lambda: ") Z " in badday.read_proc(child.pid, "stat"), 5, "a main thread that has ended")
    refuse(folder, child.pid, "main thread")


def thread_is_refused_by_its_process(folder):
    with badday.ProcessUnderTest(BUILD, size="8M", threads=2) as guest:
        thread = max(int(tid) for tid in os.listdir(f"/proc/{guest.pid}/task"))
        refuse(folder, thread, f"process {guest.pid}")
        guest.check_released()


def traced_process_is_refused_by_its_tracer(folder):
    for command in (["strace", "-q", "-o", "/dev/null", "-p"],
                    ["gdb", "-q", "-nx", "-batch", "-ex", "shell sleep 60", "-p"]):
        with badday.ProcessUnderTest(BUILD, size="8M") as guest:
            try:
                tracer = children.start([*command, str(guest.pid)], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
            except FileNotFoundError:
                print(f"{command[0]} is not here")
                continue
            badday.wait_until(lambda guest=guest: badday.is_traced(guest.pid), 20, "traced")
            refuse(folder, guest.pid, f"process {tracer.pid}", command[0])
            assert tracer.poll() is None and badday.is_traced(guest.pid), "still traced"
            os.killpg(tracer.pid, signal.SIGKILL)
            tracer.wait()
            guest.check_released(5)
            badday.check_saves(guest, f"{folder}/image")


def tracer_that_comes_in_the_middle_does_no_harm(folder):
    with badday.ProcessUnderTest(BUILD, threads=2) as guest:
        for delay in (0.0, 0.01, 0.03, 0.2):
            save = badday.Save(guest, f"{folder}/image", "--max-bandwidth", "100M")
            time.sleep(delay)
            try:
                tracer = children.start(["strace", "-f", "-q", "-o", "/dev/null", "-p", str(guest.pid)],
                                        stderr=subprocess.DEVNULL)
            except FileNotFoundError as error:
                raise cases.Skip("skip: strace is not here") from error
            status, out, err = save.finish()
            children.stop(tracer)
            if status == 0:
                guest.check_released(5)
                badday.check_complete(guest, f"{folder}/image")
            else:
                assert status == 1 and not out, (status, out, err)
                badday.check_one_line(err, str(guest.pid))
                guest.check_released(5)
                badday.check_incomplete(BUILD, f"{folder}/image")
        guest.check_no_errors()


def vmsnap_itself_is_refused(folder):
    command = 'exec "$0" save --pid $$ "$1"'
    result = subprocess.run(["sh", "-c", command, f"{BUILD}/tools/vmsnap", f"{folder}/image"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    badday.check_refused(result, "itself")
    badday.check_incomplete(BUILD, f"{folder}/image")


def another_vmsnap_is_no_special_process(folder):
    """It may be saved or refused; both saves end, and the one that was saved is complete."""
    with badday.ProcessUnderTest(BUILD, size="16M") as guest:
        first = badday.Save(guest, f"{folder}/first", "--max-bandwidth", "8M")
        first.wait_sweeping()
        second = badday.vmsnap(BUILD, "save", "--pid", first.pid, f"{folder}/second")
        assert second.returncode in (0, 1), second
        status, _out, err = first.finish()
        assert status == 0, err
        guest.check_released()
        badday.check_complete(guest, f"{folder}/first")
        guest.check_no_errors()


def kernel_thread_is_refused(folder):
    with open("/proc/2/stat", encoding="ascii") as file:
        if "(kthreadd)" not in file.read():
            raise cases.Skip("skip: process 2 is no kernel thread here")
    refuse(folder, 2, "kernel thread")


def program_of_32_bits(path):
    """An ELF file: pause() for ever, by the 32-bit system call."""
    code = bytes.fromhex("b81d000000cd80ebf7")
    base, head = 0x08048000, 52 + 32
    elf = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, base + head, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    load = struct.pack("<IIIIIIII", 1, 0, base, base, head + len(code), head + len(code), 5, 0x1000)
    with open(path, "wb") as file:
        file.write(elf + load + code)
    os.chmod(path, 0o755)


def program_of_32_bits_is_refused(folder):
    program_of_32_bits(f"{folder}/program")
    try:
        child = children.start([f"{folder}/program"])
    except OSError as error:
        raise cases.Skip(f"skip: this kernel runs no 32-bit programs: {error}") from error
    badday.wait_until(lambda: ") S " in badday.read_proc(child.pid, "stat"), 5, "sleeping")
    refuse(folder, child.pid, "32-bit")
    assert child.poll() is None and not badday.troubles(child.pid)


# ---- several at once -----------------------------------------------------------------------------------------


def second_save_at_once_is_refused(folder):
    """By name, whatever the first is doing; and the first does not notice."""
    with badday.ProcessUnderTest(BUILD, size="48M", threads=2) as guest:
        for delay in (0.0, 0.02, None):
            first = badday.Save(guest, f"{folder}/first", "--max-bandwidth", "60M")
            if delay is None:
                first.wait_sweeping()
            else:
                time.sleep(delay)
            second = badday.Save(guest, f"{folder}/second")
            outcomes = [save.finish() for save in (first, second)]
            assert 0 in [outcome[0] for outcome in outcomes], outcomes
            for (status, out, err), image in zip(outcomes, (f"{folder}/first", f"{folder}/second")):
                if status == 0:
                    badday.check_complete(guest, image)
                    continue
                assert status == 1 and not out, (status, out, err)
                line = badday.check_one_line(err)
                assert re.search("another userfaultfd|traced by process", line), line
                badday.check_incomplete(BUILD, image)
            guest.check_released()
            if delay is None:
                assert outcomes[0][0] == 0, outcomes
        guest.check_no_errors()


def five_saves_at_once_leave_the_guest(folder):
    with badday.ProcessUnderTest(BUILD, size="32M", threads=2) as guest:
        saves = [badday.Save(guest, f"{folder}/image{i}", "--max-bandwidth", "60M") for i in range(5)]
        results = []
        threads = [threading.Thread(target=lambda save=save: results.append((save, save.finish()))) for save in saves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for save, (status, _out, err) in results:
            if status == 0:
                badday.check_complete(guest, save.image)
            else:
                badday.check_one_line(err)
                badday.check_incomplete(BUILD, save.image)
        print(f"{sum(status == 0 for _save, (status, _out, _err) in results)} of 5 saved")
        guest.check_released()
        badday.check_saves(guest, f"{folder}/image")
        guest.check_no_errors()


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
