#!/usr/bin/env python3
"""Our validation of arguments against that of a real QEMU 7.2: the same arguments, the same complaints.

    validate-qemu.py VALIDATE-CHECK [WORD...]

VALIDATE-CHECK knows copies of some of QEMU's commands (tests/unit/schema/qemu-commands.json). A table has arguments and
the complaint; then come valid arguments with anything in them replaced, taken out or added, and unexpected ones with
names by chance. Where we find arguments valid QEMU must not complain about their form: whether it likes them is another
question.
"""
import copy
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import cases  # noqa: E402
import qemu  # noqa: E402

SEED = 1
N_UNEXPECTED = 300

# What QEMU says about the form of arguments; what else it says is about what they mean.
FORM = re.compile(r"Invalid parameter type for '|Parameter '[^']*' (is missing|is unexpected|does not accept value '"
                  r"|expects u?int(64|8_t|16_t|32_t)$)")

CAPABILITY = {"capability": "xbzrle", "state": True}
KEY = {"type": "qcode", "data": "a"}
TABLE = [
    ("migrate-set-capabilities", {"capabilities": []}, None),
    ("migrate-set-capabilities", {"capabilities": [CAPABILITY, CAPABILITY]}, None),
    ("migrate-set-capabilities", {}, "Parameter 'capabilities' is missing"),
    ("migrate-set-capabilities", {"x": 1}, "Parameter 'capabilities' is missing"),
    ("migrate-set-capabilities", {"capabilities": [], "x": None}, "Parameter 'x' is unexpected"),
    ("migrate-set-capabilities", {"capabilities": [], "": 1}, "Parameter '' is unexpected"),
    ("migrate-set-capabilities", {"capabilities": [], "a\0b": 1}, "Parameter 'a\0b' is unexpected"),
    ("migrate-set-capabilities", {"capabilities": None},
     "Invalid parameter type for 'capabilities', expected: array"),
    ("migrate-set-capabilities", {"capabilities": CAPABILITY},
     "Invalid parameter type for 'capabilities', expected: array"),
    ("migrate-set-capabilities", {"capabilities": [1]},
     "Invalid parameter type for 'capabilities[0]', expected: object"),
    ("migrate-set-capabilities", {"capabilities": [{}]}, "Parameter 'capabilities[0].capability' is missing"),
    ("migrate-set-capabilities", {"capabilities": [CAPABILITY, {"capability": "xbzrle"}]},
     "Parameter 'capabilities[1].state' is missing"),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": 1}]},
     "Invalid parameter type for 'capabilities[0].state', expected: boolean"),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "x", "state": 1}]},
     "Parameter 'capability' does not accept value 'x'"),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "XBZRLE", "state": True}]},
     "Parameter 'capability' does not accept value 'XBZRLE'"),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle\0", "state": True}]},
     "Parameter 'capability' does not accept value 'xbzrle\0'"),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "é", "state": True}]},
     "Parameter 'capability' does not accept value 'é'"),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": True, "y": 1}]},
     "Parameter 'capabilities[0].y' is unexpected"),
    ("migrate-set-parameters", {}, None),
    ("migrate-set-parameters", {"max-bandwidth": 0}, None),
    ("migrate-set-parameters", {"max-bandwidth": -1}, None),
    ("migrate-set-parameters", {"max-bandwidth": 2**64 - 1}, None),
    ("migrate-set-parameters", {"max-bandwidth": 2**64}, "Parameter 'max-bandwidth' expects uint64"),
    ("migrate-set-parameters", {"max-bandwidth": -2**63 - 1}, "Parameter 'max-bandwidth' expects uint64"),
    ("migrate-set-parameters", {"max-bandwidth": "1"}, "Parameter 'max-bandwidth' expects uint64"),
    ("migrate-set-parameters", {"max-bandwidth": 1e3}, "Parameter 'max-bandwidth' expects uint64"),
    ("migrate-set-parameters", {"max-bandwidth": None}, "Parameter 'max-bandwidth' expects uint64"),
    ("migrate-set-parameters", {"compress-level": 256}, "Parameter 'compress-level' expects uint8_t"),
    ("migrate-set-parameters", {"compress-level": -1}, "Parameter 'compress-level' expects uint8_t"),
    ("migrate-set-parameters", {"compress-level": 1.0}, "Parameter 'compress-level' expects uint64"),
    ("migrate-set-parameters", {"x-checkpoint-delay": 2**32}, "Parameter 'x-checkpoint-delay' expects uint32_t"),
    ("migrate-set-parameters", {"tls-creds": None}, None),
    ("migrate-set-parameters", {"tls-creds": ""}, None),
    ("migrate-set-parameters", {"tls-creds": {"a": 1}}, "Invalid parameter type for 'tls-creds', expected: StrOrNull"),
    ("migrate-set-parameters", {"multifd-compression": "x"},
     "Parameter 'multifd-compression' does not accept value 'x'"),
    ("migrate-set-parameters", {"multifd-compression": None},
     "Invalid parameter type for 'multifd-compression', expected: string"),
    ("migrate-set-parameters", {"cpu-throttle-tailslow": 1, "announce-initial": "x"},
     "Parameter 'announce-initial' expects uint64"),
    ("migrate-set-parameters", {"block-bitmap-mapping": [{"node-name": "a", "alias": "b", "bitmaps": [
        {"name": "x", "alias": "y", "transform": {"persistent": 1}}]}]},
     "Invalid parameter type for 'block-bitmap-mapping[0].bitmaps[0].transform.persistent', expected: boolean"),
    ("qmp_capabilities", {"enable": ["x"]}, "Parameter 'null' does not accept value 'x'"),
    ("qmp_capabilities", {"enable": [1]}, "Invalid parameter type for 'enable[0]', expected: string"),
    ("human-monitor-command", {"command-line": "info name", "cpu-index": 2**63},
     "Invalid parameter type for 'cpu-index', expected: integer"),
    ("human-monitor-command", {"command-line": "info name", "cpu-index": 1.0},
     "Invalid parameter type for 'cpu-index', expected: integer"),
    ("human-monitor-command", {"command-line": 1}, "Invalid parameter type for 'command-line', expected: string"),
    ("send-key", {"keys": [KEY]}, None),
    ("send-key", {"keys": [{"type": "nope"}]}, "Parameter 'type' does not accept value 'nope'"),
    ("send-key", {"keys": [{"data": "a"}]}, "Parameter 'keys[0].type' is missing"),
    ("send-key", {"keys": [{"type": "number"}]}, "Parameter 'keys[0].data' is missing"),
    ("send-key", {"keys": [{"type": "number", "data": "a"}]},
     "Invalid parameter type for 'keys[0].data', expected: integer"),
    ("send-key", {"keys": [{**KEY, "x": 1}]}, "Parameter 'keys[0].x' is unexpected"),
    ("input-send-event", {"events": [{"type": "key", "data": {"down": 1, "key": KEY}}]},
     "Invalid parameter type for 'events[0].data.down', expected: boolean"),
    ("input-send-event", {"events": [{"type": "key", "data": {"down": True, "key": {"type": "qcode", "data": "?"}}}]},
     "Parameter 'data' does not accept value '?'"),
    ("block-dirty-bitmap-merge", {"node": "a", "target": "b", "bitmaps": ["c", None]},
     "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr"),
    ("block-dirty-bitmap-merge", {"node": "a", "target": "b", "bitmaps": ["c", {"node": "d"}]},
     "Parameter 'bitmaps[1].name' is missing"),
    ("block-dirty-bitmap-merge", {"node": "a", "target": "b", "bitmaps": [{"node": "d", "name": "e", "f": 1}]},
     "Parameter 'bitmaps[0].f' is unexpected"),
    ("query-stats", {"target": "vm", "vcpus": []}, "Parameter 'vcpus' is unexpected"),
    ("query-stats", {"target": "vcpu", "vcpus": ["a", 1]},
     "Invalid parameter type for 'vcpus[1]', expected: string"),
    ("set-numa-node", {"type": "node", "nodeid": 65536}, "Parameter 'nodeid' expects uint16_t"),
    ("set-numa-node", {"type": "node", "cpus": [65536]}, "Parameter 'null' expects uint16_t"),
    ("set-numa-node", {"type": "node", "cpus": [1, "x"]}, "Parameter 'cpus[1]' expects uint64"),
    ("qom-set", {"path": "/machine", "property": "x"}, "Parameter 'value' is missing"),
    ("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": "x", "backing": 1},
     "Invalid parameter type for 'backing', expected: BlockdevRefOrNull"),
    ("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": None},
     "Invalid parameter type for 'file', expected: BlockdevRef"),
    ("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": {"driver": "file"}},
     "Parameter 'file.filename' is missing"),
    ("blockdev-add", {"driver": "qcow2", "node-name": "a", "file": {"driver": "nope"}},
     "Parameter 'driver' does not accept value 'nope'"),
    ("blockdev-add", {"driver": "nope", "y": 1}, "Parameter 'driver' does not accept value 'nope'"),
    ("blockdev-add", {"y": 1}, "Parameter 'driver' is missing"),
]

