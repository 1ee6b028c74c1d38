"""What `docs/scaling.md` says of a stream too much for one Raft group, held against real servers."""

from __future__ import annotations

import json
from pathlib import Path

import nats
import pytest

from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version

PARTS = 3
MAPPING = f'mappings {{ "agentese.*.>": "part.{{{{partition({PARTS},1)}}}}.{{{{wildcard(1)}}}}.>" }}'


@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
async def test_each_tenant_is_in_one_part_under_its_own_subjects(version: str, tmp_path: Path) -> None:
    """Publishers and readers keep their subjects; the acknowledgement names the part."""
    with NatsServer(tmp_path, version=version, extra=MAPPING) as server:
        client = await nats.connect(server.url)
        for part in range(PARTS):
            config = {
                "name": f"AGENTESE-{part}",
                "subjects": [f"part.{part}.>"],
                "subject_transform": {"src": f"part.{part}.>", "dest": "agentese.>"},
            }
            await client.request(f"$JS.API.STREAM.CREATE.AGENTESE-{part}", json.dumps(config).encode())
        jetstream = client.jetstream()
        homes: dict[str, set[str]] = {}
        for number in range(24):
            tenant = f"tenant-{number % 12}"
            for kind in ("llm.tokens", "agent.tool.ran"):
                ack = await jetstream.publish(f"agentese.{tenant}.{kind}", b"{}")
                homes.setdefault(tenant, set()).add(ack.stream)
        stored = {
            subject
            for part in range(PARTS)
            for subject in (
                await jetstream.stream_info(f"AGENTESE-{part}", subjects_filter=">")
            ).state.subjects
            or {}
        }
        await client.close()

    assert {len(parts) for parts in homes.values()} == {1}
    assert len(set().union(*homes.values())) > 1
    assert stored == {f"agentese.{t}.{kind}" for t in homes for kind in ("llm.tokens", "agent.tool.ran")}
