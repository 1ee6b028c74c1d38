"""Redis with failover: what the component keeps of the base, and its scripts with real servers under TLS.

The wheels' Redis is built without TLS, so the servers are the machine's, where it has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from kgents_common.redis_client import make_redis
from kgents_devstack import certificates
from kgents_devstack.certificates import Authority
from kgents_devstack.servers import Server, free_port
from kgents_devstack.waiting import reached

from .rendered import WITH_SENTINELS, Object, Workload, find, overlay

OBJECTS = overlay(WITH_SENTINELS)
SET = Workload(find(OBJECTS, "StatefulSet", "triad-redis", "kgents-triad"))
NAME = "triad-redis"
NODES = [f"triad-redis-{n}.triad-redis-nodes.kgents-triad.svc" for n in range(3)]


def container(name: str) -> Object:
    """A container of the pods."""
    return next(one for one in SET.containers if one["name"] == name)


def redis_url() -> str:
    """What the services are told."""
    told = {
        variable["value"]
        for name in ("kgent-api", "kgent-agents", "kgent-billing")
        for variable in Workload(find(OBJECTS, "Deployment", name)).pod["containers"][0]["env"]
        if variable["name"] == "REDIS_URL"
    }
    (url,) = told
    return str(url)


def test_each_server_is_as_the_base_has_it_and_its_sentinel_is_of_the_same_image() -> None:
    """128 MB, allkeys-lru, nothing kept; only how it starts and ends is another."""
    base = Workload(find(overlay("production"), "Deployment", "triad-redis"))
    before, after = base.pod["containers"][0], container("redis")

    for part in ("args", "image", "ports", "resources", "securityContext", "startupProbe", "livenessProbe"):
        assert after[part] == before[part], part
    assert container("sentinel")["image"] == after["image"]
    assert [v for v in SET.pod["volumes"] if not set(v) & {"secret", "configMap", "emptyDir"}] == []
    assert SET.claims == []


def test_the_single_server_is_gone_and_the_services_are_told_of_all_sentinels() -> None:
    """Three of them, so that two are a majority; each by the name that the scripts have."""
    names = [(o["kind"], o["metadata"]["name"]) for o in OBJECTS]
    sentinels = ",".join(f"{node}:26379" for node in NODES)

    assert ("Deployment", NAME) not in names
    assert ("Service", NAME) not in names
    assert SET.source["spec"]["replicas"] == len(NODES)
    assert redis_url().startswith(f"rediss+sentinel://{sentinels}/{NAME}/0?")
    assert f'NODES="{" ".join(NODES)}"' in scripts()["nodes.sh"]


def scripts() -> Mapping[str, str]:
    """By file name."""
    found: Mapping[str, str] = find(OBJECTS, "ConfigMap", "triad-redis-scripts")["data"]
    return found


class Part(Server):
    """One container of a pod: its command and arguments, with paths, ports and names laid elsewhere."""

    def __init__(self, pod: Pod, name: str, port: int, *more: str) -> None:
        super().__init__(pod.directory)
        self.name, self.port, self._pod, self._more = name, port, pod, more

    def _command(self) -> Sequence[str]:
        told = [*container(self.name)["command"], *container(self.name)["args"]]
        return [*map(self._pod.moved, told), "--bind", self._pod.address, *self._more]

    def _environment(self) -> Mapping[str, str]:
        return self._pod.environment


class Pod:
    """A server and its sentinel on a loopback address of their own."""

    def __init__(self, directory: Path, number: int, redis_port: int, sentinel_port: int) -> None:
        self.directory, self.address = directory / str(number), f"127.0.0.{number + 1}"
        self._moves = {
            **{node: f"127.0.0.{n + 1}" for n, node in enumerate(NODES)},
            "/etc/redis-sentinel": str(self.directory),
            "/var/lib/sentinel": str(self.directory),
            "/etc/redis-tls": str(directory),
            "/etc/kgents/ca": str(directory),
            "26379": str(sentinel_port),
            "6379": str(redis_port),
        }
        self.directory.mkdir()
        for name, text in scripts().items():
            (self.directory / name).write_text(self.moved(text))
        self.redis = Part(self, "redis", redis_port, "--dir", str(self.directory))
        self.sentinel = Part(self, "sentinel", sentinel_port)
        self._tls = {"ssl": True, "ssl_ca_certs": str(directory / "ca.crt"), "decode_responses": True}

    @property
    def environment(self) -> Mapping[str, str]:
        """As both containers have it."""
        return {**os.environ, "REDIS_NODE": self.address}

    def moved(self, text: str) -> str:
        """With what is here in place of what is in a pod."""
        return re.sub("|".join(map(re.escape, self._moves)), lambda found: self._moves[found[0]], text)

    def server(self) -> Redis:
        """A client of this server alone."""
        return Redis(host=self.address, port=self.redis.port, **self._tls)

    def primary(self) -> str | None:
        """Whom its sentinel names; None where it does not answer."""
        with contextlib.suppress(RedisError, OSError):
            asked = Redis(host=self.address, port=self.sentinel.port, **self._tls)
            return str(asked.sentinel_get_master_addr_by_name(NAME)[0])
        return None

    def sees_all(self) -> bool:
        """Whether its sentinel knows two replicas and two others of its kind, and all of them live."""
        with contextlib.suppress(RedisError, OSError):
            asked = Redis(host=self.address, port=self.sentinel.port, **self._tls)
            known = asked.sentinel_master(NAME)
            replicas = asked.sentinel_slaves(NAME)
            is_whole = (known["num-slaves"], known["num-other-sentinels"]) == (2, 2)
            return is_whole and not any(r["is_sdown"] or r["is_disconnected"] for r in replicas)
        return False

    def has(self, key: str, value: str) -> bool:
        """Whether its server holds this."""
        with contextlib.suppress(RedisError, OSError):
            return bool(self.server().get(key) == value)
        return False

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """The container that looks for a renewed certificate, while something is done."""
        here = f"redis-cli -h {self.address} -p {self.redis.port} "
        command = self.moved(container("certificates")["args"][0]).replace("redis-cli ", here)
        process = subprocess.Popen(["sh", "-c", command], env={**os.environ, "LOOK_SECONDS": "0.2"})
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("redis-server") is None or not sys.platform.startswith("linux"),
    reason="this machine has no redis-server, or no loopback address but one",
)
async def test_three_pods_agree_on_a_primary_lose_it_and_hand_over(tmp_path: Path) -> None:
    """The manifest's own scripts and arguments, and a client with the URL that the services are told."""
    authority, ports = Authority(), (free_port(), free_port())
    addresses = [f"127.0.0.{n + 1}" for n in range(3)]
    certificates.write(tmp_path, authority.issue(NAME, addresses), authority.certificate)
    pods = [Pod(tmp_path, number, *ports) for number in range(3)]

    def named() -> set[str | None]:
        return {pod.primary() for pod in pods}

    def the_primary() -> Pod:
        (address,) = named()
        return next(pod for pod in pods if pod.address == address)

    with contextlib.ExitStack() as started:
        for pod in pods:
            for part in (pod.redis, pod.sentinel):
                part.begin()
                started.callback(part.stop)
        await reached(lambda: all(pod.sees_all() for pod in pods), state=lambda: pods[0].redis.log_tail())
        assert named() == {pods[0].address}
        ours = make_redis(pods[0].moved(redis_url()), timeout=timedelta(seconds=30))

        async def writes(key: str) -> bool:
            with contextlib.suppress(RedisError, OSError):
                return bool(await ours.set(key, "written"))
            return False

        await ours.set("session", "kept")
        await reached(lambda: all(pod.has("session", "kept") for pod in pods))

        # It dies and is started again at once, empty: what it held is with the others, and stays.
        pods[0].redis.kill()
        pods[0].redis.begin()
        await reached(lambda: named() in ({addresses[1]}, {addresses[2]}), state=pods[0].redis.log_tail)
        await reached(lambda: writes("after a death"))
        assert await ours.get("session") == "kept"
        await reached(lambda: pods[0].has("after a death", "written"))
        await reached(lambda: all(pod.sees_all() for pod in pods))

        # A pod that is made anew knows nothing, and is the same to the others.
        pods[0].sentinel.kill()
        (pods[0].directory / "sentinel.conf").unlink()
        pods[0].sentinel.begin()
        await reached(lambda: all(pod.sees_all() for pod in pods))
        assert pods[0].primary() == pods[1].primary() != pods[0].address

        # A pod that ends: its sentinel at once, its server after it handed over.
        leaving = the_primary()
        leaving.sentinel.stop()
        script = str(leaving.directory / "leave.sh")
        assert subprocess.run(["sh", script], env=leaving.environment, check=False).returncode == 0
        assert len(named() - {None, leaving.address}) >= 1
        leaving.redis.stop()
        await reached(lambda: writes("after a farewell"))
        assert await ours.get("session") == "kept"
        leaving.redis.begin()
        leaving.sentinel.begin()
        await reached(lambda: all(pod.sees_all() for pod in pods) and len(named()) == 1)
        assert the_primary() is not leaving

        # A renewed certificate: the server takes it up, the sentinel ends and is started again.
        with pods[0].renewing():
            await asyncio.sleep(1)
            before = ssl.get_server_certificate((pods[0].address, ports[0]))
            certificates.write(tmp_path, authority.issue(NAME, addresses), authority.certificate)
            await reached(lambda: ssl.get_server_certificate((pods[0].address, ports[0])) != before)
            await reached(lambda: pods[0].sentinel.exit_code == 0)
            pods[0].sentinel.begin()
        await reached(lambda: pods[0].sees_all())
        assert ssl.get_server_certificate((pods[0].address, ports[1])) != before
        assert await writes("after a renewal")
        await ours.aclose()
