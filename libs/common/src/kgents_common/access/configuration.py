"""The accounts of a nats-server as a part of its configuration: users, permissions, and who lets agents in.

It holds public keys alone; who has a seed is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kgents_common.access.users import AGENTS, ALL, RESPONDER, RESPONDER_USER, SYSTEM, NatsUser

AUTHORIZATION_SECONDS = 5


@dataclass(frozen=True, slots=True)
class AccountKeys:
    """Public keys.

    Attributes:
        users: By user's name; a value beginning with `$` is a variable of the server's environment.
        issuer: The account key that signs agents' users.
        password_users: More users of the services' account, by name and password, who may do everything:
            for a laptop alone.
    """

    users: Mapping[str, str]
    issuer: str
    password_users: Mapping[str, str]


def accounts(keys: AccountKeys) -> str:
    """The blocks `accounts`, `system_account` and `authorization`."""
    everybody = [keys.users[user.name] for user in ALL] + list(keys.password_users)
    passwords = [f'      {{ user: "{n}", password: "{word}" }}' for n, word in keys.password_users.items()]
    return "\n".join(
        [
            "accounts {",
            f"  {SYSTEM} {{",
            "    jetstream: enabled",
            *_users(keys, SYSTEM, passwords),
            "    # Agents publish through this; their replies stay in their own account.",
            f'    exports: [{{ service: "agentese.>", accounts: [{AGENTS}] }}]',
            "  }",
            "  # Filled by the responder alone: each agent may publish for its own tenant.",
            f"  {AGENTS} {{",
            f'    imports: [{{ service: {{ account: {SYSTEM}, subject: "agentese.>" }} }}]',
            "  }",
            f"  {RESPONDER} {{",
            *_users(keys, RESPONDER),
            "  }",
            "  SYS {",
            *_users(keys, "SYS"),
            "  }",
            "}",
            "system_account: SYS",
            "authorization {",
            f"  timeout: {AUTHORIZATION_SECONDS}",
            "  auth_callout {",
            f"    issuer: {keys.issuer}",
            f"    account: {RESPONDER}",
            "    # Everybody who is known here; whoever else connects is asked about.",
            "    auth_users: [",
            *(f"      {key}" for key in everybody),
            "    ]",
            "  }",
            "}",
            "",
        ]
    )


def _users(keys: AccountKeys, account: str, more: Sequence[str] = ()) -> list[str]:
    known = [line for user in ALL if user.account == account for line in _user(user, keys.users[user.name])]
    return ["    users: [", *known, *more, "    ]"]


def _user(user: NatsUser, key: str) -> list[str]:
    # An empty list would allow everything.
    denied = user.deny_publish if user.publish else (">",)
    return [
        f"      # {user.name}",
        f"      {{ nkey: {key}",
        "        permissions: {",
        "          publish: {",
        *([f"            allow: {_list(user.publish)}"] if user.publish else []),
        *([f"            deny: {_list(denied)}"] if denied else []),
        "          }",
        f"          subscribe: {{ allow: {_list(user.hears)} }}",
        *(["          allow_responses: true"] if user is RESPONDER_USER else []),
        "        }",
        "      }",
    ]


def _list(found: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in found) + "]"
