"""Stripe's OpenAPI as its own library carries it: whether a JSON object is one of the current version.

The library's classes are generated from the OpenAPI document of its pinned version: a field is annotated with
its type, `Optional` where it may be null or absent, `Literal` where it is an enumeration (beside `str`, for
values that are younger than the library: here they are errors).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, ForwardRef, Literal, TypeVar, Union

import stripe
from stripe._object_classes import OBJECT_CLASSES
from stripe._stripe_object import StripeObject, UntypedStripeObject

# Names that the library gives its classes inside the annotations of others.
_ALIASES = {"CardResource": "Card"}


def faults(thing: Mapping[str, Any]) -> list[str]:
    """What is wrong with an object of the current version: each fault with its path; empty for a good one."""
    return list(_object(thing, _class_of(str(thing.get("object"))), str(thing.get("object"))))


def event_faults(event: Mapping[str, Any]) -> list[str]:
    """What is wrong with a snapshot event, its object, and the names of its previous attributes."""
    thing = event["data"]["object"]
    known = _fields(_class_of(str(thing.get("object"))))
    previous = event["data"].get("previous_attributes") or {}
    unknown = [
        f"event.data.previous_attributes.{name}: no such field" for name in previous if name not in known
    ]
    return [*faults(event), *faults(thing), *unknown]


def _class_of(kind: str) -> type[StripeObject]:
    if kind == "list":
        return stripe.ListObject
    if kind not in OBJECT_CLASSES:
        raise AssertionError(f"Stripe has no object {kind!r}")
    module, name = OBJECT_CLASSES[kind]
    made: type[StripeObject] = getattr(import_module(module), name)
    return made


@cache
def _fields(of: type) -> dict[str, Any]:
    """Every field of a class and its annotation."""
    found: dict[str, Any] = {}
    for parent in reversed(of.__mro__):
        if parent.__module__.startswith("stripe.") and parent is not StripeObject:
            found |= {
                name: ForwardRef(kind) if isinstance(kind, str) else kind
                for name, kind in inspect.get_annotations(parent).items()
                if typing.get_origin(kind) is not ClassVar and not name.startswith("_")
            }
    return found


def _object(thing: object, of: type, path: str) -> Iterator[str]:
    if not isinstance(thing, Mapping):
        yield f"{path}: an object is wanted"
        return
    fields = _fields(of)
    for name, value in thing.items():
        if name in fields:
            yield from _value(value, fields[name], f"{path}.{name}")
        elif (of, name) != (stripe.ListObject, "object"):
            yield f"{path}.{name}: no such field"
    for name, kind in fields.items():
        if name not in thing and not _allows(kind, type(None)):
            yield f"{path}.{name}: missing"


def _value(value: object, kind: Any, path: str) -> Iterator[str]:
    options = _options(kind)
    if value is None:
        if type(None) not in options:
            yield f"{path}: null"
        return
    literals = [
        word for option in options if typing.get_origin(option) is Literal for word in option.__args__
    ]
    if literals and isinstance(value, str | bool):
        if value not in literals:
            yield f"{path}: {value!r} is none of its values"
        return
    wanted = [option for option in options if _is_like(value, option)]
    if not wanted:
        yield f"{path}: {type(value).__name__} is not {kind}"
        return
    yield from _inside(value, wanted[0], path)


def _inside(value: object, kind: Any, path: str) -> Iterator[str]:
    if kind is Any or isinstance(kind, TypeVar):
        return  # of a list's members, the list's own argument tells
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if isinstance(value, list):
        for place, entry in enumerate(value):
            yield from _value(entry, arguments[0], f"{path}[{place}]")
    elif isinstance(value, Mapping):
        if origin is UntypedStripeObject:
            for name, entry in value.items():
                yield from _value(entry, arguments[0], f"{path}.{name}") if arguments[0] is not Any else ()
            return
        resource = _named(kind) if isinstance(kind, ForwardRef) else origin
        yield from _object(value, resource, path)
        if origin is stripe.ListObject and isinstance(value.get("data"), list):
            for place, entry in enumerate(value["data"]):
                yield from _value(entry, arguments[0], f"{path}.data[{place}]")


def _is_like(value: object, kind: Any) -> bool:
    """Whether a value is of the kind's outer type."""
    if kind is Any or isinstance(kind, TypeVar):
        return True
    origin = typing.get_origin(kind) or kind
    if isinstance(kind, ForwardRef) or (isinstance(origin, type) and issubclass(origin, StripeObject)):
        return isinstance(value, Mapping)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(origin, type) and isinstance(value, origin)


def _options(kind: Any) -> tuple[Any, ...]:
    """What a value may be: the members of a union, of those inside it too."""
    if typing.get_origin(kind) is not Union:
        return (kind,)
    return tuple(option for member in typing.get_args(kind) for option in _options(member))


def _allows(kind: Any, wanted: type) -> bool:
    return wanted in _options(kind)


def _named(reference: ForwardRef) -> type:
    """The class a name in an annotation stands for."""
    name = reference.__forward_arg__
    found = getattr(stripe, _ALIASES.get(name, name), None)
    if found is None:
        raise AssertionError(f"shapes: the library's name {name!r} is not known here")
    made: type = found
    return made
