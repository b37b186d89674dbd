"""The session of session-qemu.py: what is said to both servers, in this order.

A step is a request with an id, which both get alike unless it is said otherwise, and what is waited for after its
answer. DIR in a request is a folder of the side that is asked. Arguments of every type and shape are tried by
validate-qemu.py, and bytes of every kind by stream-qemu.py; this is about what commands do and answer.
"""
import json

# Members that are numbers of an own measurement or of the moment.
MEASURED = {"dirty-rate", "start-time", "total-time", "setup-time", "downtime", "expected-downtime", "transferred",
            "remaining", "total", "duplicate", "normal", "normal-bytes", "mbps", "pages-per-second", "precopy-bytes",
            "downtime-bytes", "dirty-sync-count", "fd", "completed", "current-progress", "total-progress"}
# Ours say which guest it is.
EVENTS_OF_TARGETS = {"STOP", "RESUME", "MIGRATION", "DUMP_COMPLETED"}


class Request:
    """@text: as the table of differences has it. @data: bytes instead of a name and arguments."""

    def __init__(self, name, arguments=None, member="execute", data=None):
        self._message, self._data = {member: name}, data
        self.is_object = data is None
        words = [name] if member == "execute" else [member, name]
        if arguments is not None:
            self._message["arguments"] = arguments
            words.append(json.dumps(arguments))
        self.text = data.decode() if data else " ".join(words)

    def bytes(self, number, folder):
        message = self._data or json.dumps({**self._message, "id": number}).encode()
        return message.replace(b"DIR", folder.encode()) + b"\n"


class Step:
    """@ours: the request for vmsnapd, where that differs. @descriptors: so many files are passed with it. @until:
    events that come then, each a name and members of its data. @keep: events may come at any time, and belong to the
    next step with @until. @opens: after the answer somebody opens DIR/gate, a FIFO, for a moment. @after: so many
    seconds pass before it. @meanwhile: what both say while something that was begun goes on; one of them may be through
    with it by then, and the answers are not compared."""

    def __init__(self, request, ours=None, descriptors=0, until=(), keep=False, opens=False, after=0, meanwhile=None):
        self._request, self._ours = request, ours or request
        self.descriptors, self.until, self.keep, self.opens, self.after = descriptors, until, keep, opens, after
        self.meanwhile = meanwhile
        self.text = request.text if not ours else f"{request.text} / {ours.text}"

    def of(self, side):
        return self._ours if side == "ours" else self._request


class Connect:
    """A new connection instead of the one before; the greeting is its answer."""
    text = "(greeting)"
    meanwhile = None


def do(name, arguments=None, **more):
    return Step(Request(name, arguments), **more)


def all_of(name, *arguments):
    """The same command with each of these."""
    return [do(name, each) for each in arguments]


def oob(name, arguments=None):
    return Step(Request(name, arguments, "exec-oob"))


def each(qemus, ours, **more):
    """What has another name or other arguments there."""
    return Step(Request(*qemus), Request(*ours), **more)


def raw(data):
    return Step(Request("", data=data))


def capabilities(**switched):
    return {"capabilities": [{"capability": name.replace("_", "-"), "state": state} for name, state in switched.items()]}


def dump(protocol, **more):
    return {"paging": False, "protocol": protocol, **more}


# ---- the session itself --------------------------------------------------------------------------------------

NEGOTIATION = [
    Connect(),
    do("query-status"), do("nope"), do("quit", {"x": 1}), oob("query-status"), oob("qmp_capabilities"),
    *all_of("qmp_capabilities", {"enable": ["nope"]}, {"enable": "oob"}, {"enable": [None]}, {"enable": {}}, {"x": 1}),
    raw(b"[]"), raw(b'"qmp_capabilities"'), raw(b'{"execute": "qmp_capabilities"]'), raw(b"}"),
    raw(b'{"arguments": {}}'), raw(b'{"execute": 1}'), raw(b'{"execute": "qmp_capabilities", "arguments": []}'),
    raw(b'{"execute": "qmp_capabilities", "id": [1, {"a": null}], "nope": 2}'),
    do("query-version"),
    do("qmp_capabilities"),
    *all_of("qmp_capabilities", None, {"enable": []}, {"enable": ["oob"]}, {"x": 1}),
]

