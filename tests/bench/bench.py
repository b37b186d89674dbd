#!/usr/bin/env python3
"""The figures that libsnap is to reach, measured here and now beside what they are compared with.

Nothing is hard-coded: each reference is run in turns with ours, on the same guest and the same disk.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import children  # noqa: E402
import guests  # noqa: E402
import qemu  # noqa: E402
import qmpd  # noqa: E402
import rows_log  # noqa: E402
import rows_move  # noqa: E402
import rows_process  # noqa: E402
import rows_qemu  # noqa: E402
import rows_qmp  # noqa: E402
import table  # noqa: E402
import vmsnap  # noqa: E402
from scenario import Bench, MeasureError  # noqa: E402

SCENARIOS = [rows_qemu.QemuPause, rows_process.Sizes, rows_process.Faults, rows_process.SlowSink,
             rows_qemu.QemuSlowSink, rows_process.Stall, rows_process.Throughput, rows_qemu.QemuSparse,
             rows_log.Scan, rows_log.FirstWrite, rows_log.Arm, rows_log.Sparse, rows_log.Incremental,
             rows_log.Slowdown, rows_qmp.Roundtrip, rows_qmp.OutOfBand, rows_qmp.TwoGuests, rows_move.FirstRound,
             rows_move.Moves, rows_move.Postcopy, rows_move.Replicate]
ROWS = [row for scenario in SCENARIOS for row in scenario.rows]
FAILURES = (MeasureError, vmsnap.VmsnapError, guests.GuestError, qemu.QmpError, qmpd.Refused, qmpd.Closed, OSError)


def parse():
    parser = argparse.ArgumentParser(prog="bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="rows: " + ", ".join(ROWS))
    parser.add_argument("--build", default="build", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measure so often, take the median (5)")
    parser.add_argument("--quick", action="store_true", help="one run only")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", default=ROWS, help="these rows only")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every run")
    parser.add_argument("--dir", metavar="DIR", help="write images here (the build directory)")
    options = parser.parse_args()
    options.runs = 1 if options.quick else options.runs
    if options.runs < 1:
        parser.error("--runs: at least 1")
    return options


def machine(work):
    """What the figures depend on."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True).stdout
    file_system = subprocess.run(["stat", "-f", "-c", "%T", work], stdout=subprocess.PIPE, text=True).stdout
    return {"kernel": platform.release(), "cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
            "qemu": version.split("\n")[0].replace("QEMU emulator version ", ""), "file-system": file_system.strip()}


def measure(options, bench):
    """Return: the lines, and what could not be measured."""
    lines, failures = [], []
    for scenario in SCENARIOS:
        wanted = set(scenario.rows) & set(options.only)
        if not wanted:
            continue
        print(f"measuring {', '.join(scenario.rows)} …", end="", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            lines += [line for line in scenario(bench).run(options.runs) if line.name in wanted]
            print(f" {time.monotonic() - start:.0f} s", file=sys.stderr)
        except FAILURES as failure:
            print(f"\nbench: {', '.join(scenario.rows)}: {failure}", file=sys.stderr)
            failures.append({"rows": scenario.rows, "why": str(failure)})
    return lines, failures


def print_result(options, about, lines, failures, seconds):
    if options.json:
        print(json.dumps({"machine": about, "runs": options.runs, "seconds": round(seconds, 1),
                          "rows": [line.as_object() for line in lines], "not-measured": failures}, indent=2))
        return
    print(f"Linux {about['kernel']}, {about['cpus']} CPUs, load {about['load']:.1f}, QEMU {about['qemu']}, "
          f"{about['file-system']}; {options.runs} runs, medians; {seconds:.0f} s\n")
    if about["load"] > about["cpus"] / 2:
        print("The machine was busy already: times are longer, and further apart, than they are alone.\n")
    table.print_table(lines)
    judged = [line.met for line in lines if line.met is not None]
    print(f"\n{sum(judged)} of {len(judged)} met" + (f", {len(failures)} not measured" if failures else ""))


def main():
    options = parse()
    children.end_by_signal()
    work = tempfile.mkdtemp(prefix="bench-", dir=options.dir or options.build)
    start = time.monotonic()
    try:
        about = machine(work)
        lines, failures = measure(options, Bench(os.path.abspath(options.build), os.path.abspath(work)))
    finally:
        children.stop_all()
        shutil.rmtree(work, ignore_errors=True)
    print_result(options, about, lines, failures, time.monotonic() - start)
    return 1 if failures else 0


try:
    sys.exit(main())
except KeyboardInterrupt:
    sys.exit("bench: interrupted")
