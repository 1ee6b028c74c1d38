"""The one way to pull from JetStream: requests of a consumer's messages, and streams read forward in order.

nats-py's own `fetch` tells a status from a message by a header named `Status`, which any publisher may send:
such a message is swallowed and never acknowledged.
"""

from kgents_common.pull.delivered import Delivered, delivered, stored
from kgents_common.pull.forward import Forward, Lost
from kgents_common.pull.requests import End, Pull

__all__ = ["Delivered", "End", "Forward", "Lost", "Pull", "delivered", "stored"]
