"""What the ConfigMap carries is a configuration that nats-server takes: both versions, each region."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path

import nats
import pytest

from kgents_devstack import certificates
from kgents_devstack.servers.nats import OLDEST_VERSION, binary, installed_version

from .nats_cluster import nodes
from .rendered import K8S, OVERLAYS, find, overlay

SEEDS = K8S / "components" / "plain-secrets" / "seeds"


@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
@pytest.mark.parametrize("name", OVERLAYS)
def test_nats_takes_the_configuration(name: str, version: str, tmp_path: Path) -> None:
    """With what its pod tells it; the paths of its volumes are laid elsewhere."""
    authority = certificates.Authority()
    certificates.write(tmp_path, authority.issue("nats", ["nats"]), authority.certificate)
    objects = overlay(name)
    for file, text in find(objects, "ConfigMap", "nats-config")["data"].items():
        (tmp_path / file).write_text(re.sub("/etc/nats-(leaf|tls)/", f"{tmp_path}/", text))
    region = find(objects, "ConfigMap", "nats-region")["data"]
    told = {"POD_NAME": "nats-0", "NATS_DOMAIN": region["domain"], "NATS_CLUSTER": region["cluster"]}
    # An installation's own keys; the laptop's stand for them.
    told |= find(overlay("local"), "ConfigMap", "nats-public-keys")["data"]

    answer = subprocess.run(
        [binary(version), "-t", "-c", str(tmp_path / "nats.conf")],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert "is valid" in answer.stderr


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_message_is_synced_before_it_is_acknowledged(name: str) -> None:
    """P1: the server's default of two minutes would let a loss of power take what a 202 promised."""
    config = find(overlay(name), "ConfigMap", "nats-config")["data"]["nats.conf"]

    assert re.search(r"^  sync_interval: always$", config, re.MULTILINE)


def test_who_may_do_what_is_what_the_code_says() -> None:
    """The committed file is the command's answer: `python -m kgents_common.access configuration`."""
    command = [sys.executable, "-m", "kgents_common.access", "configuration"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    committed = (K8S / "base" / "nats" / "accounts.conf").read_text()

    assert committed.partition("\n")[2] == answer.stdout


@pytest.mark.parametrize("name", OVERLAYS)
def test_nats_is_told_a_public_key_for_every_user(name: str) -> None:
    """And a laptop's are those of its seeds; anywhere else they are the installation's to make."""
    objects = overlay(name)
    told = find(objects, "ConfigMap", "nats-public-keys")["data"]
    accounts = find(objects, "ConfigMap", "nats-config")["data"]["accounts.conf"]
    command = [sys.executable, "-m", "kgents_common.access", "public", str(SEEDS)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    laptop = dict(line.split("=") for line in answer.stdout.splitlines())

    assert set(told) == set(re.findall(r"\$(NKEY_[A-Z_]+)", accounts))
    if name == "local":
        assert told == laptop
    else:
        assert not set(told.values()) & set(laptop.values())


def test_the_regions_have_domains_and_clusters_of_their_own() -> None:
    """A mirror names its origin's domain; two clusters of one name would join."""
    regions = [find(overlay(name), "ConfigMap", "nats-region")["data"] for name in ("production", "dr")]

    assert {region["domain"] for region in regions} == {"primary", "dr"}
    assert len({region["cluster"] for region in regions}) == 2


@pytest.mark.long
@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
async def test_three_nodes_form_a_cluster_and_the_job_gives_the_streams_three_replicas(
    version: str, tmp_path: Path
) -> None:
    """The configuration as it is, the Job's own command, twice: the second time nothing is to be done."""
    cluster = nodes(tmp_path, version)
    arguments = find(overlay("local"), "Job", "kgents-streams")["spec"]["template"]["spec"]["containers"][0]
    command = [sys.executable, *arguments["command"][1:], *arguments["args"]]
    with contextlib.ExitStack() as running:
        for node in cluster:
            running.enter_context(node)
        for node in cluster:
            await asyncio.to_thread(node.until_ready)
        identity = {"NATS_NKEY_SEED_FILE": str(SEEDS / "streams.nk"), "NATS_INBOX_PREFIX": "_INBOX.streams"}
        told = {
            **os.environ,
            **identity,
            "NATS_SERVERS": cluster[0].url,
            "NATS_CA_FILE": str(tmp_path / "ca.crt"),
        }

        def applied() -> subprocess.CompletedProcess[str]:
            """As often as the Job's pod is started again: a cluster without its leader yet refuses."""
            for _ in range(10):
                answer = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
                if answer.returncode == 0:
                    break
                time.sleep(2)
            return answer

        first, second = [await asyncio.to_thread(applied) for _ in range(2)]

        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert "create" in first.stdout.lower()
        assert "create" not in second.stdout.lower()
        operator = {
            "nkeys_seed": str(SEEDS / "operator.nk"),
            "inbox_prefix": b"_INBOX.operator",
            "tls": ssl.create_default_context(cafile=tmp_path / "ca.crt"),
        }
        client = await nats.connect(cluster[1].url, **operator)
        infos = await client.jetstream().streams_info()
        account = await client.jetstream().account_info()
        await client.close()

    assert {info.config.name: info.config.num_replicas for info in infos} == {"AGENTESE": 3, "EVENTS": 3}
    assert account.domain == "primary"
