"""The supervisor of browser scrapers: core decides, store keeps, daemon acts, console speaks."""

__version__ = "0.1.0"
