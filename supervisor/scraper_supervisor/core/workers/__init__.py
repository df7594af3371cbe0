"""The workers: up and down, deadlines and hangs, limits that were crossed, why one is handed nothing."""
