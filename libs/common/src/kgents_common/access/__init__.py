"""Who may do what on NATS: users and accounts as data, and the server's configuration made of them.

One account holds the streams and the services, a user for each; agents are in an account of their own.
"""

from kgents_common.access.configuration import AccountKeys, accounts
from kgents_common.access.users import AGENTS, RESPONDER, SERVICES, SYSTEM, NatsUser

__all__ = ["AGENTS", "RESPONDER", "SERVICES", "SYSTEM", "AccountKeys", "NatsUser", "accounts"]
