"""The images, built with the builder at hand and run as their pods run them; skipped where there is none.

Where no registry is to be had, `BASE` and `UV_IMAGE` name local images, `BUILD_FLAGS` what the builder needs.
"""

from __future__ import annotations

import os
import runpy
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import nats
import pytest

from kgents_common.access import accounts, seeds
from kgents_common.keyring import TENANT_SCOPES, mint, write
from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.process import free_port
from kgents_devstack.servers.streams import apply_streams

from .images import Image, Pod, close_image, open_image

ROOT = Path(__file__).resolve().parents[2]
BUILD = runpy.run_path(str(ROOT / "deploy" / "images.py"))
SERVICES: tuple[str, ...] = BUILD["SERVICES"]
USER = 10001

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def images() -> Iterator[Mapping[str, Image]]:
    """All four, built from this tree."""
    builder = os.environ.get("BUILDER") or BUILD["builder_at_hand"]()
    if builder is None:
        pytest.skip(
            "no docker, podman or buildah works here: the images were not built, started or looked at"
        )
    if builder == "buildah" and os.getuid() != 0:
        pytest.skip(
            "buildah builds, but without root its images cannot be started here: nothing was looked at"
        )
    found: dict[str, Image] = {}
    for service in SERVICES:
        command = BUILD["build_command"](builder, service, {**os.environ, "TAG": "test"})
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr[-4000:]
        found[service] = open_image(builder, command[command.index("--tag") + 1])
    yield found
    for image in found.values():
        close_image(image)


@pytest.fixture
def environments(
    nats_server: NatsServer, database_url: str, redis_url: str, tmp_path: Path
) -> dict[str, tuple[dict[str, str], dict[Path, str]]]:
    """What each service is told and what is mounted, as in the manifests."""
    apply_streams(nats_server.url, max_bytes=64 * 1024 * 1024)
    etc, spool, backups = tmp_path / "etc", tmp_path / "spool", tmp_path / "backups"
    for directory in (etc, spool, backups):
        directory.mkdir()
        os.chown(directory, USER, USER)
    write(etc / "keyring.json", [mint("acme", TENANT_SCOPES)[1]])
    (etc / "keyring.json").chmod(0o444)
    meters = ROOT / "libs/devstack/src/kgents_devstack/meters.yaml"
    (etc / "meters.yaml").write_text(meters.read_text())
    common = {
        "KGENTS_HOST": "127.0.0.1",
        "NATS_SERVERS": nats_server.url,
        "KGENTS_KEYRING_FILE": "/etc/kgents/keyring.json",
        "KGENTS_METERS_FILE": "/etc/kgents/meters.yaml",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "KGENTS_STRIPE_MODE": "test",
    }
    told: dict[str, tuple[dict[str, str], dict[Path, str]]] = {}
    for service in SERVICES:
        ports = {"KGENTS_PORT": str(free_port()), "KGENTS_OPERATIONS_PORT": str(free_port())}
        environment = {**common, **ports, "KGENTS_INSTANCE": service}
        told[service] = environment, {etc: "/etc/kgents"}
    told["api"][0]["KGENTS_SPOOL_DIRECTORY"] = "/var/lib/kgents/spool"
    told["api"][1][spool] = "/var/lib/kgents"
    told["backup"][0]["KGENTS_BACKUP_DIRECTORY"] = "/var/lib/kgents-backup"
    told["backup"][1][backups] = "/var/lib/kgents-backup"
    return told


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_says_who_it_is_and_how_it_is_stopped(images: Mapping[str, Image], service: str) -> None:
    """A user by number, the signal of an orderly stop, labels, a health check that needs no shell."""
    config = images[service].config

    assert config["User"] == f"{USER}:{USER}"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "/app/bin/python"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()
    }
    assert (labels["title"], labels["vendor"]) == (f"kgents-{service}", "kgents")
    assert labels["version"] == "test"
    assert labels["revision"] != "unknown"


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_runs_healthy_and_writes_nowhere_but_its_volumes(
    images: Mapping[str, Image],
    environments: dict[str, tuple[dict[str, str], dict[Path, str]]],
    service: str,
    tmp_path: Path,
) -> None:
    """On a root file system that refuses every write it becomes healthy; SIGTERM ends it with exit code 0."""
    environment, volumes = environments[service]
    arguments = images[service].config.get("Cmd") or ()
    pod = Pod(tmp_path / "pod", images[service], environment, volumes, arguments)

    with pod:
        assert f'"service": "{service}"' in pod.log_tail(5) or "service.started" in pod.log_tail(50)
        pod.signal(pod.stop_signal)
        code = pod.wait(60)

    assert code == 0, pod.log_tail()
    assert "Read-only file system" not in pod.log_path.read_text()


def test_the_job_of_the_meters_does_its_work_in_the_image(
    images: Mapping[str, Image], environments: dict[str, tuple[dict[str, str], dict[Path, str]]]
) -> None:
    """By a user whom no file of the image names."""
    environment, volumes = environments["metering"]
    command = images["metering"].command(["meters", "apply"], environment, volumes)

    for _ in range(2):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
    assert "nothing to do" in answer.stdout


async def test_the_door_s_image_also_lets_agents_in(images: Mapping[str, Image], tmp_path: Path) -> None:
    """Its role `agents`: healthy on a server that asks it, and an agent with a good key comes in."""
    seeds.make(tmp_path / "seeds")
    for file in (tmp_path / "seeds").iterdir():
        file.chmod(0o444)
    (tmp_path / "seeds").chmod(0o755)
    key, record = mint("acme", TENANT_SCOPES)
    write(tmp_path / "seeds" / "keyring.json", [record])
    (tmp_path / "seeds" / "keyring.json").chmod(0o444)
    rights = accounts(seeds.account_keys(tmp_path / "seeds"))
    with NatsServer(tmp_path / "nats", extra=rights) as server:
        told = {
            "KGENTS_HOST": "127.0.0.1",
            "KGENTS_PORT": str(free_port()),
            "KGENTS_OPERATIONS_PORT": str(free_port()),
            "NATS_SERVERS": server.url,
            "KGENTS_KEYRING_FILE": "/etc/kgents/keyring.json",
            "KGENTS_NATS_ISSUER_SEED_FILE": "/etc/kgents/issuer.nk",
            "KGENTS_NATS_RESPONDER_SEED_FILE": "/etc/kgents/agents.nk",
            "KGENTS_NATS_CUTTER_SEED_FILE": "/etc/kgents/cutter.nk",
        }
        with Pod(tmp_path / "pod", images["api"], told, {tmp_path / "seeds": "/etc/kgents"}, ["agents"]):
            agent = await nats.connect(server.url, token=key, inbox_prefix=b"_INBOX.acme", connect_timeout=60)
            await agent.flush(60)
            await agent.close()


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_in_an_image_can_be_written_by_its_user(images: Mapping[str, Image], service: str) -> None:
    """Also where the root file system were not read-only: its files are root's."""
    program = (
        "import os, sys; sys.exit(os.access('/app', os.W_OK) or os.access('/', os.W_OK) or os.getuid() == 0)"
    )
    command = images[service].command(["-c", program], {}, {}, entrypoint="/app/bin/python")

    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("module", ["faststream", "psycopg", "stripe"])
def test_the_door_s_image_has_no_worker_framework_no_database_driver_and_no_stripe(
    images: Mapping[str, Image], module: str
) -> None:
    """Looked for in the image itself."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is not None)"
    command = images["api"].command(["-c", program], {}, {}, entrypoint="/app/bin/python")

    assert subprocess.run(command, check=False).returncode == 0
