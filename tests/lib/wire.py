"""Records of the migration protocol, as bytes: docs/protocol.md. For peers that are made by hand, and for proxies.

    data = record(GO, number, ident)                       a record as it is sent
    peer = Peer(sock, "source")                            counts records for you
    peer.send(HELLO, hello(ident, n_regions=1))
    kind, flags, body, bulk = peer.expect(WELCOME)

Nothing is checked that a test may want to do wrong.
"""
import ctypes
import ctypes.util
import socket
import struct

HEAD = struct.Struct("<4sHHIIQ")  # magic, type, flags, body, bulk, number; the checksum follows
HEAD_BYTES = HEAD.size + 8
MAGIC = b"snpr"
NO_ADDRESS = (1 << 64) - 1
CHUNK_PAGES = 64
URGENT = 0xffff

NAMES = ["NONE", "HELLO", "REGION", "WELCOME", "FAILED", "CHUNK", "ROUND", "MISSING", "STATE", "END", "READY", "GO",
         "STARTED", "REQUEST", "ALL_SENT", "COMPLETE", "ALIVE", "LAYOUT"]
(HELLO, REGION, WELCOME, FAILED, CHUNK, ROUND, MISSING, STATE, END, READY, GO, STARTED, REQUEST, ALL_SENT, COMPLETE,
 ALIVE, LAYOUT) = range(1, 18)
MOVE, REPLICATE = 1, 2                          # purpose of HELLO
ONE_WAY, RESUME, MAY_POSTCOPY = 1, 2, 4         # its flags
PAGES_MISSING = 1                               # flag of END


def _load_hash():
    library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library.XXH3_64bits


_xxh3 = _load_hash()


def xxh3(data):
    data = bytes(data)
    return _xxh3(data, len(data))


def seal(head, body):
    """The 24 bytes of a head, its checksum and the body."""
    return head + struct.pack("<Q", xxh3(head + body)) + body


def zstd(data):
    """One frame of DATA."""
    library = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    library.ZSTD_compress.restype = ctypes.c_size_t
    library.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    room = ctypes.create_string_buffer(len(data) + 1024)
    length = library.ZSTD_compress(room, len(room), data, len(data), 1)
    return room.raw[:length]


def record(kind, number, body=b"", bulk=b"", flags=0):
    return seal(HEAD.pack(MAGIC, kind, flags, len(body), len(bulk), number), body) + bulk


def parse_head(head):
    """(type, flags, length of the body, length of the bulk, number) of HEAD_BYTES bytes."""
    magic, kind, flags, body, bulk, number = HEAD.unpack_from(head)
    assert magic == MAGIC, f"this is no record: {head!r}"
    return kind, flags, body, bulk, number


# ---- bodies ----------------------------------------------------------------------------------------------


def hello(ident, n_regions=0, version=1, channels=1, channel=0, purpose=MOVE, page=4096, silence_ms=3000,
          driver="embedded"):
    text = driver.encode()
    return struct.pack("<16sIIIIQQQHH", ident, version, channels, channel, purpose, n_regions, page, silence_ms,
                       len(text), 0) + text


def parse_hello(body):
    """(id, version, channels, channel, purpose, regions, page, silence in ms)"""
    return struct.unpack_from("<16sIIIIQQQ", body)


def region(name, length, address=0, page=4096, granule=None, host=0x7f0000000000):
    text = name.encode()
    return struct.pack("<QQQQQH", address, length, page, granule or page, host, len(text)) + text


def welcome(ident, version=1, at=0, n_missing=0):
    return struct.pack("<16sIIQ", ident, version, at, n_missing)


def chunk(region_number, number, present, zero, bulk, codec=0, checksum=None):
    checksum = xxh3(bulk) if checksum is None else checksum
    return struct.pack("<IIQQQQIIQ", region_number, 0, number, present, zero, 0, len(bulk), codec, checksum)


def state(name, data, total=None, offset=0):
    text = name.encode()
    return struct.pack("<QQH", len(data) if total is None else total, offset, len(text)) + text + data


def missing(region_number, first_chunk, masks):
    return struct.pack(f"<IIQQ{len(masks)}Q", region_number, len(masks), first_chunk, 0, *masks)


def end(chunks, pages, states, epoch=0):
    return struct.pack("<QQQQ", epoch, chunks, pages, states)


def number_body(number):
    return struct.pack("<QQ", number, 0)


# ---- a side of a connection ------------------------------------------------------------------------------


class Gone(Exception):
    """The other side has closed the connection."""


class Failed(Exception):
    """It said FAILED; the text."""


def receive_exactly(sock, length):
    data = bytearray()
    while len(data) < length:
        try:
            more = sock.recv(min(length - len(data), 1 << 20))
        except ConnectionResetError:
            more = b""
        if not more:
            raise Gone(f"{len(data)} of {length} bytes")
        data += more
    return bytes(data)


class Peer:
    """A side of a connection that is made by hand."""

    def __init__(self, sock, timeout=20):
        self.socket = sock
        self.socket.settimeout(timeout)
        self.sent = self.received = 0

    @classmethod
    def connect(cls, path, timeout=20):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return cls(sock, timeout)

    def send(self, kind, body=b"", bulk=b"", flags=0):
        data = record(kind, self.sent, body, bulk, flags)
        self.sent += 1
        self.socket.sendall(data)

    def receive(self):
        """(type, flags, body, bulk) of the next record. Errors: Gone; TimeoutError."""
        head = receive_exactly(self.socket, HEAD_BYTES)
        kind, flags, body, bulk, number = parse_head(head)
        assert number == self.received, f"record {number} where {self.received} was to come"
        self.received += 1
        data = receive_exactly(self.socket, body)
        assert seal(head[:HEAD.size], data) == head + data, f"the checksum of a {NAMES[kind]}"
        return kind, flags, data, receive_exactly(self.socket, bulk)

    def next(self):
        """The next one that is not ALIVE. Errors: Failed, when that is what it is."""
        while True:
            got = self.receive()
            if got[0] == FAILED:
                raise Failed(got[2].decode())
            if got[0] != ALIVE:
                return got

    def expect(self, kind):
        got = self.next()
        assert got[0] == kind, f"{NAMES[got[0]]} where {NAMES[kind]} was to come"
        return got

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()
