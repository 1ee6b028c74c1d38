"""uvicorn's HTTP/1.1 server, bounded against clients, drained so that no request it read goes unanswered."""

from kgents_common.http_server.bounds import Limits
from kgents_common.http_server.connection import MAX_FRAMING_BYTES, MAX_HEAD_BYTES, MAX_HEADERS
from kgents_common.http_server.last_handler import LastHandler
from kgents_common.http_server.server import HttpServer

__all__ = ["MAX_FRAMING_BYTES", "MAX_HEADERS", "MAX_HEAD_BYTES", "HttpServer", "LastHandler", "Limits"]
