"""The documents that are made from the code they describe, and so cannot differ from it."""

from kgents_devstack.documents.files import documents

__all__ = ["documents"]