ENVELOPE = [
    raw(b"[]"), raw(b"1 "), raw(b"null "), raw(b'"x"'), raw(b"{}"), raw(b'{"id": 7}'), raw(b'{"id": {"a": [1.5, null]}}'),
    raw(b'{"execute": "query-name", "execute": "query-name"}'), raw(b'{"execute": "query-name", "nope": 1}'),
    raw(b'{"execute": null, "id": 1}'), raw(b'{"execute": {}, "id": 1}'), raw(b'{"execute": "query-name", "arguments": 1}'),
    raw(b'{"execute": "query-name", "arguments": null, "id": "x"}'), raw(b"{'execute': 'query-name', 'id': 'y'}"),
    raw(b'{"execute": "query-name", "exec-oob": "query-name"}'), raw(b'{"exec-oob": "query-name", "id": 1}'),
    raw(b'{"execute": "query-name", "id": {"execute": "stop"}, "arguments": {}}'),
    raw(b'{"execute": "query-name", "id": 18446744073709551615}'), raw(b'{"execute": "query-name", "id": -1.5e10}'),
    do(""), do("nope"), do("nope", {"x": 1}), do("Query-name"), do("query-name "), do("query_name"), do("query-nam"),
    do("query-statusx"), do("query-events"), do("qmp_Capabilities"),
]

QUERIES = [
    *[do(name, arguments) for name in ("query-version", "query-status", "query-name", "query-migrate", "query-jobs",
                                       "query-commands", "query-fdsets", "query-migrate-capabilities",
                                       "query-dump-guest-memory-capability", "query-dirty-rate", "query-dump",
                                       "query-qmp-schema", "query-migrate-parameters")
      for arguments in (None, {}, {"x": 1}, {"": 1})],
]

STOP_AND_GO = [
    do("stop"), do("query-status"), do("stop"), do("query-status"), do("stop", {"x": 1}),
    do("cont"), do("query-status"), do("cont"), do("cont", {"x": None}), do("query-status"),
    *[do(name) for _ in range(5) for name in ("stop", "cont")],
]

DESCRIPTORS = [
    *all_of("getfd", None, {"fdname": 1}, {"fdname": "a", "x": 1}, {"fdname": "a"}, {"fdname": "1a"}, {"fdname": ""}),
    do("getfd", {"fdname": "1a"}, descriptors=1), do("getfd", {"fdname": "a"}),
    do("getfd", {"fdname": "a"}, descriptors=1), do("getfd", {"fdname": "a"}, descriptors=1),
    do("closefd", {"fdname": "a"}), do("closefd", {"fdname": "a"}), do("closefd", {"fdname": 1}), do("closefd"),
    do("getfd", {"fdname": ""}, descriptors=1), do("closefd", {"fdname": ""}),
    do("getfd", {"fdname": "b c"}, descriptors=1), do("closefd", {"fdname": "b c"}),
    *all_of("closefd", {"fdname": "nope"}, {"fdname": "0"}),

    *all_of("add-fd", None, {"fdset-id": 3}, {"fdset-id": -1}, {"fdset-id": "a"}, {"fdset-id": 1.5}, {"opaque": 1}),
    do("add-fd", {"fdset-id": -1}, descriptors=1), do("add-fd"), do("query-fdsets"),
    do("add-fd", descriptors=1), do("query-fdsets"),
    do("add-fd", {"fdset-id": 7, "opaque": "seven"}, descriptors=1),
    do("add-fd", {"fdset-id": 3}, descriptors=1), do("add-fd", {"fdset-id": 7, "opaque": "again"}, descriptors=1),
    do("query-fdsets"), do("add-fd", {"opaque": "free number"}, descriptors=1), do("query-fdsets"),
    *all_of("remove-fd", {"fdset-id": 3, "fd": 100000}, {"fdset-id": 9}, {"fdset-id": -1}, {"fdset-id": "3"}, {"fd": 1},
            {"fdset-id": 3, "x": 1}, {"fdset-id": 9, "fd": 1}),
    *all_of("remove-fd", {"fdset-id": 3}, {"fdset-id": 3}), do("query-fdsets"),
    *all_of("remove-fd", {"fdset-id": 7}, {"fdset-id": 0}, {"fdset-id": 1}), do("query-fdsets"),
    # One is enough: what comes with it, or was not used before, is closed.
    do("getfd", {"fdname": "first"}, descriptors=2), do("getfd", {"fdname": "second"}),
    do("closefd", {"fdname": "first"}), do("closefd", {"fdname": "second"}),
    do("getfd", {"fdname": 1}, descriptors=1), do("getfd", {"fdname": "later"}), do("closefd", {"fdname": "later"}),
    do("query-name", descriptors=1), do("getfd", {"fdname": "x"}, descriptors=1), do("getfd", {"fdname": "y"}),
]

