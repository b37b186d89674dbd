"""The memory of a process in an image, by way of its core file."""
import os
import struct

import badday


class Core:
    def __init__(self, build, image):
        path = f"{image}.core"
        shown = badday.vmsnap(build, "export", image, "--format", "elf", "-o", path)
        assert shown.returncode == 0, shown
        with open(path, "rb") as file:
            self.data = file.read()
        os.unlink(path)
        offset, n = struct.unpack_from("<Q", self.data, 32)[0], struct.unpack_from("<H", self.data, 56)[0]
        heads = (struct.unpack_from("<IIQQQQQQ", self.data, offset + i * 56) for i in range(n))
        self.loads = [(address, place, in_file) for kind, _, place, address, _, in_file, _, _ in heads if kind == 1]

    def read(self, address, length):
        """Bytes; None for what is not mapped."""
        out = b""
        for start, place, in_file in sorted(self.loads):
            if start <= address < start + in_file and length:
                n = min(length, start + in_file - address)
                out += self.data[place + address - start:place + address - start + n]
                address, length = address + n, length - n
        return None if length else out
