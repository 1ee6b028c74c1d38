"""The gateway's file, read strictly, and which of its routes a request takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

FILE = Path(__file__).resolve().parents[2] / "deploy" / "k8s" / "base" / "kong" / "kong.yml"


class Strict(BaseModel):
    """Unknown fields are errors; Kong would refuse to start."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _RateLimiting(Strict):
    minute: Annotated[int, Field(gt=0)]
    limit_by: Literal["ip"]
    policy: Literal["local"]
    fault_tolerant: bool


class _Size(Strict):
    allowed_payload_size: Annotated[int, Field(gt=0)]
    size_unit: Literal["megabytes"]
    require_content_length: bool


class _CorrelationId(Strict):
    header_name: str
    generator: Literal["uuid", "uuid#counter", "tracker"]
    echo_downstream: bool


class _Prometheus(Strict):
    status_code_metrics: bool
    latency_metrics: bool
    bandwidth_metrics: bool
    upstream_health_metrics: bool


class _OpenTelemetry(Strict):
    traces_endpoint: Annotated[str, Field(pattern="^http://")]
    sampling_rate: Annotated[float, Field(ge=0, le=1)]
    resource_attributes: dict[str, str]


CONFIGURATIONS: dict[str, type[Strict]] = {
    "rate-limiting": _RateLimiting,
    "request-size-limiting": _Size,
    "correlation-id": _CorrelationId,
    "prometheus": _Prometheus,
    "opentelemetry": _OpenTelemetry,
}


class Plugin(Strict):
    """One of the five we use; its configuration has a model of its own."""

    name: str
    config: dict[str, Any]

    def configuration(self) -> Any:
        """The configuration, validated."""
        return CONFIGURATIONS[self.name].model_validate(self.config)


class Route(Strict):
    """What comes in, by path and method."""

    name: str
    paths: Annotated[list[Annotated[str, Field(pattern=r"^~/.*\$$")]], Field(min_length=1)]
    methods: list[Literal["GET", "POST", "DELETE"]]
    strip_path: bool
    preserve_host: bool
    response_buffering: bool = True
    plugins: list[Plugin] = []

    def takes(self, method: str, path: str) -> bool:
        """Whether a request is this route's."""
        return method in self.methods and any(re.search("^" + p[1:], path) for p in self.paths)


class Service(Strict):
    """Where it goes; times are milliseconds between two reads or writes."""

    name: str
    url: Annotated[str, Field(pattern=r"^http://[a-z-]+\.kgents-triad\.svc:\d+$")]
    connect_timeout: int
    read_timeout: int
    write_timeout: int
    retries: int
    routes: list[Route]


class Gateway(Strict):
    """The whole file."""

    format_version: Annotated[Literal["3.0"], Field(alias="_format_version")]
    services: list[Service]
    plugins: list[Plugin]

    def taken(self, method: str, path: str) -> list[tuple[Service, Route]]:
        """Every route that takes a request: one, or none."""
        return [(s, r) for s in self.services for r in s.routes if r.takes(method, path)]


def load() -> Gateway:
    """The file of the manifests."""
    return Gateway.model_validate(yaml.safe_load(FILE.read_text()))
