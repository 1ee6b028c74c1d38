"""Every overlay renders, and every object is what its schema says, unknown fields refused."""

from __future__ import annotations

import json
from typing import Any

import kubernetes_validate
import pytest
from pydantic import ValidationError

from . import custom_resources
from .rendered import COMBINED, Object, find, is_custom, name_of, overlay

# The oldest Kubernetes the manifests are for (native sidecars), and the newest that the schemas know.
VERSIONS = ("1.29", pytest.param("1.37", marks=pytest.mark.long))


def built_in() -> list[Object]:
    """Every object that some overlay has, or one with a component, once."""
    distinct = {json.dumps(o): o for name in COMBINED for o in overlay(name) if not is_custom(o)}
    return list(distinct.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_in_strict_mode(version: str) -> None:
    """Kubernetes' own schemas: no field they do not know, none of a wrong type, no API that is gone."""
    faults: dict[str, str] = {}
    for found in built_in():
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults[name_of(found)] = f"{list(error.path)}: {error.message}"

    assert faults == {}


def test_every_custom_resource_is_as_its_project_documents_it() -> None:
    """Unknown fields, wrong enums, numbers where strings must be are refused."""
    found = [o for name in COMBINED for o in overlay(name) if is_custom(o)]

    assert {o["kind"] for o in found} == {"Certificate", "ExternalSecret", "ScaledObject"}
    for resource in found:
        custom_resources.check(resource)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "unheard"), 1),
        (("spec", "refreshPolicy"), "Sometimes"),
        (("spec", "refreshInterval"), 300),
        (("spec", "data"), []),
    ],
)
def test_a_wrong_custom_resource_is_refused(path: tuple[str, ...], value: Any) -> None:
    """So that the check above means something."""
    wrong = json.loads(json.dumps(find(overlay("production"), "ExternalSecret", "kgent-api")))
    custom_resources.check(wrong)
    wrong[path[0]][path[1]] = value

    with pytest.raises(ValidationError):
        custom_resources.check(wrong)


@pytest.mark.parametrize("name", COMBINED)
def test_no_object_is_there_twice(name: str) -> None:
    """The second of two of a name would win in silence."""
    names = [name_of(found) for found in overlay(name)]

    assert sorted(names) == sorted(set(names))
