"""What keeps the daemon going whatever a request, a thread, a signal or the host does."""
