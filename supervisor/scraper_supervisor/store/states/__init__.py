"""The workers' states as sealed files."""