# Valid arguments, in which something is changed.
VALID = [
    ("migrate-set-capabilities", {"capabilities": [CAPABILITY, {"capability": "events", "state": False}]}),
    ("migrate-set-parameters", {
        "announce-initial": 1, "compress-level": 1, "compress-wait-thread": True, "tls-creds": "x",
        "downtime-limit": 1, "x-checkpoint-delay": 1, "multifd-compression": "zlib", "multifd-zlib-level": 2,
        "block-bitmap-mapping": [{"node-name": "a", "alias": "b", "bitmaps": [
            {"name": "x", "alias": "y", "transform": {"persistent": True}}]}]}),
    ("qmp_capabilities", {"enable": ["oob"]}),
    ("human-monitor-command", {"command-line": "info name", "cpu-index": 1}),
    ("send-key", {"keys": [KEY, {"type": "number", "data": 30}], "hold-time": 1}),
    ("input-send-event", {"device": "x", "head": 1, "events": [
        {"type": "key", "data": {"down": True, "key": KEY}}, {"type": "abs", "data": {"axis": "x", "value": 1}}]}),
    ("block-dirty-bitmap-merge", {"node": "a", "target": "b", "bitmaps": ["c", {"node": "d", "name": "e"}]}),
    ("query-stats", {"target": "vcpu", "vcpus": ["a"], "providers": [{"provider": "kvm", "names": ["x"]}]}),
    ("set-numa-node", {"type": "node", "nodeid": 1, "cpus": [1], "mem": 1, "memdev": "x", "initiator": 1}),
    ("set-numa-node", {"type": "dist", "src": 1, "dst": 2, "val": 20}),
    ("qom-set", {"path": "/machine", "property": "x", "value": {"a": [None]}}),
    ("blockdev-add", {"driver": "qcow2", "node-name": "a", "read-only": True, "cache": {"direct": True},
                      "lazy-refcounts": True, "overlap-check": {"template": "all", "main-header": True},
                      "backing": None, "file": {"driver": "file", "filename": "/nonexistent/x"}}),
]
VALUES = [None, True, -1, 0, 1, 255, 256, 65536, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -2**63, -2**63 - 1,
          1.0, 1e300, "", "nope", "a\0b", [], [[]], [1], ["x"], [None], {}, {"x": 1}, {"type": "key"},
          {"driver": "file"}]
