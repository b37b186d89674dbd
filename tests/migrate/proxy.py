"""A proxy between the two sides of a migration, which knows where a record begins and can do it harm.

    with Proxy(f"{folder}/way", f"{folder}/destination", Harm("cut", "GO", where="before")) as proxy:
        …a source connects to FOLDER/way…
        assert proxy.fired.wait(5)

It forwards record by record, each direction of each connection in a thread of its own. The harm is done once, to the
record that its Harm describes; afterwards new connections are let through, so that a migration can be resumed.

What can be done, to a record or at its place:

    cut          end all connections, both ways
    cut-one      end only the connection of this record
    half         end the direction of this record only: what the other side sends still comes
    stall        forward nothing any more, on any connection, and keep them open
    stall-one    the same, on the connection of this record only
    corrupt      flip a bit of its head, body or bulk
    duplicate    send it twice
    drop         leave it out
    delay        forward it half a second later

`where` is before, middle (after @bytes bytes of it, half of it unless given) or after, for those that end something.
"""
import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import wire  # noqa: E402

DELAY_S = 0.5
SOURCE, DESTINATION = "source", "destination"  # who sends
SENDERS = {"HELLO": SOURCE, "REGION": SOURCE, "WELCOME": DESTINATION, "CHUNK": SOURCE, "ROUND": SOURCE,
           "STATE": SOURCE, "END": SOURCE, "READY": DESTINATION, "GO": SOURCE, "STARTED": DESTINATION,
           "REQUEST": DESTINATION, "ALL_SENT": SOURCE, "COMPLETE": DESTINATION}


class Harm:
    """What is done to which record: the @nth (from 1 on) of @kind that @sender sends, counted over all connections.

    @channel: only on that one; None: any. @kind: a name, or None: any record.
    """

    def __init__(self, what, kind, sender=None, nth=1, where="before", part="body", at_byte=None, channel=None,
                 after=None):
        self.what, self.kind, self.nth, self.where, self.part = what, kind, nth, where, part
        self.sender = sender or SENDERS.get(kind)
        self.at_byte, self.channel = at_byte, channel
        self.after = after  # (nullable) a name: only once a record of that kind has passed
        self._seen, self.is_open = 0, after is None
        self._lock = threading.Lock()

    def hits(self, kind, sender, channel):
        """Whether this is the one. Counts."""
        with self._lock:
            if kind == self.after:
                self.is_open = True
                return False
            if not self.is_open or (self.kind and kind != self.kind) or (self.sender and sender != self.sender):
                return False
            if self.channel is not None and channel != self.channel:
                return False
            self._seen += 1
            return self._seen == self.nth

    def __str__(self):
        place = {"corrupt": self.part, "duplicate": "", "drop": "", "delay": ""}.get(self.what, self.where)
        return f"{self.what} {place} {self.kind}".replace("  ", " ") + (f" #{self.nth}" if self.nth > 1 else "")


def flip(data, part, body_bytes):
    """DATA, a record, with a bit the other way."""
    first = {"head": 0, "body": wire.HEAD_BYTES, "bulk": wire.HEAD_BYTES + body_bytes}[part]
    last = {"head": wire.HEAD_BYTES, "body": wire.HEAD_BYTES + body_bytes, "bulk": len(data)}[part]
    if last == first:
        first, last = 0, wire.HEAD_BYTES
    at = first + (last - first) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1:]


