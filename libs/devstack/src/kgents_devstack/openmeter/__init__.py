"""A stand-in for OpenMeter: its documented contract over HTTP, with faults to switch on; not its engine."""

from kgents_devstack.openmeter.process import OpenMeterStandIn

__all__ = ["OpenMeterStandIn"]