TAKEN_OUT = object()


# ---- the two sides -------------------------------------------------------------------------------------------

def ours(requests):
    """Of each request the complaint, or None."""
    lines = "".join(f"{command} {json.dumps(arguments)}\n" for command, arguments in requests)
    result = subprocess.run([sys.argv[1]], input=lines, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(requests), f"{len(requests)} requests, {len(answers)} answers"
    return answers


def qemus(requests):
    """Of each request what QEMU answers as an error, or None."""
    if not shutil.which("qemu-system-x86_64"):
        raise cases.Skip("skip: qemu-system-x86_64 is missing")
    with qemu.Qemu(["-S", "-machine", "none", "-nodefaults", "-display", "none"]) as guest:
        version = guest.qmp.command("query-version")["qemu"]
        if (version["major"], version["minor"]) != (7, 2):
            raise cases.Skip("skip: the complaints are those of QEMU 7.2")
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(60)
            monitor.connect(guest.sockets[0])
            file = monitor.makefile("rwb")
            file.readline()
            return [ask(file, *request) for request in [("qmp_capabilities", {}), *requests]][1:]


def ask(file, command, arguments):
    file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    file.flush()
    while True:
        answer = json.loads(file.readline())
        if "event" not in answer:
            return answer.get("error", {}).get("desc")


def differences(requests, wanted, got):
    lines = [f"{command} {json.dumps(arguments)}: {found!r}, should be {right!r}"
             for (command, arguments), right, found in zip(requests, wanted, got) if right != found]
    assert not lines, f"{len(lines)} of {len(requests)} differ:\n" + "\n".join(lines[:20])


def compare(requests):
    complaints = [text if text and FORM.match(text) else None for text in qemus(requests)]
    differences(requests, complaints, ours(requests))
    print(f"{len(requests)} requests, {sum(1 for text in complaints if text)} complaints")


# ---- requests ------------------------------------------------------------------------------------------------

def places(value, way=()):
    """The ways to all that is in a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*way, key)
        yield from places(part, (*way, key))


def changed(value, way, replacement):
    """A copy with something else at the end of the way; the same where what is there has no such part."""
    result = copy.deepcopy(value)
    container = result
    for key in way[:-1]:
        container = container[key]
    if replacement is TAKEN_OUT:
        del container[way[-1]]
    elif isinstance(container, dict) or (isinstance(container, list) and isinstance(way[-1], int)):
        container[way[-1]] = replacement
    return result


def mutations(arguments):
    for way in places(arguments):
        for value in VALUES:
            yield changed(arguments, way, value)
        yield changed(arguments, way, TAKEN_OUT)
        yield changed(arguments, (*way, "x"), 1)
    yield changed(arguments, ("x",), 1)


# ---- cases ---------------------------------------------------------------------------------------------------

def complaint_in_the_table_is_ours(_folder):
    requests = [(command, arguments) for command, arguments, _ in TABLE]
    differences(requests, [complaint for _, _, complaint in TABLE], ours(requests))


def complaint_in_the_table_is_qemus(_folder):
    requests = [(command, arguments) for command, arguments, _ in TABLE]
    differences(requests, [complaint for _, _, complaint in TABLE], qemus(requests))


def arguments_with_one_change_get_the_same_complaint(_folder):
    compare([(command, mutation) for command, arguments in VALID for mutation in mutations(arguments)])


def members_unexpected_get_the_same_complaint(_folder):
    """Which of several is named."""
    chance = random.Random(SEED)
    requests = []
    for _ in range(N_UNEXPECTED):
        names = ["".join(chance.choices("abcdefghijklmnop-", k=chance.randint(1, 12)))
                 for _ in range(chance.choice([2, 3, 5, 8, 20, 50]))]
        members = [*((name, 1) for name in dict.fromkeys(names)), *CAPABILITY.items()]
        chance.shuffle(members)
        requests.append(("migrate-set-capabilities", {"capabilities": [dict(members)]}))
        requests.append(("send-key", {**dict(members), "keys": [KEY]}))
    compare(requests)


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
