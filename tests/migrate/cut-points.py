#!/usr/bin/env python3
"""The connection is harmed at every record of a migration.

cut-points.py BUILD [--all] [--jobs N] [WORD...]     only the cases whose name holds all of these words
cut-points.py BUILD --random N [--seed S]            so many of any kind, of guests of any kind that write all the time

A clean run in each mode tells which records there are. Then each of them, in each direction, is the place where the
connection is cut, cut half, stalled, or the record is damaged, sent twice, left out or late. By default each record
meets one of these in turn, with --all every one of them. What must be true afterwards: way.py.
"""
import argparse
import concurrent.futures
import os
import random
import shutil
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import cases  # noqa: E402
import children  # noqa: E402
import migrate  # noqa: E402
import way  # noqa: E402
from proxy import Harm  # noqa: E402

HARMS = [("cut", "before"), ("cut", "after"), ("corrupt", "body"), ("cut", "middle"), ("stall", "before"),
         ("corrupt", "head"), ("half", "before"), ("drop", ""), ("stall", "middle"), ("duplicate", ""),
         ("half", "after"), ("stall", "after"), ("half", "middle"), ("delay", "")]
MANY = ("CHUNK", "REQUEST", "END", "READY", "STATE", "ROUND")  # the first is not like the last
NOT_ALWAYS = ("ALIVE", "REQUEST", "ROUND", "MISSING")          # another run may have fewer of them


def harm_of(what, place, sender, kind, nth):
    where = {"where": place} if what in ("cut", "half", "stall") else {"part": place} if what == "corrupt" else {}
    return Harm(what, kind, sender=sender, nth=nth, **where)


def places(counts, everything):
    """(sender, kind, nth) of the records to be harmed."""
    for sender, kind in sorted(counts):
        last = counts[sender, kind]
        for nth in sorted({1, (last + 1) // 2, last} if everything and kind in MANY else {1}):
            yield sender, kind, nth


def harms_of(mode, counts, everything):
    """Every record with every harm; or every record with one, a different one for each."""
    turn = sorted(way.MODES).index(mode)
    for sender, kind, nth in places(counts, everything):
        turn += 1
        chosen = HARMS if everything else [HARMS[turn % len(HARMS)]]
        for what, place in chosen:
            yield harm_of(what, place, sender, kind, nth)
        if kind == "CHUNK":
            yield harm_of("corrupt", "bulk", sender, kind, nth)
    if mode == "multifd":
        for channel in (1, 3):
            for what in ("cut-one", "stall-one"):
                yield Harm(what, "CHUNK", channel=channel, nth=3)
        yield Harm("stall-one", "END", channel=2)
    if mode == "postcopy":
        for what in ("cut-one", "stall-one"):
            yield Harm(what, "CHUNK", channel=0xffff)
            yield Harm(what, "CHUNK", channel=0xffff, after="STARTED")
            yield Harm(what, "CHUNK", channel=0, after="STARTED")
        yield Harm("cut", "CHUNK", after="STARTED")
        yield Harm("stall", "CHUNK", after="STARTED")


class Case:
    """One crossing with one harm."""

    def __init__(self, build, mode, harm, must_come=True, **options):
        self.build, self.mode, self.harm, self.options, self.must_come = build, mode, harm, options, must_come
        self.name = f"{mode}: {harm} of the {harm.sender}" if harm else f"{mode}: nothing"
        self.name += "".join(f" {name}={value}" for name, value in options.items())
        self.counts = {}

    def _run_in(self, folder):
        with way.Crossing(self.build, folder, self.mode, *([self.harm] if self.harm else []),
                          **self.options) as crossing:
            try:
                crossing.run()
                outcome = crossing.judge()
                self.counts = crossing.proxy.counts
                if self.harm and not crossing.proxy.fired.is_set():
                    assert outcome == "destination", f"nothing was done, and it is {outcome}"
                    assert not self.must_come or self.harm.nth > 1 or self.harm.kind in NOT_ALWAYS, "it did not come"
                    outcome = "not reached"
                return outcome
            except BaseException:
                print(f"---- {self.name}: the proxy saw {crossing.proxy.order[-12:]}")
                migrate.keep(folder, self.name)
                raise

    def run(self):
        """Whether it went well."""
        folder = tempfile.mkdtemp(prefix="cut-", dir=os.environ.get("SNAP_TEST_DIR"))
        begin = time.monotonic()
        try:
            outcome, well = self._run_in(folder), True
        except cases.Skip as why:
            outcome, well = f"SKIPPED: {why}", None
        except Exception as error:  # whatever it is, the next one runs
            where = " > ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}"
                               for frame in traceback.extract_tb(error.__traceback__))
            outcome, well = f"FAILED: {type(error).__name__}: {error}\n  at {where}", False
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{self.name}: {outcome} ({time.monotonic() - begin:.1f} s)", flush=True)
        return well


MEMORIES = ("anon", "thp", "memfd", "hugetlb")
KINDS = ("CHUNK", "CHUNK", "CHUNK", "REQUEST", "MISSING", "STATE", "END", "READY", "GO", "STARTED", "ALL_SENT",
         "COMPLETE", "ALIVE")


def random_case(build, chosen):
    """One of any kind."""
    mode = chosen.choice(sorted(way.MODES))
    what, place = chosen.choice(HARMS)
    kind = chosen.choice(KINDS)
    nth = chosen.randint(1, 60) if kind in ("CHUNK", "REQUEST") else 1
    after = chosen.choice((None, None, "STARTED")) if mode == "postcopy" and kind in ("CHUNK", "REQUEST") else None
    harm = harm_of(what, place, None, kind, nth)
    harm.after, harm.is_open = after, after is None
    return Case(build, mode, harm, must_come=False, memory=chosen.choice(MEMORIES), rate=chosen.choice((0, 50000)),
                threads=chosen.randint(1, 2))


def run_random(build, options):
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    print(f"--seed {seed}")
    chosen = random.Random(seed)
    return run_all(options.jobs, [random_case(build, chosen) for _ in range(options.random)])


def run_all(jobs, found):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(Case.run, found))


def run_every(build, options):
    asked = [word for word in options.words if word in way.MODES]
    clean = [Case(build, mode, None) for mode in way.MODES if mode in asked or not asked]
    results = run_all(min(options.jobs, 2), clean)
    if None in results:
        return results
    harmed = [Case(build, case.mode, harm) for case in clean for harm in harms_of(case.mode, case.counts, options.all)]
    chosen = [case for case in harmed if all(word in case.name for word in options.words)]
    return results + run_all(options.jobs, chosen)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("words", nargs="*")
    options = parser.parse_intermixed_args()
    build = os.path.abspath(options.build)
    children.end_by_signal()
    results = run_random(build, options) if options.random else run_every(build, options)
    if None in results:
        return cases.EXIT_SKIP
    print(f"{len(results)} crossings, {results.count(False)} went wrong")
    return 1 if False in results else 0


if __name__ == "__main__":
    sys.exit(main())
