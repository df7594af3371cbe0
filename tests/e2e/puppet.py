"""A worker that does nothing by itself: it connects to worker.sock and passes the socket to the test that asks for it.

SO_PEERCRED of such a socket names this process, whoever holds it.
"""

import json
import os
import socket
import sys
from pathlib import Path

name = os.environ["SCRAPER_WORKER_NAME"]
path = Path(os.environ["PUPPETS"]) / f"{name}.puppet"
path.unlink(missing_ok=True)
with socket.socket(socket.AF_UNIX) as listener:
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    listener.bind(str(draft))
    listener.listen(64)
    draft.rename(path)
    while True:
        client, _ = listener.accept()
        with client:
            word = client.recv(1024).decode().split()
            if word[0] == "exit":
                sys.exit(int(word[1]))
            with socket.socket(socket.AF_UNIX) as supervisor:
                supervisor.connect(os.environ["SCRAPER_WORKER_SOCKET"])
                about = {"pid": os.getpid(), "token": os.environ["SCRAPER_WORKER_TOKEN"], "tmp": os.environ["TMPDIR"]}
                socket.send_fds(client, [json.dumps(about).encode()], [supervisor.fileno()])
