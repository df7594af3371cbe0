"""What is told to the outside: every event, redacted once, goes to each sink; and the log."""
