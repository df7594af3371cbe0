"""What the core asks the store to keep, and what the store answers: values only.

The words suit a ledger that several supervisors share: open items are leased, as many as the ledger says; it allots the
numbers of claims; an end of a claim is written only while the claim is still the latest; and the ledger decides whether
a run is complete. A ledger that one supervisor has to itself leases by the lock on its folder.

Each operation carries the `ticket` under which its answer comes back (`Persisted` or `PersistFailed`). Operations on
the ledger are carried out in the order in which they were asked, and answered in that order; so are those on the
checkpoint files of one worker. Wall-clock times are stamped by the store: the core gives delays in seconds.
"""
