"""Sides of a migration made by hand, for a thread-vm on the other end: as it should be, up to where a test wants.

    guest = Guest()                            as a thread-vm with GUEST_OPTIONS that has written nothing
    source = Source(path, guest)
    source.greet(); source.send_memory(); source.finish(); source.let_go()

    with Destination(path) as destination:     listens
        destination.accept(); destination.welcome(); destination.take(wire.END) …
"""
import math
import os
import socket
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import wire  # noqa: E402

PAGE = os.sysconf("SC_PAGESIZE")
SIZE = 8 << 20
GUEST_OPTIONS = {"size": str(SIZE), "rate": 20000}
SILENCE_MS = 1500


def raw(peer, data):
    peer.socket.sendall(data)


def sealed(kind, number, body=b"", bulk_bytes=0, body_bytes=None, flags=0, magic=wire.MAGIC):
    """A record whose head says what it likes."""
    head = wire.HEAD.pack(magic, kind, flags, len(body) if body_bytes is None else body_bytes, bulk_bytes, number)
    return wire.seal(head, body)


class Guest:
    """Memory and state of a guest that is about to write for the first time."""

    def __init__(self, size=SIZE):
        self.size = size
        self.pages = size // PAGE - 1
        self.stride = max((self.pages * 40503) >> 16, 1)
        while math.gcd(self.pages, self.stride) != 1:
            self.stride += 1

    def header_page(self):
        """As seq_header_init() has it."""
        head = struct.pack("<8s7Q", b"snapseq1", PAGE, self.pages, self.pages, self.pages, self.stride, 1, 64)
        return head.ljust(PAGE, b"\0")

    def state(self, pages=None):
        """As tests/migrate/thread-guest.h has it."""
        layout = pages or self.pages, PAGE, self.pages, self.pages, self.stride
        return struct.pack("<8s8Q", b"thrdvm01", 1, 0, 0, *layout)


class Source(wire.Peer):
    """What a source says."""

    def __init__(self, path, guest, timeout=10):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        super().__init__(sock, timeout)
        self.guest, self.id = guest, os.urandom(16)
        self.chunks = self.chunk_pages = self.states = 0

    def hello(self, flags=0, **changes):
        fields = {"n_regions": 1, "page": PAGE, "silence_ms": SILENCE_MS, **changes}
        self.send(wire.HELLO, wire.hello(self.id, **fields), flags=flags)

    def region(self, **changes):
        self.send(wire.REGION, wire.region(**{"name": "ram", "length": self.guest.size, "page": PAGE, **changes}))

    def greet(self, flags=0, **changes):
        """Up to WELCOME."""
        self.hello(flags, **changes)
        self.region()
        return self.expect(wire.WELCOME)

    def send_chunk(self, number, pages, region=0, **changes):
        """PAGES: the first of the chunk, as bytes."""
        count = len(pages) // PAGE
        body = {"present": (1 << count) - 1, "zero": 0, "bulk": pages, **changes}
        self.send(wire.CHUNK, wire.chunk(region, number, **body), pages)
        self.chunks += 1
        self.chunk_pages += count

    def send_memory(self):
        self.send_chunk(0, self.guest.header_page())

    def send_state(self, **changes):
        self.send(wire.STATE, wire.state(**{"name": "threads", "data": self.guest.state(), **changes}))
        self.states += 1

    def send_end(self, flags=0, epoch=0, **changes):
        counts = {"chunks": self.chunks, "pages": self.chunk_pages, "states": self.states, **changes}
        self.send(wire.END, wire.end(**counts, epoch=epoch), flags=flags)
        self.chunks = self.chunk_pages = self.states = 0

    def finish(self):
        """Up to READY."""
        self.send_memory()
        self.send_state()
        self.send_end()
        return self.expect(wire.READY)

    def let_go(self):
        self.send(wire.GO, self.id)
        return self.expect(wire.STARTED)


class Destination:
    """What a destination says, to one source at a time."""

    def __init__(self, path):
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4)
        self.listener.settimeout(10)
        self.peer = self.id = None

    def accept(self):
        """Take a source, up to its last REGION. Return: its HELLO."""
        if self.peer:
            self.peer.close()
        sock, _address = self.listener.accept()
        self.peer = wire.Peer(sock)
        _kind, flags, body, _bulk = self.peer.expect(wire.HELLO)
        fields = wire.parse_hello(body)
        self.id = fields[0]
        for _ in range(fields[5]):
            self.peer.expect(wire.REGION)
        return flags, fields

    def welcome(self, **changes):
        self.peer.send(wire.WELCOME, wire.welcome(**{"ident": self.id, **changes}))

    def take(self, kind):
        """Everything up to a record of that kind, which is returned."""
        while True:
            got = self.peer.next()
            if got[0] == kind:
                return got

    def ready(self, epoch=0):
        self.peer.send(wire.READY, wire.number_body(epoch))

    def take_all(self):
        """Up to and with END."""
        self.accept()
        self.welcome()
        return self.take(wire.END)

    def take_go(self):
        self.take_all()
        self.ready()
        return self.take(wire.GO)

    def hang_up(self):
        if self.peer:
            self.peer.close()
        self.peer = None

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.hang_up()
        self.listener.close()
        os.unlink(self.path)
