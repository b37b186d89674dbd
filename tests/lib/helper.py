"""The helper as vmsnap --connect finds it.

    with Helper(build, folder) as helper:
        helper.run("save", "--pid", pid, image)     vmsnap --connect, as subprocess.run
        helper.qmp.command("query-targets")
"""
import badday
import qmpd


class Helper(qmpd.Vmsnapd):
    """@qmp: a client of our own. What the helper complains about fails the test at the end."""

    def __init__(self, build, folder, *options):
        self.qmp = None
        super().__init__(build, folder, *options)
        self.qmp = self.client()

    def run(self, *arguments, **options):
        return badday.vmsnap(self.build, "--connect", self.path, *arguments, **options)

    def check_idle(self):
        """No guests, no jobs."""
        assert self.qmp.command("query-targets") == [], self.qmp.command("query-targets")
        assert self.qmp.command("query-jobs") == [], self.qmp.command("query-jobs")

    def close(self):
        if self.qmp:
            self.qmp.close()
        super().close()