JOBS = [
    *[do(name, arguments) for name in ("job-cancel", "job-pause", "job-resume", "job-dismiss")
      for arguments in (None, {}, {"id": "nope"}, {"id": ""}, {"id": 1}, {"id": "nope", "x": 1})],
    do("job-finalize", {"id": "nope"}), do("job-complete", {"id": "nope"}),
    # One that fails …
    each(("snapshot-delete", {"job-id": "j", "tag": "t", "devices": ["nope"]}),
         ("snapshot-delete", {"job-id": "j", "path": "DIR/nope"}),
         until=[("JOB_STATUS_CHANGE", {"id": "j", "status": "concluded"})]),
    do("query-jobs"),
    each(("snapshot-delete", {"job-id": "j", "tag": "t", "devices": ["nope"]}),
         ("snapshot-delete", {"job-id": "j", "path": "DIR/nope"})),
    *[do(name, {"id": "j"}) for name in ("job-cancel", "job-pause", "job-resume")],
    do("job-dismiss", {"id": "j"}), do("job-dismiss", {"id": "j"}), do("query-jobs"),
    # … and one that succeeds.
    each(("blockdev-create", {"job-id": "j2", "options": {"driver": "file", "filename": "DIR/disk", "size": 1 << 20}}),
         ("snapshot-save", {"job-id": "j2", "path": "DIR/image"}),
         until=[("JOB_STATUS_CHANGE", {"id": "j2", "status": "concluded"})]),
    do("query-jobs"), do("job-cancel", {"id": "j2"}), do("job-dismiss", {"id": "j2"}), do("query-jobs"),
    # Names.
    *[each(("snapshot-delete", {"job-id": ident, "tag": "t", "devices": ["nope"]}),
           ("snapshot-delete", {"job-id": ident, "path": "DIR/nope"}))
      for ident in ("", "1a", "-a", "a b", "a/b", "\u00e4", "a:")],
    each(("snapshot-delete", {"job-id": "A-._9", "tag": "t", "devices": ["nope"]}),
         ("snapshot-delete", {"job-id": "A-._9", "path": "DIR/nope"}),
         until=[("JOB_STATUS_CHANGE", {"status": "concluded"})]),
    do("job-dismiss", {"id": "A-._9"}),
    do("snapshot-save", {"job-id": "x"}), do("snapshot-load", {}), do("snapshot-delete", {"job-id": "x"}),
]

