"""How things are written down for others: checkpoint files, exported runs, times, names of events."""
