"""A daemon whose workers note what was acknowledged, for faults of the disk."""

import sys
from pathlib import Path

from harness import PATIENCE

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import crash

WORKERS = 3
STATE = {"schema": "s/1", "state": {"page": 1}}


class Rig:
    """A daemon whose workers note what was acknowledged; more groups may stand beside them."""

    def __init__(self, daemon, groups=None, **settings):
        self.daemon = daemon
        self.audit = crash.Audit(daemon.folder)
        env = {"CRASH_FOLDER": str(daemon.folder), "CRASH_PAUSE": "0.005"}
        group = {
            "command": [sys.executable, "-S", "-E", str(crash.WORKER)],
            "count": WORKERS,
            "env": env,
            # Short enough to strike during a fault, if its clocks did not stand still.
            "item_timeout": "2s",
            "progress_timeout": "2s",
            "stop_timeout": "2s",
            "restart_policy": {"max_restarts": 0},
        }
        daemon.configure(
            {
                "workers": {crash.GROUP: group, **(groups or {})},
                "retry": {"default": {"base_delay": 0.02, "max_delay": 0.05, "jitter": "none"}},
                "resources": {"disk_free": 0, "sample_interval": "100ms"},
                "checkpoint": {"retention": crash.RETENTION},
                "abort": {"enabled": False},
                **settings,
            }
        )

    def start(self):
        self.daemon.start()
        self.works()
        return self

    def works(self):
        """Wait until more is acknowledged."""
        self.audit.read()
        before = self.audit.counts["done"] + 20
        self.more("done", before)

    def more(self, what, number):
        self.daemon.wait(lambda: self.audit.read() and self.audit.counts[what] >= number, f"{number} {what}")

    def refused(self):
        """Wait until the workers were refused for longer than their clocks allow."""
        self.audit.read()
        self.more("refused", self.audit.counts["refused"] + 4 * WORKERS)

    def degraded(self, *words):
        """Wait until `status` says so, and with these words why."""

        def said():
            supervisor = self.daemon.status()["supervisor"]
            return supervisor["state"] == "degraded" and all(word in supervisor["reason"] for word in words)

        self.daemon.wait(said, f"degraded, with {words}: {self.daemon.status()['supervisor']}")

    def healed(self, timeout=PATIENCE):
        self.daemon.wait(lambda: self.daemon.status()["supervisor"]["state"] == "running", "it runs", timeout)
        assert self.daemon.status()["supervisor"]["reason"] is None

    def finish(self):
        """Everything that was offered is ended, once, and nothing acknowledged is missing."""
        (self.daemon.folder / "enough").touch()
        try:
            self.daemon.wait(lambda: self.daemon.group(crash.GROUP)["state"] == "completed", "all is done")
        except AssertionError as error:
            error.add_note(f"{self.daemon.group(crash.GROUP)} {self.daemon.status()['workers']} {self.audit.counts}")
            raise
        self.audit.read()
        self.audit.compare(everything=True)

    def unharmed(self, pids):
        """No worker was restarted, or even suspected."""
        assert self.daemon.pids() == pids
        assert not self.daemon.events("worker_hung", "worker_exited", "worker_failed")

    def one_incident(self, degraded=1):
        self.daemon.wait_event("storage_recovered")  # the event log is written behind the status
        told = self.daemon.events("storage_degraded", "storage_recovered")
        assert [one["event"] for one in told] == ["storage_degraded"] * degraded + ["storage_recovered"], told
        assert len({one["correlation_id"] for one in told}) == 1
        return told
