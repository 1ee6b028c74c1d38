"""A stream's configuration while it is restored, and after; in JetStream's own JSON terms, no I/O.

While a restore runs, the stream takes messages only under a subject that nobody else knows and stores them
under their own (a subject transform, nats-server 2.10 and later): a publisher that is already back cannot
slip a message between the snapshot and its tail. Limits that could drop or refuse a message are off; the
last step puts the stream's own configuration back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kgents_backup.model.restoration import OUR_MARKS

# nats-server refuses a shorter one; messages that repeat an id within it wait it out.
SHORTEST_DUPLICATE_WINDOW = 100_000_000
# Messages that stand for sequences which the stream did not hold; purged when the tail is in.
FILLER = "kgents.filler"
_SERVERS_OWN = "_nats."
_OF_A_MIRROR = ("mirror", "mirror_direct", "sources")


def fence_prefix(stream: str, token: str) -> str:
    """The subject prefix, without the last dot, under which only this restore publishes."""
    return f"kgents.restore.{stream}-{token}"


def fenced(
    config: Mapping[str, Any], name: str, prefix: str, *, replicas: int | None = None
) -> dict[str, Any]:
    """The configuration under which the stream is restored."""
    found = final(config, name, replicas=replicas)
    found |= {
        "subjects": [f"{prefix}.>"],
        "subject_transform": {"src": f"{prefix}.>", "dest": ">"},
        "duplicate_window": SHORTEST_DUPLICATE_WINDOW,
        "max_age": 0,
        "max_bytes": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "deny_purge": False,
        "deny_delete": False,
        "sealed": False,
    }
    found.pop("republish", None)
    return found


def final(
    config: Mapping[str, Any], name: str, *, replicas: int | None = None, subjects: list[str] | None = None
) -> dict[str, Any]:
    """The configuration the stream ends up with.

    Args:
        name: Another name than the snapshot's gets subjects of its own: its messages keep theirs, and
            nothing published to the original subjects reaches it.
        replicas: Instead of the snapshot's.
        subjects: Instead of the snapshot's, e.g. for a mirror that becomes the stream itself.
    """
    found = {key: value for key, value in config.items() if key not in _OF_A_MIRROR}
    found["name"] = name
    if subjects is not None:
        found["subjects"] = subjects
    elif name != config["name"]:
        found["subjects"] = [f"kgents.restored.{name}.>"]
        found["subject_transform"] = {"src": f"kgents.restored.{name}.>", "dest": ">"}
    if replicas is not None:
        found["num_replicas"] = replicas
    metadata = found.get("metadata")
    if metadata:
        found["metadata"] = {
            k: v for k, v in metadata.items() if not k.startswith(_SERVERS_OWN) and k not in OUR_MARKS
        }
    return found
