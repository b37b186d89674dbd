"""vmsnapd under test, and clients of it that can also misbehave.

    with Vmsnapd(build, folder) as server:
        client = server.client(oob=True)
        client.command("target-add", id="g", driver="process", pid=guest.pid)
        client.run_job("snapshot-save", job_id="s", target="g", path="image")
        raw = server.connect()          not negotiated: send() bytes, read() messages

Every warning of the helper is fatal to it (G_DEBUG), and at the end of the with statement it must be there, end by
SIGTERM with status 0, and have said nothing on standard error.
"""
import array
import json
import os
import signal
import socket
import subprocess
import time

import badday
import children

TIMEOUT_S = 60


class Refused(Exception):
    """An error that was the answer: @error has class and desc."""

    def __init__(self, name, error):
        super().__init__(f"{name}: {error['class']}: {error['desc']}")
        self.error = error
        self.desc = error["desc"]


class Closed(Exception):
    """The server has closed the connection."""


class Client:
    """A connection. @events: those that have come; a message without "event" is an answer."""

    def __init__(self, path, timeout=TIMEOUT_S):
        self.events = []
        self._buffer = b""
        self._lines = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.settimeout(timeout)

    # ---- bytes and messages ----

    def send(self, data, fds=()):
        """Bytes, all of them; descriptors with the first."""
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            data = data[self.socket.sendmsg([data], rights):]
        self.socket.sendall(data)

    def read_line(self):
        """The next line, less its end. Errors: Closed; TimeoutError."""
        while not self._lines:
            data = self.socket.recv(1 << 20)
            if not data:
                raise Closed(f"with {self._buffer[:80]!r} in the middle" if self._buffer else "")
            *self._lines, self._buffer = (self._buffer + data).split(b"\r\n")
        return self._lines.pop(0)

    def read(self):
        """The next message, event or not."""
        return json.loads(self.read_line())

    def answer(self):
        """The next message that is no event; events before it are kept."""
        while True:
            message = self.read()
            if "event" not in message:
                return message
            self.events.append(message)

    def request(self, name, arguments=None, oob=False, ident=None, fds=()):
        """Send a request, and do not wait for its answer."""
        message = {"exec-oob" if oob else "execute": name}
        if arguments:
            message["arguments"] = arguments
        if ident is not None:
            message["id"] = ident
        self.send(json.dumps(message).encode() + b"\n", fds)

    # ---- a good client ----

    def negotiate(self, oob=False):
        self.greeting = self.read()
        self.command("qmp_capabilities", **({"enable": ["oob"]} if oob else {}))
        return self

    def command(self, name, *, oob=False, fds=(), **arguments):
        """Arguments with _ for -; None for those that are not given. Return: its result. Errors: Refused."""
        given = {key.replace("_", "-"): value for key, value in arguments.items() if value is not None}
        self.request(name, given, oob, fds=fds)
        answer = self.answer()
        if "error" in answer:
            raise Refused(name, answer["error"])
        return answer["return"]

    def refused(self, name, *words, **arguments):
        """A command that must fail with an error that has WORDS. Return: the error."""
        try:
            result = self.command(name, **arguments)
        except Refused as refused:
            for word in words:
                assert word in refused.desc, f"no {word!r} in: {refused}"
            return refused.error
        raise AssertionError(f"{name} {arguments} was done: {result}")

    def wait_event(self, name, seconds=TIMEOUT_S, **data):
        """The next event of this name whose data has these members; all before it are forgotten."""
        end = time.monotonic() + seconds
        while True:
            while self.events:
                event = self.events.pop(0)
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return event
            assert time.monotonic() < end, f"no event {name} {data} within {seconds} s"
            message = self.read()
            assert "event" in message, f"an answer that nobody waits for: {message}"
            self.events.append(message)

    def wait_job(self, ident, seconds=TIMEOUT_S):
        """Until the job has concluded; dismissed. Return: its JobStatistics."""
        self.wait_event("JOB_STATUS_CHANGE", seconds, id=ident, status="concluded")
        statistics = self.command("query-job-statistics", id=ident)[0]
        self.command("job-dismiss", id=ident)
        return statistics

    def run_job(self, name, job_id="job", **arguments):
        """A job from its start to its end. Return: what it came to. Errors: Refused, also when the job fails."""
        self.command(name, job_id=job_id, **arguments)
        statistics = self.wait_job(job_id)
        if "error" in statistics:
            raise Refused(name, {"class": "job", "desc": statistics["error"]})
        return statistics["result"]

    def job(self, ident):
        """Its JobInfo; None when there is none."""
        return next((job for job in self.command("query-jobs") if job["id"] == ident), None)

    def add_process(self, ident, pid):
        self.command("target-add", id=ident, driver="process", pid=pid)

    def add_qemu(self, ident, path, **options):
        self.command("target-add", id=ident, driver="qemu", qmp_socket=path, **options)

    def is_closed(self, seconds=5):
        """The server has closed it, or does so within SECONDS; what comes before is lost."""
        end = time.monotonic() + seconds
        self.socket.settimeout(seconds)
        try:
            while time.monotonic() < end:
                if not self.socket.recv(1 << 20):
                    return True
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True
        return False

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()


