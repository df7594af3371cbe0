"""Copies of a ledger while it is written to, and the way back."""
