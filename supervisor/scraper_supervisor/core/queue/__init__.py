"""One group's queue: its frontier, what is in flight, how claims begin and end, and the targets of all groups."""
