"""Speaks: the commands for people."""
