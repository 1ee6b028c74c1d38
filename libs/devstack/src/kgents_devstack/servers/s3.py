"""An S3 server (SeaweedFS) on loopback, with one access key; buckets are made by whoever needs them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from kgents_devstack.servers.process import Server, executable, free_port


class S3Server(Server):
    """One SeaweedFS with master, volume, filer and S3 in one process."""

    name = "s3"
    stop_seconds = 2.0  # it waits for idle connections otherwise

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.access_key = "kgents-access"
        self.secret_key = "kgents-secret-for-loopback"

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        (self.directory / "s3-data").mkdir(exist_ok=True)
        (self.directory / "s3.json").write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "kgents",
                            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        }
                    ]
                }
            )
        )

    def _command(self) -> Sequence[str]:
        return [
            executable("weed"),
            "server",
            f"-dir={self.directory / 's3-data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={free_port()}",
            f"-master.port.grpc={free_port()}",
            f"-volume.port={free_port()}",
            f"-volume.port.grpc={free_port()}",
            "-volume.max=2000",  # a bucket takes seven volumes at once, empty ones cost nothing
            "-master.volumeSizeLimitMB=256",
            "-filer",
            f"-filer.port={free_port()}",
            f"-filer.port.grpc={free_port()}",
            "-s3",
            f"-s3.port={self.port}",
            f"-s3.port.grpc={free_port()}",
            # Table catalogues on fixed ports, which a second server on this machine would not get.
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.directory / 's3.json'}",
        ]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code < 500
