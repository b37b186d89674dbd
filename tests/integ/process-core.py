#!/usr/bin/env python3
"""gdb says the same of an exported core as of the live process: call stacks, registers and variables of every thread.

usage: process-core.py VMSNAP TARGET
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

SKIPPED = 77

# What is asked of both. rax is left out: in a system call that a debugger has interrupted it says why.
QUESTIONS = [
    "thread apply all bt",
    "thread apply all -q info registers rip rsp rbp rbx rdi rsi r12 r15 fs_base cs",
    "thread apply all -q p $xmm0",
    "thread apply all -q p $mxcsr",
    "thread apply all -q p thread_value",
    "p initialised",
    "p *on_heap",
    "p numbers[0]@20",
    "p numbers[99999]",
    "p shared_text + 5000",
    "p untouched",
    "x/8i main",
    "info auxv",
]


def ask(*arguments):
    command = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set width 0",
               "-iex", "set pagination off"]
    command += list(arguments)
    for question in QUESTIONS:
        command += ["-ex", "echo @@@\\n", "-ex", question]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    answers = result.stdout.split("@@@\n")[1:]
    if len(answers) != len(QUESTIONS):
        sys.exit("gdb gave %d answers to %d questions:\n%s" % (len(answers), len(QUESTIONS), result.stdout))
    return [normalise(answer) for answer in answers]


def normalise(answer):
    """Threads by their kernel id: names and gdb's numbering differ, and so do a program's name and the end of a session."""
    answer = re.sub(r"^\[Inferior .*\n", "", answer, flags=re.M)
    # gdb 13 expects the FPU state to be laid out as Intel's processors do; so it says this of gcore's cores as well.
    answer = re.sub(r"^warning: Section `\.reg-xstate/\d+' in core file too small\.\n?", "", answer, flags=re.M)
    parts = re.split(r"^Thread \d+ \(.*?LWP (\d+)\).*:$", answer, flags=re.M)
    threads = dict(zip(parts[1::2], (part.strip() for part in parts[2::2])))
    return threads or re.sub(r"^\$\d+ = ", "", answer, flags=re.M).strip()


def check_content(core):
    """The known truth, should gdb be wrong about both."""
    backtraces = core[0]
    if len(backtraces) != 6:
        sys.exit("%d threads in the core, not 6" % len(backtraces))
    depths = sorted(text.count(" descend (") for text in backtraces.values())
    if depths != [4, 4, 5, 6, 7, 8]:
        sys.exit("the call stacks are %s deep" % depths)
    for words, question in (('"on the heap"', 6), ("in shared memory", 9), ("0.625", 5), ("2654435761", 7)):
        if words not in core[question]:
            sys.exit("%s: %s" % (QUESTIONS[question], core[question]))


def run(vmsnap, target, folder):
    image, core = os.path.join(folder, "image"), os.path.join(folder, "core")
    process = subprocess.Popen([target], stdout=subprocess.PIPE, text=True)
    try:
        pid = process.stdout.readline().strip()
        time.sleep(0.1)
        subprocess.run([vmsnap, "save", "--pid", pid, image], check=True, timeout=60)
        live = ask("-p", pid)
        state = open("/proc/%s/stat" % pid).read().rpartition(")")[2].split()[0]
        if state not in "SR":
            sys.exit("the process is left in state %s" % state)
    finally:
        process.kill()
        process.wait()
    subprocess.run([vmsnap, "export", image, "--format", "elf", "-o", core], check=True, timeout=60)
    from_core = ask(target, core)
    check_content(from_core)
    for question, expected, got in zip(QUESTIONS, live, from_core):
        if expected != got:
            sys.exit("%s\n--- live ---\n%s\n--- core ---\n%s" % (question, expected, got))
    info = os.stat(core)
    print("%d questions answered alike; core of %d KiB in %d KiB on disk"
          % (len(QUESTIONS), info.st_size >> 10, info.st_blocks >> 1))


def main():
    if not shutil.which("gdb"):
        print("needs gdb")
        return SKIPPED
    if os.geteuid() != 0:
        print("needs root")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="process-core-", dir="/var/tmp") as folder:
        run(sys.argv[1], sys.argv[2], folder)
    return 0


sys.exit(main())
