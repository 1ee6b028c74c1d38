"""The dashboards, one for each audience; what a panel is, is `panels`' to say."""

from kgents_observability.dashboards import backups, billing, door, glance, metering, processes, streams
from kgents_observability.dashboards.panels import Board

BOARDS: tuple[Board, ...] = (
    glance.BOARD,
    door.BOARD,
    metering.BOARD,
    billing.BOARD,
    streams.BOARD,
    backups.BOARD,
    processes.BOARD,
)

__all__ = ["BOARDS", "Board"]
