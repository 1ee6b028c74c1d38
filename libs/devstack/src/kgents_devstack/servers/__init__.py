"""Real servers from PyPI wheels on loopback; each is started, stopped, killed and restarted the same way."""

from kgents_devstack.servers.nats import NatsCluster, NatsServer
from kgents_devstack.servers.postgres import PostgresServer
from kgents_devstack.servers.process import Server, StartError, free_port
from kgents_devstack.servers.s3 import S3Server
from kgents_devstack.servers.streams import apply_streams
from kgents_devstack.servers.valkey import ValkeyServer

__all__ = [
    "NatsCluster",
    "NatsServer",
    "PostgresServer",
    "S3Server",
    "Server",
    "StartError",
    "ValkeyServer",
    "apply_streams",
    "free_port",
]
