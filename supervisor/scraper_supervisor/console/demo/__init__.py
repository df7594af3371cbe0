"""The demonstration: a small site with faults, scraped and shown."""
