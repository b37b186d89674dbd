#!/usr/bin/env python3
"""slow-cat.py BYTES-PER-SECOND: copies standard input to standard output, no faster than that."""
import os
import sys
import time


def main(bytes_per_second):
    due = time.monotonic()
    while data := os.read(0, 1 << 16):
        while data:
            data = data[os.write(1, data):]
        due = max(due, time.monotonic() - 0.1) + (1 << 16) / bytes_per_second
        time.sleep(max(0, due - time.monotonic()))


main(float(sys.argv[1]))
