"""Every NATS user and exactly what it may publish and hear, made of the subjects that code uses.

The lists are the least that work: each line taken away breaks its user, and a test holds every user against
every subject and API call. A user's answers come to `_INBOX.<its name>.>`, which no other may hear.

Sources: nats-server `server/jetstream_api.go` (API subjects), `server/auth.go` (a deny wins over an allow).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kgents_common import subjects
from kgents_common.streams.specification import (
    BILLING,
    CONSUMERS,
    METERING,
    METERING_BILLING_FACTS,
    STREAMS,
    ConsumerSpec,
)

API = "$JS.API"
# The account of streams and services, of agents, and of the responder that lets agents in.
SYSTEM, AGENTS, RESPONDER = "KGENTS", "AGENTS", "RESPONDER"


@dataclass(frozen=True, slots=True)
class NatsUser:
    """One user.

    Attributes:
        name: Also the token of its inbox, and of the variable that holds its public key.
        publish: Subjects it may publish to.
        subscribe: Subjects it may hear, besides its own inbox.
        deny_publish: What it may not publish to, whatever `publish` says.
        account: The account it is in.
    """

    name: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    deny_publish: tuple[str, ...] = ()
    account: str = SYSTEM

    @property
    def inbox_prefix(self) -> str:
        """What its client is told as `NATS_INBOX_PREFIX`."""
        return f"_INBOX.{self.name}"

    @property
    def hears(self) -> tuple[str, ...]:
        """Everything it may subscribe to."""
        return (f"{self.inbox_prefix}.>", *self.subscribe)


def _heartbeat(service: str) -> str:
    return f"events.heartbeat.{subjects.token(service)}.*"


def _dead_letters(service: str) -> str:
    return f"events.deadletter.{subjects.token(service)}.*"


def _looks(*streams: str) -> tuple[str, ...]:
    """How full a stream is, and what it is."""
    return tuple(f"{API}.STREAM.INFO.{stream}" for stream in streams)


def _consumes(*consumers: ConsumerSpec) -> tuple[str, ...]:
    """To pull from a durable consumer, acknowledge, and put it back where it was deleted."""
    return tuple(
        subject
        for one in consumers
        for subject in (
            f"{API}.CONSUMER.INFO.{one.stream}.{one.name}",
            f"{API}.CONSUMER.MSG.NEXT.{one.stream}.{one.name}",
            f"{API}.CONSUMER.CREATE.{one.stream}.{one.name}.{one.filter_subject}",
            f"$JS.ACK.{one.stream}.{one.name}.>",
        )
    )


def _reads(stream: str) -> tuple[str, ...]:
    """To read forward through a consumer of one's own."""
    return (
        f"{API}.CONSUMER.CREATE.{stream}.>",
        f"{API}.CONSUMER.MSG.NEXT.{stream}.*",
        f"{API}.CONSUMER.DELETE.{stream}.*",
    )


def _not_the_durables(streams: Iterable[str], *, own: ConsumerSpec | None = None) -> tuple[str, ...]:
    """Without these, whoever may read could drain, change or delete another's durable consumer."""
    denied: list[str] = []
    for one in CONSUMERS:
        if one.stream not in streams:
            continue
        denied += (
            f"{API}.CONSUMER.CREATE.{one.stream}.{one.name}",
            f"{API}.CONSUMER.DELETE.{one.stream}.{one.name}",
        )
        if one is not own:
            denied += (
                f"{API}.CONSUMER.CREATE.{one.stream}.{one.name}.>",
                f"{API}.CONSUMER.MSG.NEXT.{one.stream}.{one.name}",
            )
    return tuple(denied)


_BOTH = tuple(stream.name for stream in STREAMS)

