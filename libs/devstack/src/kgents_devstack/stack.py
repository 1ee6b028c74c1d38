"""Everything at once: servers, stand-ins, streams and services, started in order and stopped in reverse."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

from kgents_common import keyring
from kgents_common.access import accounts, seeds
from kgents_devstack import alone, kept
from kgents_devstack.openmeter.process import OpenMeterStandIn
from kgents_devstack.servers import NatsServer, PostgresServer, ValkeyServer, apply_streams
from kgents_devstack.servers.process import Server
from kgents_devstack.services import ServiceProcess

STREAM_BYTES = 2 * 1024**3
TENANTS = ("acme", "globex")
EVERYTHING = ("metering", "reads", "billing", "backup", "api", "agents")
# The reads are a role of metering: a process of their own where they are asked for.
MODULES = {"reads": "kgents_metering", "agents": "kgents_api"}
# Backup's operators use its commands more than its service: it serves only when told to.
ARGUMENTS = {"backup": ("run",), "agents": ("agents",)}
# Which of the server's users each process is.
NATS_USERS = {"reads": "metering-reads"}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to start, and how it differs from the default.

    Attributes:
        services: Names of services, each run as one process.
        environment: By service name, more for its environment.
        sync_always: See `NatsServer`.
        webhook_secrets: More secrets that Stripe's webhooks may be signed with, comma-separated.
        elsewhere: Services that somebody else runs, on the ports that `ports` names.
        ports: By name of a service or server, where it listens; a free port where none is named.
        operations_ports: The same for the operators' ports.
        needs_database: Off, no Postgres is started: for services that have none.
        needs_openmeter: Off, its stand-in is not started: for services that never ask it.
        keeps: The directory may hold a stack already: go on with its keys, its data and what OpenMeter has.
        openmeter_dedupe_seconds: How long the stand-in remembers a key; None for ever.
    """

    services: Sequence[str] = ("metering", "api")
    tenants: Sequence[str] = TENANTS
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nats_version: str | None = None
    meters_file: Path | None = None
    sync_always: bool = True
    webhook_secrets: str = ""
    elsewhere: Sequence[str] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    operations_ports: Mapping[str, int] = field(default_factory=dict)
    needs_database: bool = True
    needs_openmeter: bool = True
    keeps: bool = False
    openmeter_dedupe_seconds: float | None = None


# What the stack's services are told of the caller's environment: Stripe itself instead of nothing.
PASSED_ON = {"billing": ("STRIPE_API_KEY", "STRIPE_API_BASE")}


