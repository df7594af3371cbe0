"""What is held while it may heal, and aborted when it does not: votes, scopes, holds with their probes, aborts."""