DIRTY_RATE = [
    do("query-dirty-rate"),
    *all_of("calc-dirty-rate", None, {"calc-time": "1"}, {"calc-time": 0}, {"calc-time": -1}, {"calc-time": 61},
            {"calc-time": 1, "sample-pages": 127}, {"calc-time": 1, "sample-pages": 16385},
            {"calc-time": 1, "mode": "nope"}, {"calc-time": 1, "sample-pages": 512, "mode": "dirty-ring"},
            {"calc-time": 1, "x": 1}),
    do("query-dirty-rate"),
    # A moment: QEMU's thread begins after the answer, and is not safe from a second command before.
    do("calc-dirty-rate", {"calc-time": 3, "sample-pages": 16384}), do("query-dirty-rate", after=0.3),
    do("calc-dirty-rate", {"calc-time": 1}), do("calc-dirty-rate", {"calc-time": 0}),
]

DUMP = [
    do("query-dump"),
    *all_of("dump-guest-memory", None, {"paging": False}, {"protocol": "file:DIR/core"}, dump(""), dump("nope:1"), dump("DIR/x"),
            dump("file:/nowhere/x"), dump("file:"), dump("fd:nope"), dump("fd:"), dump("file:DIR"),
            dump("file:/nowhere/x", begin=0), dump("file:/nowhere/x", length=1), dump("file:/nowhere/x", format="nope"),
            dump("file:/nowhere/x", begin=0, length=0), dump("file:/nowhere/x", format="kdump-lzo"),
            dump("file:/nowhere/x", format="kdump-snappy"), dump("file:/nowhere/x", format="kdump-zlib"),
            dump("file:/nowhere/x", format="win-dmp"), dump("file:/nowhere/x", format="elf"),
            dump("file:/nowhere/x", paging=True), dump("file:/nowhere/x", paging=True, format="kdump-zlib"),
            dump("file:/nowhere/x", begin=0, length=1, format="win-dmp")),
    do("query-dump"),
    do("dump-guest-memory", dump("file:DIR/core")), do("query-dump"), do("query-status"),
    do("getfd", {"fdname": "core"}, descriptors=1), do("dump-guest-memory", dump("fd:core")),
    do("closefd", {"fdname": "core"}),
    do("dump-guest-memory", dump("file:DIR/core", detach=True), keep=True),
    do("dump-guest-memory", dump("file:DIR/core"), keep=True, meanwhile="There is a dump in process"),
    do("dump-guest-memory", dump("nope:1"), keep=True, meanwhile="There is a dump in process"),
    do("query-name", until=[("DUMP_COMPLETED", {}), ("RESUME", {})]), do("query-dump"), do("query-status"),
    do("dump-guest-memory", dump("file:/dev/fdset/5")),
    do("add-fd", {"fdset-id": 5}, descriptors=1), do("dump-guest-memory", dump("file:/dev/fdset/5")),
    do("remove-fd", {"fdset-id": 5}),
    do("query-dirty-rate", after=3),  # it was measured meanwhile
]

SET = "migrate-set-capabilities"
PARAMETERS = "migrate-set-parameters"
NOT_WITH_SNAPSHOTS = ["postcopy_ram", "dirty_bitmaps", "postcopy_blocktime", "late_block_activate", "return_path", "multifd",
                      "pause_before_switchover", "auto_converge", "release_ram", "rdma_pin_all", "compress", "xbzrle",
                      "x_colo", "validate_uuid"]
