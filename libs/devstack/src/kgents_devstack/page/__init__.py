"""One page on loopback that shows a running stack alive, for a person at a laptop; no service has it."""

from kgents_devstack.page.server import PageServer

__all__ = ["PageServer"]
