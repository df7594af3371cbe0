"""How a worker reaches its queue: the supervisor's socket, or a queue of its own without one."""
