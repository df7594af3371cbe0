"""Keeps: the ledger and the checkpoint files; synchronous I/O, used from threads and offline commands."""
