"""Logging in, and the session that is kept: what decides, and what does it."""
