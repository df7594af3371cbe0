"""What becomes of one item: its handler in a task or a thread, its outcome, its evidence."""
