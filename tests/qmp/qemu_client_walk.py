"""The part of qemu-client.py that knows QEMU's Python client and nothing of ours: run with PYTHONPATH set to it.

qemu_client_walk.py asyncio|legacy VMSNAPD-SOCKET QEMU-SOCKET IMAGE

Adds the QEMU as a target, saves it, waits by events until the job has concluded, deletes the target. Prints the states
of the job, and what it came to, as one JSON object.
"""
import asyncio
import json
import sys

from qemu.qmp import ExecuteError, QMPClient, legacy

TIMEOUT_S = 60


async def walk(server, guest, image):
    states = []
    client = QMPClient("walk")
    with client.listener(names=["JOB_STATUS_CHANGE"]) as events:
        await client.connect(server)
        await client.execute("target-add", {"id": "vm", "driver": "qemu", "qmp-socket": guest})
        try:
            await client.execute("target-add", {"id": "vm", "driver": "qemu", "qmp-socket": guest})
        except ExecuteError as refused:
            assert "already in use" in str(refused), refused
        # The client gives an id to each command, so that several can be under way.
        status, targets = await asyncio.gather(client.execute("query-status"), client.execute("query-targets"))
        assert status["running"] and targets[0]["id"] == "vm", (status, targets)
        await client.execute("snapshot-save", {"job-id": "walk", "target": "vm", "path": image})
        async for event in events:
            states.append(event["data"]["status"])
            if states[-1] == "concluded":
                break
    statistics = (await client.execute("query-job-statistics", {"id": "walk"}))[0]
    await client.execute("job-dismiss", {"id": "walk"})
    await client.execute("target-del", {"id": "vm"})
    await client.disconnect()
    return states, statistics


def legacy_walk(server, guest, image):
    """The client that scripts of old use, which waits for each answer."""
    states = []
    with legacy.QEMUMonitorProtocol(server) as monitor:
        assert monitor.connect()["QMP"]["version"]["qemu"]["major"] == 7
        monitor.cmd("target-add", {"id": "vm", "driver": "qemu", "qmp-socket": guest})
        monitor.cmd("snapshot-save", {"job-id": "walk", "target": "vm", "path": image})
        while "concluded" not in states:
            event = monitor.pull_event(wait=TIMEOUT_S)
            if event["event"] == "JOB_STATUS_CHANGE":
                states.append(event["data"]["status"])
        statistics = monitor.command("query-job-statistics", id="walk")[0]
        monitor.command("job-dismiss", id="walk")
        monitor.command("target-del", id="vm")
    return states, statistics


if __name__ == "__main__":
    KIND, *PATHS = sys.argv[1:]
    STATES, STATISTICS = (legacy_walk(*PATHS) if KIND == "legacy" else
                          asyncio.run(asyncio.wait_for(walk(*PATHS), TIMEOUT_S)))
    print(json.dumps({"states": STATES, "statistics": STATISTICS}))