class Vmsnapd(children.Child):
    """The helper, with one socket: FOLDER/qmp, and FOLDER as --snapshot-dir. @options: more of its command line."""

    def __init__(self, build, folder, *options, path=None, prefix=(), **popen):
        self.build, self.folder = build, folder
        self._ended_well = False
        self.path = path or f"{folder}/qmp"
        self._log = open(f"{folder}/vmsnapd.log", "w+b")
        environment = {**os.environ, "G_DEBUG": "fatal-warnings"}
        command = [*prefix, f"{build}/tools/vmsnapd", "--qmp", f"unix:{self.path}", "--snapshot-dir", folder, *options]
        super().__init__(command, stdout=subprocess.DEVNULL, stderr=self._log, env=environment, **popen)
        self._wait_ready()

    def _wait_ready(self):
        def is_ready():
            assert self.process.poll() is None, f"vmsnapd ended: {self.process.returncode}, {self.log()}"
            try:
                self.connect().close()
                return True
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        badday.wait_until(is_ready, 20, "vmsnapd listens")

    def log(self):
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()

    def connect(self, timeout=TIMEOUT_S):
        return Client(self.path, timeout)

    def client(self, oob=False, timeout=TIMEOUT_S):
        """A client that has negotiated."""
        return self.connect(timeout).negotiate(oob)

    # ---- what it looks like from outside ----

    def threads(self):
        """Thread id → name."""
        found = {}
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            try:
                found[int(tid)] = badday.read_proc(self.pid, f"task/{tid}/comm").strip()
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found

    def descriptors(self):
        return badday.descriptors(self.pid)

    def wait_descriptors(self, count, seconds=10):
        """Until it has no more than COUNT of them."""
        badday.wait_until(lambda: len(self.descriptors()) <= count, seconds,
                          f"no more than {count} descriptors: {self.descriptors()}")

    def memory_bytes(self, field="Pss"):
        for line in badday.read_proc(self.pid, "smaps_rollup").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {field} of {self.pid}")

    # ---- its end ----

    def end(self, number=signal.SIGTERM, seconds=20):
        """Send a signal, wait for the end."""
        self.process.send_signal(number)
        self.process.wait(seconds)
        self.check_ended_well(-number if number == signal.SIGKILL else 0)

    def wait_end(self, seconds=20):
        """It ends by itself, as it should."""
        self.process.wait(seconds)
        self.check_ended_well()

    def check_ended_well(self, status=0):
        self._ended_well = self.process.returncode == status and not self.log()
        assert self._ended_well, f"vmsnapd: status {self.process.returncode}, {self.log()[-2000:]}"

    def __exit__(self, kind, _error, _trace):
        try:
            if kind is not None:
                print(f"vmsnapd: status {self.process.poll()}, {self.log()[-2000:]}")
            elif not self._ended_well:
                self.end()
        finally:
            self.close()

    def close(self):
        super().close()
        if not self._log.closed:
            self._log.close()
