"""`make manifests` and `make render`: the overlays as a cluster gets them, and what a change makes of them.

Rendered by the kustomize of the `kubectl` that the lock file pins; no cluster is asked, nothing is applied.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = ("local", "production", "dr")
OUTPUT = ROOT / "dist" / "manifests"


def kubectl() -> str:
    """The pinned client, beside this Python."""
    return str(Path(sys.executable).parent / "kubectl")


def render(directory: Path) -> str:
    """One kustomization as YAML documents.

    Raises:
        subprocess.CalledProcessError: It cannot be rendered; `stderr` says why.
    """
    command = [kubectl(), "kustomize", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def overlay(name: str, root: Path = ROOT) -> str:
    """One overlay of a tree; empty where that tree has none of that name."""
    directory = root / "deploy" / "k8s" / "overlays" / name
    return render(directory) if directory.is_dir() else ""


def difference(before: Path, after: Path = ROOT, overlays: Sequence[str] = OVERLAYS) -> str:
    """What lies between two trees' rendered overlays, as a unified diff; empty where nothing does."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        for name in overlays:
            files = [Path(directory) / side / f"{name}.yaml" for side in ("before", "after")]
            for file, tree in zip(files, (before, after), strict=True):
                file.parent.mkdir(exist_ok=True)
                file.write_text(overlay(name, tree))
            command = [
                "git",
                "diff",
                "--no-index",
                "--no-color",
                *(str(f.relative_to(directory)) for f in files),
            ]
            answer = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            found.append(answer.stdout)
    return "".join(found)


def _write() -> int:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in OVERLAYS:
        (OUTPUT / f"{name}.yaml").write_text(overlay(name))
        print(OUTPUT.relative_to(ROOT) / f"{name}.yaml")
    return 0


def _compare(reference: str) -> int:
    with tempfile.TemporaryDirectory() as directory:
        archive = ["git", "archive", reference, "--", "deploy"]
        packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=False)
        if packed.returncode and b"did not match" not in packed.stderr:
            print(f"error: {packed.stderr.decode().strip()}", file=sys.stderr)
            return 2
        if packed.stdout:
            subprocess.run(["tar", "--extract", "--directory", directory], input=packed.stdout, check=True)
        print(difference(Path(directory)), end="")
    return 0


def main() -> int:
    """Render or compare; 1 where an overlay cannot be rendered, 2 where the reference is unknown."""
    parser = argparse.ArgumentParser(prog="deploy/manifests.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="render every overlay into dist/manifests")
    compare = commands.add_parser("compare", help="the rendered difference to another commit")
    compare.add_argument("reference", help="a commit, a branch or a tag")
    arguments = parser.parse_args()
    try:
        return _write() if arguments.command == "write" else _compare(arguments.reference)
    except subprocess.CalledProcessError as error:
        print(f"error: {error.stderr.strip()}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
