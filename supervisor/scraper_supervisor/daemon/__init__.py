"""Acts: the event loop, processes, sockets and threads around the core."""