MIGRATION = [
    do("migrate_cancel"), do("migrate_cancel", {"x": 1}),
    *all_of(SET, None, {}, {"capabilities": 1}, {"capabilities": [1]}, {"capabilities": []}, {"capabilities": [{}]},
            {"capabilities": [{"capability": "nope", "state": True}]}, {"capabilities": [{"capability": "events"}]},
            {"capabilities": [{"capability": "events", "state": 1}]}, capabilities(events=True), capabilities(events=False),
            capabilities(multifd=False, xbzrle=False), capabilities(multifd=True), capabilities(xbzrle=True),
            capabilities(multifd=False, xbzrle=False), capabilities(background_snapshot=True, multifd=True),
            capabilities(background_snapshot=True, postcopy_ram=True), capabilities(background_snapshot=True, xbzrle=True),
            # Of several that do not go with a snapshot, the first in an order of QEMU's own is named.
            *[capabilities(background_snapshot=True, **dict.fromkeys(NOT_WITH_SNAPSHOTS[first:][::-1], True))
              for first in range(len(NOT_WITH_SNAPSHOTS))]),
    do("query-migrate-capabilities"),
    do("migrate-start-postcopy"), do("migrate-start-postcopy", {"x": 1}),
    *all_of(SET, capabilities(postcopy_preempt=True), capabilities(postcopy_preempt=True, postcopy_ram=True),
            capabilities(postcopy_ram=False), capabilities(background_snapshot=True)),
    do("migrate-start-postcopy"),
    do(SET, capabilities(postcopy_ram=False, postcopy_preempt=False)), do("migrate-start-postcopy"),
    *all_of(SET, capabilities(multifd=True, auto_converge=True, return_path=True, pause_before_switchover=True)),
    do("query-migrate-capabilities"),
    *all_of(SET, capabilities(multifd=False, auto_converge=False, return_path=False, pause_before_switchover=False)),
    *all_of("migrate-continue", None, {"state": 1}, {"state": "nope"}, {"state": "active"}, {"state": "pre-switchover"},
            {"state": "pre-switchover", "x": 1}),
    do("migrate-pause"), do("migrate-pause", {"x": 1}), *all_of("migrate-recover", None, {"uri": 1}, {"uri": "tcp:0:0"}),
    *all_of("migrate-incoming", None, {"uri": 1}, {"uri": "x", "x": 1}, {"uri": "tcp:0:0"}, {"uri": "nope:1"}, {"uri": ""}),
    do("query-vcpu-dirty-limit"), do("query-vcpu-dirty-limit", {"x": 1}),
    *all_of("set-vcpu-dirty-limit", None, {"dirty-rate": "1"}, {"dirty-rate": 1.5}, {"dirty-rate": 1, "x": 1},
            {"dirty-rate": 1, "cpu-index": "0"}, {"dirty-rate": 10}),
    *all_of("cancel-vcpu-dirty-limit", None, {"cpu-index": 7}, {"x": 1}), do("query-vcpu-dirty-limit"),
    *all_of(PARAMETERS, None, {}, {"x": 1}, {"max-bandwidth": "1"}, {"max-bandwidth": -1}, {"max-bandwidth": 1 << 62},
            {"max-bandwidth": (1 << 64) - 1}, {"max-bandwidth": 1 << 64}, {"downtime-limit": 2000001},
            {"downtime-limit": 2000000}, {"downtime-limit": -1}, {"downtime-limit": 0}, {"multifd-channels": 0},
            {"multifd-channels": 4}, {"multifd-channels": 9}, {"multifd-channels": 256}, {"multifd-channels": 2},
            *[{name: value} for name in ("cpu-throttle-initial", "cpu-throttle-increment") for value in (0, 100, 30)],
            {"max-cpu-throttle": 29}, {"cpu-throttle-initial": 50, "max-cpu-throttle": 40}, {"max-cpu-throttle": 60},
            {"cpu-throttle-initial": 61}, {"throttle-trigger-threshold": 50}, {"multifd-compression": "zlib"},
            {"multifd-compression": "zstd"}, {"multifd-zstd-level": 20}, {"multifd-zstd-level": 19},
            {"max-postcopy-bandwidth": 1 << 20}, {"max-postcopy-bandwidth": -1}, {"max-postcopy-bandwidth": 0},
            {"cpu-throttle-initial": 20, "cpu-throttle-increment": 10, "max-cpu-throttle": 99,
             "multifd-compression": "none", "multifd-zstd-level": 1}, {"compress-level": 11}, {"tls-creds": 1},
            {"tls-creds": None}, {"max-cpu-throttle": 100}, {"multifd-compression": "nope"},
            {"max-bandwidth": 1 << 30, "downtime-limit": 300}),
    do("query-migrate-parameters"),
    *all_of("migrate", None, {}, {"uri": 1}, {"uri": "nope:1"}, {"uri": ""}, {"uri": "x", "x": 1}, {"uri": "fd:nope"},
            {"uri": "exec:true", "resume": True}),
    do("query-migrate"),
    do(SET, capabilities(background_snapshot=True, events=True)), do("query-migrate-capabilities"),
    *all_of("migrate", {"uri": "nope:1"}, {"uri": ""}, {"uri": "fd:nope"}, {"uri": "fd:"}, {"uri": "exec:true", "resume": True}),
    do("query-migrate"),

    do("migrate", {"uri": "exec:cat >/dev/null"}, until=[("MIGRATION", {"status": "completed"})]),
    do("query-migrate"), do("query-status"), do("migrate_cancel"), do("query-migrate"),
    # A moment: QEMU cleans up after it has said that it is complete.
    do("getfd", {"fdname": "out"}, descriptors=1, after=0.3),
    do("migrate", {"uri": "fd:out"}, until=[("MIGRATION", {"status": "completed"})]),
    do("query-migrate"), do("closefd", {"fdname": "out"}),

    # One that takes its time. It is not cancelled: after a snapshot that was, or that failed, QEMU 7.2 hangs in whatever
    # stops its guest, quit too. That is left to background-snapshot.py.
    do("migrate", {"uri": "exec:cat DIR/gate; cat >/dev/null"}, until=[("RESUME", {})], after=0.3),
    do("query-migrate"), do("migrate", {"uri": "exec:true"}), do("migrate", {"uri": "nope:1"}),
    do("migrate-continue", {"state": "pre-switchover"}), do("migrate-start-postcopy"), do("migrate-pause"),
    do("migrate", {"uri": "exec:true", "resume": True}),
    do(SET, capabilities(background_snapshot=False)), do(SET, capabilities(background_snapshot=True)),
    do(PARAMETERS, {"max-bandwidth": 1 << 29}), do("query-status"),
    do("query-name", opens=True, until=[("MIGRATION", {"status": "completed"})]),
    do("query-migrate"), do("query-status"),
    do(SET, capabilities(background_snapshot=False, events=False)), do("query-migrate-capabilities"),
]

