"""Test cases of a script, run one after the other and printed as cmocka prints them.

A case is a function of the script with one argument, `folder` or `_folder`: an empty directory of its own, removed
afterwards. Its name is <subject>_<condition>_<result>. It fails by an exception, and is skipped by Skip(why).
"""
import inspect
import os
import shutil
import sys
import tempfile
import time
import traceback

import children

EXIT_SKIP = 77


class Skip(Exception):
    """What this machine lacks."""


def case_functions(names):
    for name, function in list(names.items()):
        if not inspect.isfunction(function) or function.__module__ != "__main__":
            continue
        if list(inspect.signature(function).parameters) in (["folder"], ["_folder"]):
            yield name, function


def where(error):
    """The lines that led to the failure, the script's own last."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return " > ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames)


def run_one(name, function):
    """OK, FAILED or SKIPPED."""
    folder = tempfile.mkdtemp(prefix="vmsnap-", dir=os.environ.get("SNAP_TEST_DIR"))
    print(f"[ RUN      ] {name}", flush=True)
    begin, outcome = time.monotonic(), "OK"
    try:
        function(folder)
    except Skip as why:
        print(why)
        outcome = "SKIPPED"
    except Exception as error:  # whatever it is, the next case runs
        print(f"{type(error).__name__}: {error}\n  at {where(error)}")
        outcome = "FAILED"
    finally:
        children.stop_all()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"after {time.monotonic() - begin:.1f} s")
    print(f"[ {outcome:>8} ] {name}", flush=True)
    return outcome


def run(names, words=()):
    """Run the cases in NAMES (a script's globals()) whose name holds one of WORDS; all without words. Exits."""
    children.end_by_signal()
    outcomes = [run_one(name, function) for name, function in case_functions(names)
                if not words or any(word in name for word in words)]
    if "FAILED" in outcomes or not outcomes:
        sys.exit(1)
    sys.exit(0 if "OK" in outcomes else EXIT_SKIP)
