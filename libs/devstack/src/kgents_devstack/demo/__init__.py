"""The demo: real input through the real door with clients nobody here wrote, and a table that must agree."""

from kgents_devstack.demo.run import run_demo

__all__ = ["run_demo"]