OTHERS = [do("query-block"), do("query-cpus-fast"), do("query-balloon"),
          do("human-monitor-command", {"command-line": "info status"})]

OUT_OF_BAND = [
    *[oob(name) for name in ("query-status", "nope", "qmp_capabilities", "migrate-pause", "query-version")],
    do("getfd", {"fdname": "kept"}, descriptors=1),
    Connect(),
    do("qmp_capabilities", {"enable": ["oob", "oob"]}),
    do("closefd", {"fdname": "kept"}),
    *[oob(name, arguments) for name in ("query-status", "nope", "", "qmp_capabilities", "query-version", "stop", "migrate")
      for arguments in (None, {"x": 1})],
    do("migrate-pause"), oob("migrate-pause"), oob("migrate-recover", {"uri": "x"}), oob("migrate-incoming", {"uri": "x"}),
    oob("migrate-continue", {"state": "active"}),
    raw(b'{"exec-oob": "query-status", "execute": "query-status"}'), raw(b'{"execute": "query-name", "exec-oob": 1}'),
    raw(b'{"exec-oob": 1, "id": 1}'), raw(b'{"exec-oob": "query-status"}'), raw(b'{"exec-oob": "query-status", "nope": 1}'),
    raw(b'{"exec-oob": "query-status", "arguments": 1}'), raw(b"[]"), raw(b"{]"), raw(b"}"),
    do("qmp_capabilities"), do("query-status"), do("stop"), do("cont"),
]

END = [
    Connect(), do("qmp_capabilities", {"enable": []}), oob("query-status"), do("query-status"),
    do("quit", {"x": 1}), do("quit", until=[("SHUTDOWN", {})]),
]

STEPS = [*NEGOTIATION, *ENVELOPE, *QUERIES, *STOP_AND_GO, *DESCRIPTORS, *JOBS, *DIRTY_RATE, *DUMP, *MIGRATION, *OTHERS,
         *OUT_OF_BAND, *END]
