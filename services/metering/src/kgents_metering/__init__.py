"""The ledger service: it counts each event at most once, for ever, and owes OpenMeter what it counted."""
