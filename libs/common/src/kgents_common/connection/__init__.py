"""One NATS client of ours, and a connection with it that stands for as long as the process does.

`Client` is nats-py's with a parser that no message can end; `Connection` keeps one of them connected.
"""

from kgents_common.connection.client import Client, Message
from kgents_common.connection.options import connect_options
from kgents_common.connection.standing import EXIT_CLOSED_FOR_GOOD, Connection
from kgents_common.connection.wire import Headers, header_block, header_line

__all__ = [
    "EXIT_CLOSED_FOR_GOOD",
    "Client",
    "Connection",
    "Headers",
    "Message",
    "connect_options",
    "header_block",
    "header_line",
]