class _Stop(Exception):
    """This direction forwards no more."""


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy, near, far):
        self.proxy, self.channel = proxy, None
        self.sockets = {SOURCE: near, DESTINATION: far}
        self.threads = [threading.Thread(target=self._forward, args=(sender,), daemon=True)
                        for sender in (SOURCE, DESTINATION)]
        for thread in self.threads:
            thread.start()

    def cut(self):
        for sock in self.sockets.values():
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _cut_half(self, sender):
        """The other side of SENDER sees the end of what SENDER sends."""
        other = DESTINATION if sender == SOURCE else SOURCE
        for sock, how in ((self.sockets[other], socket.SHUT_WR), (self.sockets[sender], socket.SHUT_RD)):
            try:
                sock.shutdown(how)
            except OSError:
                pass

    def _read(self, sender):
        """The next record: its name, its bytes, and how many of them are its body."""
        sock = self.sockets[sender]
        head = wire.receive_exactly(sock, wire.HEAD_BYTES)
        kind, _flags, body_bytes, bulk_bytes, _number = wire.parse_head(head)
        data = head + wire.receive_exactly(sock, body_bytes + bulk_bytes)
        if kind == wire.HELLO:
            self.channel = wire.parse_hello(data[wire.HEAD_BYTES:])[3]
        return wire.NAMES[kind] if kind < len(wire.NAMES) else str(kind), data, body_bytes

    def _harm(self, harm, sender, data, body_bytes, send):
        if harm.what == "corrupt":
            send(flip(data, harm.part, body_bytes))
        elif harm.what == "duplicate":
            send(data + data)
        elif harm.what == "delay":
            self.proxy.closed.wait(DELAY_S)
            send(data)
        elif harm.what != "drop":
            middle = harm.at_byte if harm.at_byte is not None else len(data) // 2
            send(data[:{"before": 0, "middle": middle, "after": len(data)}[harm.where]])
            self._end(harm.what, sender)

    def _end(self, what, sender):
        if what == "cut":
            self.proxy.cut()
        elif what == "cut-one":
            self.cut()
        elif what == "half":
            self._cut_half(sender)
        else:
            self.proxy.stall(self if what == "stall-one" else None)
        raise _Stop

    def _forward(self, sender):
        other = self.sockets[DESTINATION if sender == SOURCE else SOURCE]

        def send(data):
            if self.proxy.is_stalled(self):
                raise _Stop
            other.sendall(data)

        try:
            while True:
                kind, data, body_bytes = self._read(sender)
                harm = self.proxy.take(kind, sender, self.channel)
                if harm:
                    self._harm(harm, sender, data, body_bytes, send)
                else:
                    send(data)
        except _Stop:
            return
        except (wire.Gone, OSError, AssertionError):
            if not self.proxy.is_stalled(self):
                self._cut_half(sender)


class Proxy:
    """Listens at @near, connects to @far. @harms: of Harm; the first that hits is done, and none of it again."""

    def __init__(self, near, far, *harms):
        self.near, self.far, self.harms = near, far, list(harms)
        self.fired = threading.Event()
        self.closed = threading.Event()
        self.counts = {}   # (sender, name) → so many have passed
        self.order = []    # (sender, name, channel), runs of CHUNK as one
        self._links, self._stalled, self._lock = [], set(), threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(near):
            os.unlink(near)
        self._listener.bind(near)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def uri(self):
        return f"unix:{self.near}"

    def _accept(self):
        while True:
            try:
                near, _address = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self.far)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._links.append(_Link(self, near, far))

    def take(self, kind, sender, channel):
        """What is to be done to this record, or None."""
        with self._lock:
            self.counts[sender, kind] = self.counts.get((sender, kind), 0) + 1
            place = (sender, kind, channel)
            if not self.order or self.order[-1] != place:
                self.order.append(place)
        for harm in self.harms:
            if harm.hits(kind, sender, channel):
                self.harms.remove(harm)
                self.fired.set()
                return harm
        return None

    def cut(self):
        """All connections that there are now."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def stall(self, link=None):
        """Forward nothing any more on LINK, or on all that there is now."""
        with self._lock:
            self._stalled.update([link] if link else self._links)
        self.fired.set()

    def is_stalled(self, link):
        return link in self._stalled

    def close(self):
        self.closed.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self.cut()
        for link in self._links:
            for thread in link.threads:
                thread.join(5)
            for sock in link.sockets.values():
                sock.close()
        if os.path.exists(self.near):
            os.unlink(self.near)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()
