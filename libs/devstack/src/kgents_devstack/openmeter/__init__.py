"""A stand-in for OpenMeter: its documented contract over HTTP, with faults to switch on; not its engine.

`process.OpenMeterStandIn` runs it. Nothing is imported here: its process does without what starts it.
"""
