"""The browser that a worker's items share, and what they open in it."""
