"""A worker that gives its connection away: it connects, passes the socket to the load, and sleeps.

The supervisor admits only a worker's own process to its name, and a hundred busy processes would leave nothing of a
small machine to measure. So each worker connects by itself, and one process drives all connections.

Run by the supervisor as `python -I -S handover.py LOAD_SOCKET`.
"""

import os
import socket
import sys


def main() -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["SCRAPER_WORKER_SOCKET"])
    credentials = f"{os.environ['SCRAPER_WORKER_NAME']} {os.environ['SCRAPER_WORKER_TOKEN']}"
    with socket.socket(socket.AF_UNIX) as load:
        load.connect(sys.argv[1])
        socket.send_fds(load, [credentials.encode()], [connection.fileno()])
        load.recv(1)  # the load has it
    connection.close()
    os.execvp("sleep", ["sleep", "100000"])


if __name__ == "__main__":
    main()
