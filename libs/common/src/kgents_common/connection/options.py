"""The arguments of `nats.connect` that this system insists on, from the settings; it connects nothing."""

from __future__ import annotations

import ssl
from typing import Any

from kgents_common.settings import ServiceSettings

RECONNECT_WAIT_SECONDS = 0.5


def connect_options(settings: ServiceSettings, name: str, callbacks: dict[str, Any]) -> dict[str, Any]:
    """Servers, credentials, the prefix of inboxes, and how long to wait and try.

    Args:
        name: Shown in the server's connection list.
    """
    options: dict[str, Any] = {
        "servers": list(settings.nats_servers),
        "name": name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_WAIT_SECONDS,
        "connect_timeout": 2,
        "ping_interval": 10,
        "max_outstanding_pings": 2,
        "inbox_prefix": settings.nats_inbox_prefix,
        **callbacks,
    }
    if settings.nats_user is not None and settings.nats_password is not None:
        options["user"] = settings.nats_user
        options["password"] = settings.nats_password.get_secret_value()
    if settings.nats_token is not None:
        options["token"] = settings.nats_token.get_secret_value()
    if settings.nats_nkey_seed_file is not None:
        options["nkeys_seed"] = str(settings.nats_nkey_seed_file)
    if settings.nats_ca_file is not None:
        options["tls"] = ssl.create_default_context(cafile=settings.nats_ca_file)
    return options
