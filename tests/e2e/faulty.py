"""Faults of the disk for a real process: the kernel asks us before each of its syncs and writes, file by file.

Run as a program, it puts itself under a seccomp filter that has these system calls wait for a word from whoever holds
the filter's other end, passes that end on, and executes a command. `Faults` is who holds it: it lets calls through,
has them fail, or makes them slow. The command needs no preparation, and SQLite's calls are asked for like any other.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import sys
import threading
from pathlib import Path

SECCOMP, FSYNC, FDATASYNC, PWRITE = {
    "x86_64": (317, 74, 75, 18),
    "aarch64": (277, 82, 83, 68),
}.get(platform.machine(), (0, 0, 0, 0))
SYNCS = (FSYNC, FDATASYNC)
WRITES = (PWRITE,)  # SQLite's; Python's own files are written by another

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # ioctls
_CONTINUE = 1


def install():
    """Put this process under the filter; the descriptor of its other end.

    Raises:
        OSError: the kernel has no such filters, or does not allow them.
    """
    if not SECCOMP:
        raise OSError(errno.ENOSYS, f"no system call numbers are known for {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    calls = (*SYNCS, *WRITES)
    steps = [(_LOAD, 0, 0, 0)]
    steps += [(_JUMP_IF_EQUAL, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _USER_NOTIF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    handle = libc.syscall(SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, program)
    if handle < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return handle


class Faults:
    """Answers for each call of the processes under the filter.

    Args:
        folder: where a socket can be made.
    """

    def __init__(self, folder):
        self.path = Path(folder) / "faults.sock"
        self.prefix = [sys.executable, "-S", "-E", __file__, str(self.path)]
        self.struck = 0  # how many calls failed
        self.asked = 0
        self._rules = []  # (calls, ending of the path, errno, seconds)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="faults")
        self._thread.start()

    def fail(self, ending, number, calls=SYNCS):
        """From now on, these calls on files whose path ends so fail with that errno."""
        self._rules = [*self._rules, (calls, ending, number, 0.0)]

    def slow(self, ending, seconds, calls=SYNCS):
        """From now on, these calls on such files take that much longer."""
        self._rules = [*self._rules, (calls, ending, 0, seconds)]

    def clear(self):
        """All is well again."""
        self._rules = []

    def close(self):
        """Let go. Processes that are still under the filter find their calls to be unknown to the system."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._listener.close()

    # ---- in the thread

    def _serve(self):
        while True:
            ready = select.select([self._listener, self._stop], [], [])[0]
            if self._stop in ready:
                return
            with self._listener.accept()[0] as sock:
                handle = socket.recv_fds(sock, 1, 1)[1][0]
            try:
                if not self._answer_all(handle):
                    return
            finally:
                os.close(handle)

    def _answer_all(self, handle):
        """Answer until nobody is under that filter any more; whether to go on with another."""
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        waiting = []
        try:
            while True:
                ready = dict(poll.poll())
                if self._stop in ready:
                    return False
                if ready[handle] & select.POLLHUP:
                    return True
                request = bytearray(80)
                try:
                    fcntl.ioctl(handle, _RECEIVE, request)
                except FileNotFoundError:  # the process was killed meanwhile
                    continue
                number, pid, _, call, _, _, file = struct.unpack_from("QIIiIQQ", request)
                self._judge(handle, number, pid, call, file, waiting)
        finally:
            for timer in waiting:
                timer.cancel()
                timer.join()

    def _judge(self, handle, number, pid, call, file, waiting):
        self.asked += 1
        path = ""
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/{pid}/fd/{file}").removesuffix(" (deleted)")
        for calls, ending, fault, seconds in self._rules:
            if call in calls and path.endswith(ending):
                if fault:
                    self.struck += 1
                    self._say(handle, number, -fault, 0)
                else:
                    waiting.append(threading.Timer(seconds, self._say, (handle, number, 0, _CONTINUE)))
                    waiting[-1].start()
                return
        self._say(handle, number, 0, _CONTINUE)

    def _say(self, handle, number, fault, flags):
        with contextlib.suppress(FileNotFoundError):  # killed while it waited
            fcntl.ioctl(handle, _SEND, bytearray(struct.pack("Qqii", number, 0, fault, flags)))


def possible():
    """None if such filters work here, else why not."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(install())
            os.write(theirs, b"+")
        except OSError as error:
            os.write(theirs, str(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return None if told == "+" else f"no filter of system calls can be set: {told}"


if __name__ == "__main__":
    end = install()
    with socket.socket(socket.AF_UNIX) as teller:
        teller.connect(sys.argv[1])
        socket.send_fds(teller, [b"+"], [end])
    os.close(end)
    os.execvp(sys.argv[2], sys.argv[2:])
