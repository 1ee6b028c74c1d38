"""The custom resources that the manifests use, as their projects document them; what is not known is refused.

Read at external-secrets.io (API reference, `external-secrets.io/v1`), keda.sh (ScaledObject specification,
NATS JetStream scaler) and cert-manager.io (API reference, `cert-manager.io/v1`), November 2026.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Duration = Annotated[str, StringConstraints(pattern=r"^[0-9]+(s|m|h)$")]
# KEDA's trigger metadata are strings, numbers too.
Digits = Annotated[str, StringConstraints(pattern=r"^[0-9]+$")]


class Strict(BaseModel):
    """Unknown fields are errors, and a number is no string."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    """What we set of an object's metadata."""

    name: Name
    namespace: Name
    labels: dict[str, str]


class _StoreRef(Strict):
    kind: Literal["SecretStore", "ClusterSecretStore"]
    name: Name


class _Template(Strict):
    type: str


class _Target(Strict):
    name: Name
    creationPolicy: Literal["Owner", "Orphan", "Merge", "None"]  # noqa: N815 the API's name
    template: _Template | None = None


class _RemoteRef(Strict):
    key: str
    property: str | None = None


class _Data(Strict):
    secretKey: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]  # noqa: N815
    remoteRef: _RemoteRef  # noqa: N815


class _ExternalSecretSpec(Strict):
    refreshPolicy: Literal["Periodic", "OnChange", "CreatedOnce"]  # noqa: N815
    refreshInterval: Duration  # noqa: N815
    secretStoreRef: _StoreRef  # noqa: N815
    target: _Target
    data: Annotated[list[_Data], Field(min_length=1)]


class ExternalSecret(Strict):
    """A Secret that the operator copies from a store."""

    apiVersion: Literal["external-secrets.io/v1"]  # noqa: N815
    kind: Literal["ExternalSecret"]
    metadata: Metadata
    spec: _ExternalSecretSpec


class _JetStreamMetadata(Strict):
    natsServerMonitoringEndpoint: str  # noqa: N815
    account: str
    stream: str
    consumer: str
    lagThreshold: Digits  # noqa: N815
    activationLagThreshold: Digits  # noqa: N815
    useHttps: Literal["true", "false"] = "false"  # noqa: N815


class _Trigger(Strict):
    type: Literal["nats-jetstream"]
    metadata: _JetStreamMetadata


class _ScaleTarget(Strict):
    name: Name
    kind: str = "Deployment"
    apiVersion: str = "apps/v1"  # noqa: N815


class _ScaledObjectSpec(Strict):
    scaleTargetRef: _ScaleTarget  # noqa: N815
    minReplicaCount: Annotated[int, Field(ge=1)]  # noqa: N815
    maxReplicaCount: Annotated[int, Field(ge=1)]  # noqa: N815
    pollingInterval: Annotated[int, Field(ge=1)]  # noqa: N815
    cooldownPeriod: Annotated[int, Field(ge=0)]  # noqa: N815
    triggers: Annotated[list[_Trigger], Field(min_length=1)]

    @model_validator(mode="after")
    def _range(self) -> _ScaledObjectSpec:
        if self.minReplicaCount > self.maxReplicaCount:
            raise ValueError("minReplicaCount is above maxReplicaCount")
        return self


class ScaledObject(Strict):
    """A workload that KEDA scales."""

    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: _ScaledObjectSpec


class _Issuer(Strict):
    group: Literal["cert-manager.io"]
    kind: Literal["Issuer", "ClusterIssuer"]
    name: Name


class _PrivateKey(Strict):
    algorithm: Literal["RSA", "ECDSA", "Ed25519"]
    size: int
    rotationPolicy: Literal["Never", "Always"]  # noqa: N815


class _CertificateSpec(Strict):
    secretName: Name  # noqa: N815
    issuerRef: _Issuer  # noqa: N815
    commonName: Annotated[str, StringConstraints(max_length=64)]  # noqa: N815
    dnsNames: Annotated[list[str], Field(min_length=1)]  # noqa: N815
    usages: list[Literal["server auth", "client auth"]]
    duration: Duration
    renewBefore: Duration  # noqa: N815
    privateKey: _PrivateKey  # noqa: N815


class Certificate(Strict):
    """A certificate that cert-manager makes, and renews."""

    apiVersion: Literal["cert-manager.io/v1"]  # noqa: N815
    kind: Literal["Certificate"]
    metadata: Metadata
    spec: _CertificateSpec


KINDS: dict[str, type[Strict]] = {
    "Certificate": Certificate,
    "ExternalSecret": ExternalSecret,
    "ScaledObject": ScaledObject,
}


def check(found: Any) -> None:
    """Raise pydantic's ValidationError where the object is not what its project documents."""
    KINDS[found["kind"]].model_validate(found)
