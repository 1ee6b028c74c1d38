"""What every test may ask for: real servers, and Hypothesis without a deadline (machines are shared)."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["kgents_devstack.fixtures"]

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