def passed_on(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By service, what it is told of the caller's environment."""
    told = {
        service: {name: environment[name] for name in names if environment.get(name)}
        for service, names in PASSED_ON.items()
    }
    return {service: names for service, names in told.items() if names}


class Stack:
    """A running system in one directory. Start it from a thread that lives as long as it should."""

    def __init__(self, directory: Path, options: StackOptions | None = None) -> None:
        self.directory = directory
        self.options = options or StackOptions()
        self.meters_file = self.options.meters_file or directory / "meters.yaml"
        self.keyring_file = directory / "keys.json"
        self.nats = NatsServer(
            directory / "nats", version=self.options.nats_version, sync_always=self.options.sync_always
        )
        self.valkey = ValkeyServer(directory / "valkey")
        self.postgres = PostgresServer(directory / "postgres")
        self.openmeter = OpenMeterStandIn(
            directory / "openmeter",
            token="om_for_loopback_only",
            meters_file=self.meters_file,
            keeps=self.options.keeps,
            dedupe_window_seconds=self.options.openmeter_dedupe_seconds,
        )
        named = self.options.ports
        self.nats.port = named.get("nats", self.nats.port)
        self.nats.monitor_port = named.get("nats-monitor", self.nats.monitor_port)
        self.valkey.port = named.get("redis", self.valkey.port)
        self.postgres.port = named.get("postgres", self.postgres.port)
        self.openmeter.port = named.get("openmeter", self.openmeter.port)
        self.database_url = ""
        self.redis_url = ""
        self.keys: dict[str, str] = {}
        self.webhook_secret = f"whsec_{secrets.token_hex(16)}"
        self.message_id_secret = secrets.token_hex(16)
        self._services: dict[str, ServiceProcess] = {}
        self._started = ExitStack()
        self._is_started = False

    def start(self) -> Self:
        """Start all of it.

        Raises:
            StartError: A part did not come up; what had started is stopped again.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as starting:
            if self.options.keeps:
                starting.enter_context(kept.alone(self.directory))
            if self.options.meters_file is None and not (self.options.keeps and self.meters_file.exists()):
                example = resources.files("kgents_devstack") / "meters.yaml"
                self.meters_file.write_text(example.read_text())
            self._write_keys()
            self._make_nats_users()
            starting.enter_context(self.nats)
            if self.options.needs_database:
                self._start_postgres(starting)
            self.redis_url = os.environ.get("REDIS_URL") or starting.enter_context(self.valkey).url
            if self.options.needs_openmeter:
                starting.enter_context(self.openmeter)
            self.apply_streams()
            for name in self.options.services:
                self._services[name] = starting.enter_context(self.make_service(name))
            self._started = starting.pop_all()
        self._is_started = True
        return self

    def stop(self) -> None:
        """Stop all of it, services first; its directory stays."""
        self._is_started = False
        self._started.close()

    @property
    def is_started(self) -> bool:
        """Whether all of it was started, and not stopped since."""
        return self._is_started

    @property
    def services(self) -> Sequence[ServiceProcess]:
        """All that run."""
        return tuple(self._services.values())

    @property
    def processes(self) -> Sequence[Server]:
        """All that it started: servers and stand-ins, then services."""
        return (self.nats, self.postgres, self.valkey, self.openmeter, *self.services)

    def service(self, name: str) -> ServiceProcess:
        """A service of this stack."""
        return self._services[name]

    def make_service(self, name: str, *, label: str = "", **environment: str) -> ServiceProcess:
        """Another process of a service, not started; a stack stops only what it started itself."""
        return ServiceProcess(
            name,
            self.directory / f"{name}{label}",
            {**self._told(name), **environment},
            module=MODULES.get(name),
            arguments=ARGUMENTS.get(name, ()),
            port=self.options.ports.get(name),
            operations_port=self.options.operations_ports.get(name),
        )

    def command(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """An operator's command of a service, e.g. `command("backup", "drill")`, run to its end."""
        return subprocess.run(
            alone.command(f"kgents_{name}", arguments),
            env={**os.environ, **self.operators_environment(name)},
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )

    def operators_environment(self, name: str) -> dict[str, str]:
        """What a command of a service is told."""
        return {**self._told(name), **self._nats_user("operator")}

    def apply_streams(self) -> None:
        """Bring the streams to their specification, as the deployment does."""
        apply_streams(self.nats.url, max_bytes=STREAM_BYTES)

    def _start_postgres(self, starting: ExitStack) -> None:
        attached = os.environ.get("DATABASE_URL")
        if attached:
            self.database_url = attached
            return
        self.postgres.start()
        starting.callback(self.postgres.stop if self.options.keeps else self.postgres.discard)
        self.database_url = self.postgres.create_database("kgents", may_exist=self.options.keeps)

    def _write_keys(self) -> None:
        earlier = kept.load(self.directory) if self.options.keeps else None
        if earlier is not None and self.keyring_file.exists():
            self.keys = earlier.keys
            self.webhook_secret = earlier.webhook_secret
            self.message_id_secret = earlier.message_id_secret
            return
        records = []
        for tenant in self.options.tenants:
            self.keys[tenant], record = keyring.mint(tenant, keyring.TENANT_SCOPES)
            records.append(record)
        keyring.write(self.keyring_file, records)
        if self.options.keeps:
            kept.save(self.directory, kept.Identity(self.keys, self.webhook_secret, self.message_id_secret))

    def _make_nats_users(self) -> None:
        """Each process is a user of its own, as in a cluster: a permission that is missing is missed here."""
        seeds.make(self._seeds)
        password = secrets.token_hex(16)
        keys = seeds.account_keys(self._seeds, password_users={"developer": password})
        self.nats.extra = accounts(keys)
        self.nats.login = f"developer:{password}"

    @property
    def _seeds(self) -> Path:
        return self.directory / "nats-users"

    def _nats_user(self, name: str) -> dict[str, str]:
        """What makes a process one of the server's users."""
        if name == "agents":
            return {
                "KGENTS_NATS_ISSUER_SEED_FILE": str(self._seeds / "issuer.nk"),
                "KGENTS_NATS_RESPONDER_SEED_FILE": str(self._seeds / "agents.nk"),
                "KGENTS_NATS_CUTTER_SEED_FILE": str(self._seeds / "cutter.nk"),
            }
        user = NATS_USERS.get(name, name)
        return {
            "NATS_NKEY_SEED_FILE": str(self._seeds / f"{user}.nk"),
            "NATS_INBOX_PREFIX": f"_INBOX.{user}",
        }

    def _told(self, name: str) -> dict[str, str]:
        return {
            **self._environment(),
            **self._nats_user(name),
            **self._role(name),
            **self.options.environment.get(name, {}),
        }

    def _role(self, name: str) -> dict[str, str]:
        if name == "reads":
            return {"KGENTS_METERING_ROLE": "reads"}
        elsewhere = self.options.elsewhere
        if name == "metering" and "reads" in (*self.options.services, *elsewhere):
            return {"KGENTS_METERING_ROLE": "writer"}
        if name == "api" and "reads" in elsewhere:
            return {
                "KGENTS_READS_URL": f"http://127.0.0.1:{self.options.ports['reads']}",
                "KGENTS_EXPECTED_WORKERS": "metering,metering-reads,billing,backup",
            }
        if name == "api" and {"reads", "metering"} & set(self._services):
            expected = {"KGENTS_EXPECTED_WORKERS": "metering,metering-reads,billing,backup"}
            return {"KGENTS_READS_URL": self.reads.url, **(expected if "reads" in self._services else {})}
        return {}

    @property
    def reads(self) -> ServiceProcess:
        """The process that answers usage queries: the reads' own, or metering in all its roles."""
        return self.service("reads" if "reads" in self.options.services else "metering")

    def _environment(self) -> dict[str, str]:
        return {
            "NATS_SERVERS": self.nats.address,
            "REDIS_URL": self.redis_url,
            # One tenant and load generators: the limit is at work, and out of the way.
            "KGENTS_RATE_LIMIT_EVENTS_PER_SECOND": "1000000",
            "DATABASE_URL": self.database_url,
            "OPENMETER_BASE_URL": self.openmeter.url,
            "OPENMETER_API_KEY": self.openmeter.token,
            "KGENTS_KEYRING_FILE": str(self.keyring_file),
            "KGENTS_KEYRING_USES_DIRECTORY": str(self.directory / "key-uses"),
            "KGENTS_METERS_FILE": str(self.meters_file),
            "KGENTS_BACKUP_DIRECTORY": str(self.directory / "backups"),
            "STRIPE_WEBHOOK_SECRETS": ",".join(
                filter(None, (self.webhook_secret, self.options.webhook_secrets))
            ),
            "KGENTS_MESSAGE_ID_SECRET": self.message_id_secret,
            "KGENTS_STRIPE_MODE": os.environ.get("KGENTS_STRIPE_MODE", "test"),
        }

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
