"""What each image installs, by the lock file: its own service's dependencies, all of them and no others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kgents_devstack import alone

ROOT = Path(__file__).resolve().parents[2]
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"

# What an image must not carry: a worker framework, a database driver, Stripe, Redis.
FOREIGN = {
    "api": {"faststream", "fast-depends", "psycopg", "psycopg-binary", "stripe", "obstore"},
    "metering": {"redis", "stripe", "obstore"},
    "billing": {"obstore", "zstandard"},
    "backup": {"faststream", "fast-depends", "redis", "stripe", "httpx"},
}

# Imports every module of a service where only the given distributions can be found.
IMPORTING = """
import importlib, importlib.abc, importlib.metadata, pkgutil, re, sys

service, installed = sys.argv[1], set(sys.argv[2:])
canonical = lambda name: re.sub(r"[-_.]+", "-", name).lower()
owners = importlib.metadata.packages_distributions()

class Image(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        found = {canonical(d) for d in owners.get(name.partition(".")[0], ())}
        if found and not found & installed:
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

sys.meta_path.insert(0, Image())
package = importlib.import_module(service)
for module in pkgutil.walk_packages(package.__path__, service + "."):
    importlib.import_module(module.name)
print("whole")
"""


def installed_by(service: str) -> set[str]:
    """The distributions of the image: what its `uv sync` installs, by the lock file."""
    command = [UV, "export", "--quiet", "--frozen", "--no-dev", "--no-hashes", "--no-annotate", "--no-header"]
    answer = subprocess.run(
        [*command, "--package", f"kgents-{service}", "--no-emit-workspace"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.partition("==")[0].strip() for line in answer.stdout.splitlines() if "==" in line}


@pytest.mark.parametrize("service", FOREIGN)
def test_an_image_carries_nothing_of_another_service(service: str) -> None:
    """Else the door would be larger, start more slowly, and have more that can be attacked."""
    assert installed_by(service) & FOREIGN[service] == set()


@pytest.mark.parametrize("service", FOREIGN)
def test_an_image_carries_all_that_its_service_imports(service: str) -> None:
    """An extra that a service forgot would be seen only in its container: here everything is installed."""
    names = installed_by(service) | {"kgents-common", f"kgents-{service}"}

    answer = subprocess.run(
        [sys.executable, "-c", IMPORTING, f"kgents_{service}", *names],
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.stdout == "whole\n", answer.stderr


@pytest.mark.parametrize("service", FOREIGN)
def test_what_a_developers_process_does_without_its_image_has_not(service: str) -> None:
    """Else a test would run something that no image is."""
    assert installed_by(service) & set(alone.LACKS[f"kgents_{service}"]) == set()


# What nats-py found of aiohttp, told where the service would begin.
FINDING = """
import runpy, sys
from kgents_devstack import alone

def service(*_, **__):
    import nats.aio.transport
    print(nats.aio.transport.aiohttp)

runpy.run_module = service
alone.main()
"""


@pytest.mark.parametrize("service", FOREIGN)
def test_a_developers_process_does_without_it(service: str) -> None:
    """It is installed here, and found where nobody hides it."""
    command = [sys.executable, "-c", FINDING, f"kgents_{service}"]

    answer = subprocess.run(command, capture_output=True, text=True, check=False)

    assert answer.stdout == "None\n", answer.stderr
