"""A built image as it would run in a pod: by number, on a root file system that cannot be written to."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgents_devstack.servers.process import Server

# A root directory of its own, read-only but for /tmp and what is mounted; the network is the machine's.
CONFINED = """
set -eu
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,size=16m tmpfs "$root/tmp"
mkdir -p "$root/dev" && mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2; done
shift
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """One image of one builder.

    Attributes:
        mounted: Where buildah laid its files; empty with docker and podman, which run it themselves.
    """

    builder: str
    name: str
    config: Mapping[str, Any]
    mounted: str = ""

    def command(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        volumes: Mapping[Path, str],
        entrypoint: str | None = None,
    ) -> list[str]:
        """What runs it in the foreground, confined as in a pod."""
        if not self.mounted:
            command = [self.builder, "run", "--rm", "--init=false", "--read-only", "--network", "host"]
            command += ["--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
            for path, inside in volumes.items():
                command += ["--volume", f"{path}:{inside}"]
            for key, value in environment.items():
                command += ["--env", f"{key}={value}"]
            command += ["--entrypoint", entrypoint] if entrypoint else []
            return [*command, self.name, *arguments]
        inside = dict(variable.split("=", 1) for variable in self.config["Env"])
        mounts = [part for path, target in volumes.items() for part in (str(path), target)]
        process = [entrypoint] if entrypoint else self.config["Entrypoint"]
        variables = [f"{key}={value}" for key, value in {**inside, **environment}.items()]
        user = self.config["User"]
        return [
            *("unshare", "--mount", "sh", "-c", CONFINED, "confined", self.mounted, user, *mounts, "--"),
            *("/usr/bin/env", "-i", *variables, *process, *arguments),
        ]


def open_image(builder: str, name: str) -> Image:
    """Read an image's configuration, and with buildah lay its files."""
    if builder != "buildah":
        answer = json.loads(_output([builder, "image", "inspect", name]))[0]["Config"]
        return Image(builder, name, answer)
    container = _output(["buildah", "from", "--pull-never", name])
    inspected = json.loads(_output(["buildah", "inspect", "--type", "image", name]))
    return Image(builder, container, inspected["Docker"]["config"], _output(["buildah", "mount", container]))


def close_image(image: Image) -> None:
    """Forget what `open_image` laid."""
    if image.mounted:
        subprocess.run(["buildah", "rm", image.name], capture_output=True, check=False)


def _output(command: Sequence[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {answer.stderr}")
    return answer.stdout.strip()


@dataclass
class Pod(Server):
    """One image running with what its pod would give it; ready when its own health check passes."""

    directory: Path
    image: Image
    environment: Mapping[str, str]
    volumes: Mapping[Path, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__init__(self.directory)
        self.name = self.image.name

    def _command(self) -> Sequence[str]:
        return self.image.command(self.arguments, self.environment, self.volumes)

    def _is_ready(self) -> bool:
        _, program, *check = self.image.config["Healthcheck"]["Test"]
        looking = self.image.command(check, self.environment, {}, entrypoint=program)
        return subprocess.run(looking, capture_output=True, check=False).returncode == 0
