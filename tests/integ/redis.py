#!/usr/bin/env python3
"""redis under redis-benchmark: save, verify, and open the exported core in gdb. redis goes on serving.

redis.py BUILD. Exit status 0, 1, or 77 when redis or gdb is not installed.
"""
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import children

SKIP = 77
MARK = b"libsnap was here, and redis did not stop"


def run(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: status {result.returncode}: {result.stdout.decode().strip()}")
    return result.stdout.decode(errors="replace")


def ask(path, *words):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(path)
        s.sendall(b"".join([b"*%d\r\n" % len(words)] + [b"$%d\r\n%s\r\n" % (len(w), w) for w in words]))
        return s.recv(1 << 16)


def wait_for(path):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            return ask(path, b"PING")
        except OSError:
            time.sleep(0.05)
    raise AssertionError("redis-server does not answer")


def check_core(core):
    with open(core, "rb") as f:
        if MARK not in f.read():
            raise AssertionError("the core does not hold what redis held")
    text = run(["gdb", "-batch", "-ex", "info threads", "-ex", "thread apply all bt", shutil.which("redis-server"), core])
    threads = text.count("\nThread ")
    # Of threads that stood anywhere: the stacks lead back to where they began.
    if text.count(" in main ()") != 1 or text.count(" in bioProcessBackgroundJobs ()") != 3 or threads < 4:
        raise AssertionError(f"gdb's backtraces are not right: {text[-2000:]}")
    return threads


def check(build, work):
    vmsnap, path, image, core = f"{build}/tools/vmsnap", f"{work}/socket", f"{work}/image", f"{work}/core"
    server = children.Child(["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", work],
                            stdout=subprocess.DEVNULL)
    with server:
        wait_for(path)
        ask(path, b"SET", b"mark", MARK)
        load = children.Child(["redis-benchmark", "-s", path, "-t", "set,get", "-n", "100000000", "-r", "100000",
                               "-d", "512", "-q"], stdout=subprocess.DEVNULL)
        with load:
            time.sleep(1)
            run([vmsnap, "save", "--pid", str(server.process.pid), image])
            before = ask(path, b"INFO", b"commandstats")
            time.sleep(0.5)
            if ask(path, b"INFO", b"commandstats") == before:
                raise AssertionError("redis does not serve after the snapshot")
        run([vmsnap, "verify", image])
        run([vmsnap, "export", image, "--format", "elf", "-o", core])
        threads = check_core(core)
    print(f"redis saved under load; gdb shows {threads} threads")


def main():
    for program in ("redis-server", "redis-benchmark", "gdb"):
        if not shutil.which(program):
            print(f"skip: {program} is not installed")
            sys.exit(SKIP)
    work = tempfile.mkdtemp(prefix="redis-", dir=os.environ.get("SNAP_TEST_DIR"))
    try:
        check(sys.argv[1], work)
    except AssertionError as error:
        print(error)
        sys.exit(1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


main()
