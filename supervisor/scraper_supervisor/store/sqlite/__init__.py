"""The ledger on SQLite: the writer, the reader, runs out and in."""
