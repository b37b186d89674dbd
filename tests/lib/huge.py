"""Huge pages for tests that need them."""
import re
import sys

SKIP = 77
PATH = "/proc/sys/vm/nr_hugepages"


def reserve(count, free=0):
    """At least @count of them in all, and @free of those unused; the test is skipped where they cannot be had."""
    try:
        with open(PATH, "r+") as file:
            if int(file.read()) < count:
                file.seek(0)
                file.write(str(count))
    except OSError as error:
        print(f"skip: cannot reserve huge pages: {error}")
        sys.exit(SKIP)
    with open("/proc/meminfo") as file:
        left = int(re.search(r"HugePages_Free:\s+(\d+)", file.read()).group(1))
    if left < free:
        print(f"skip: only {left} huge pages are free")
        sys.exit(SKIP)
