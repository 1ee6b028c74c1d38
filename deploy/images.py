"""`make images`: build the four images with the builder at hand (docker, podman, buildah); it pushes nothing.

What it is told by the environment: `BUILDER` (else the first that works), `BUILD_FLAGS` (given to the builder
as they are), `BASE` and `UV_IMAGE` (else the Dockerfile's own), `REGISTRY` (`kgents`), `TAG` (the project's
version).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("api", "metering", "billing", "backup")
BUILDERS = {"docker": ("docker", "info"), "podman": ("podman", "info"), "buildah": ("buildah", "info")}


def builder_at_hand() -> str | None:
    """The first builder that answers; docker's client without its engine does not."""
    for name, question in BUILDERS.items():
        if shutil.which(name) and subprocess.run(question, capture_output=True, check=False).returncode == 0:
            return name
    return None


def version() -> str:
    """The project's version, which is the images' tag."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def build_command(builder: str, service: str, environment: dict[str, str]) -> list[str]:
    """The command that builds one service's image."""
    tag = environment.get("TAG") or version()
    command = [builder, "build"]
    if builder != "docker":  # OCI's format knows no health check
        command += ["--format", "docker", "--layers"]
    command += shlex.split(environment.get("BUILD_FLAGS", ""))
    arguments = {name: environment[name] for name in ("BASE", "UV_IMAGE") if environment.get(name)}
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, value in {"version": tag, "revision": _revision()}.items():
        command += ["--label", f"org.opencontainers.image.{name}={value}"]
    image = f"{environment.get('REGISTRY') or 'kgents'}/{service}:{tag}"
    return [*command, "--target", service, "--tag", image, str(ROOT)]


def _revision() -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


def main() -> int:
    """Build all, or the services named; 2 where there is no builder, 1 where a build fails."""
    builder = os.environ.get("BUILDER") or builder_at_hand()
    if builder is None:
        print(
            f"error: none of {', '.join(BUILDERS)} works here\nhint: install one, or set BUILDER",
            file=sys.stderr,
        )
        return 2
    for service in sys.argv[1:] or SERVICES:
        if subprocess.run(build_command(builder, service, dict(os.environ)), check=False).returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
