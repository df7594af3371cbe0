"""A worker that is another one's way to the supervisor: it passes bytes on, and at SIGUSR1 cuts every connection.

Run: `python cutting_proxy.py COMMAND...`, which finds the proxy's socket in its environment. SO_PEERCRED names this
process, which is the worker; the command's exit code becomes its own.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path

REAL = os.environ["SCRAPER_WORKER_SOCKET"]
OWN = str(Path(os.environ["TMPDIR"]) / "proxy.sock")


class Proxy:
    """All connections between the command and the supervisor."""

    def __init__(self, wake):
        self.wake = wake
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(OWN)
        self.listener.listen(16)
        self.wanted = selectors.DefaultSelector()
        for one in (wake, self.listener):
            self.wanted.register(one, selectors.EVENT_READ)
        self.partner = {}

    def turn(self, child):
        """Wait for something, and pass it on."""
        for key, _ in self.wanted.select():
            if key.fileobj is self.wake:
                for number in self.wake.recv(64):
                    self.signalled(number, child)
            elif key.fileobj is self.listener:
                self.join(self.listener.accept()[0])
            elif key.fileobj in self.partner:
                self.pass_on(key.fileobj)

    def signalled(self, number, child):
        if number == signal.SIGTERM:
            child.terminate()
        elif number == signal.SIGUSR1:
            with (Path(os.environ["E2E_FOLDER"]) / "trace").open("a") as trace:
                trace.write(f"cut {len(self.partner) // 2}\n")
            while self.partner:
                self.cut(next(iter(self.partner)))

    def join(self, near):
        far = socket.socket(socket.AF_UNIX)
        far.connect(REAL)
        self.partner.update({near: far, far: near})
        for one in (near, far):
            self.wanted.register(one, selectors.EVENT_READ)

    def pass_on(self, one):
        data = one.recv(65536)
        if data:
            self.partner[one].sendall(data)
        else:
            self.cut(one)

    def cut(self, one):
        for end in (one, self.partner.pop(one)):
            self.partner.pop(end, None)
            self.wanted.unregister(end)
            end.close()


def main():
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno())
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    proxy = Proxy(wake_read)
    child = subprocess.Popen(sys.argv[1:], env={**os.environ, "SCRAPER_WORKER_SOCKET": OWN})
    while child.poll() is None:
        proxy.turn(child)
    sys.exit(child.returncode if child.returncode >= 0 else 1)


main()
