"""True if a ledger is whole, is still the one that was opened, and can be looked at past SQLite's locks."""
