"""Decides: synchronous, without I/O, clock, randomness or logging."""