API_USER = NatsUser(
    "api",
    publish=(
        "agentese.>",
        "events.stripe.>",
        _heartbeat("api"),
        *_looks(*_BOTH),
        f"{API}.STREAM.MSG.GET.{subjects.AGENTESE}",
        *_reads(subjects.AGENTESE),
    ),
    subscribe=("events.heartbeat.>",),
    deny_publish=_not_the_durables([subjects.AGENTESE]),
)
METERING_USER = NatsUser(
    "metering",
    publish=(
        # A dead letter is sent again by metering's own command.
        "agentese.>",
        _heartbeat("metering"),
        _dead_letters("metering"),
        *_looks(*_BOTH),
        # Whether the ledger has what its consumers were told it has.
        *(f"{API}.STREAM.MSG.GET.{stream}" for stream in _BOTH),
        *_consumes(METERING, METERING_BILLING_FACTS),
        # What is applied, archived and old enough leaves the stream (KGENTS_RAW_DAYS).
        f"{API}.STREAM.PURGE.{subjects.AGENTESE}",
        # To have the streams delivered again, its consumers are made anew at the ledger's positions.
        *(f"{API}.CONSUMER.DELETE.{one.stream}.{one.name}" for one in (METERING, METERING_BILLING_FACTS)),
    ),
)
READS_USER = NatsUser("metering-reads", publish=(_heartbeat("metering-reads"), *_looks(*_BOTH)))
BILLING_USER = NatsUser(
    "billing",
    publish=(
        "events.billing.>",
        # What the poll of Stripe finds missing is stored as the door stores it.
        "events.stripe.>",
        _heartbeat("billing"),
        _dead_letters("billing"),
        *_looks(*_BOTH),
        *_consumes(BILLING),
        # Whether a fact that may have been published is there already.
        *_reads(subjects.EVENTS),
    ),
    deny_publish=_not_the_durables([subjects.EVENTS], own=BILLING),
)
BACKUP_USER = NatsUser(
    "backup",
    publish=(
        "events.backup.>",
        # What a restore under way, or one that was interrupted, has made.
        f"{API}.STREAM.LIST",
        _heartbeat("backup"),
        *_looks(*_BOTH),
        *(
            subject
            for stream in _BOTH
            for subject in (
                f"{API}.STREAM.SNAPSHOT.{stream}",
                f"$JS.SNAPSHOT.ACK.{stream}.>",
                f"{API}.STREAM.MSG.GET.{stream}",
                f"{API}.CONSUMER.LIST.{stream}",
                *_reads(stream),
            )
        ),
    ),
    deny_publish=_not_the_durables(_BOTH),
)
STREAMS_USER = NatsUser(
    "streams",
    publish=tuple(
        subject
        for stream in _BOTH
        for subject in (
            *(f"{API}.STREAM.{call}.{stream}" for call in ("INFO", "CREATE", "UPDATE", "PURGE")),
            f"{API}.CONSUMER.INFO.{stream}.*",
            f"{API}.CONSUMER.CREATE.{stream}.*.>",
        )
    ),
)
# A person with the runbook in hand: restores, moves consumers, sends dead letters again. No process is it.
OPERATOR_USER = NatsUser(
    "operator",
    # `kgents.…` carries what a restore moves between streams of its own.
    publish=("agentese.>", "events.>", "kgents.>", "$JS.>"),
    subscribe=("agentese.>", "events.>", "$JS.EVENT.>"),
)
SERVICES = (
    API_USER,
    METERING_USER,
    READS_USER,
    BILLING_USER,
    BACKUP_USER,
    STREAMS_USER,
    OPERATOR_USER,
)

# Lets agents in: it hears the server's questions, and nobody else may, since they hold what agents presented.
RESPONDER_USER = NatsUser("agents", subscribe=("$SYS.REQ.USER.AUTH",), account=RESPONDER)
# What a server says of an agent's connection that has ended.
AGENTS_CLOSED = f"$SYS.ACCOUNT.{AGENTS}.DISCONNECT"
# Cuts off agents whose key was revoked or who send too fast: it may list connections, hear of those
# that ended, and end one, nothing more.
CUTTER_USER = NatsUser(
    "cutter",
    publish=("$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK"),
    subscribe=(AGENTS_CLOSED,),
    account="SYS",
)
ALL = (*SERVICES, RESPONDER_USER, CUTTER_USER)


def agent_inbox(tenant: str) -> str:
    """The inbox prefix of a tenant's agents: `nats.connect(…, inbox_prefix=…)`."""
    return f"_INBOX.{tenant}"
