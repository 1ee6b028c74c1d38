"""Runs a service and begins it anew when a file of ours changes; for development in a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
LOOK_SECONDS = 0.3


def look() -> dict[Path, int]:
    """When each of our files was written."""
    return {
        path: path.stat().st_mtime_ns
        for folder in PACKAGES.glob("kgents_*")
        for path in folder.rglob("*.*")
        if path.suffix != ".pyc" and path.is_file()
    }


def main() -> int:
    """Until the service ends by itself or is told to."""
    command = [os.environ["RELOADS"], *sys.argv[1:]]
    seen, running = look(), subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: running.send_signal(signal.SIGTERM))
    while running.poll() is None:
        time.sleep(LOOK_SECONDS)
        now = look()
        if now != seen:
            seen = now
            running.send_signal(signal.SIGTERM)
            running.wait()
            running = subprocess.Popen(command)
    return running.returncode


if __name__ == "__main__":
    sys.exit(main())
