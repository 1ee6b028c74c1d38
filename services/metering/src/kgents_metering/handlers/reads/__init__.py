"""The way in for questions: OpenMeter's v1 meters, query and events API, for the caller's tenant alone."""

from kgents_metering.handlers.reads.admission import Admission
from kgents_metering.handlers.reads.door import routes
from kgents_metering.handlers.reads.gate import EXCEPTION_HANDLERS, Gate, whole

__all__ = ["EXCEPTION_HANDLERS", "Admission", "Gate", "routes", "whole"]
