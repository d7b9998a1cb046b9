"""What the configurations of the reference models share: values of the right type, and all keys, by name."""

from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)


def require_whole_numbers(config: Dataclass, what: str, least: Mapping[str, int] | None = None) -> None:
    """Raise ValueError that names the first field of type int that holds no whole number of at least 1.

    `least` gives some fields another bound. Fields of other types are not looked at.
    """
    for field in fields(config):
        if field.type not in (int, "int"):
            continue
        value, bound = getattr(config, field.name), (least or {}).get(field.name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ValueError(f"{what}.{field.name}: expected a whole number of at least {bound}, found {value!r}")


def require_multiple(config: Dataclass, what: str, whole: str, part: str) -> None:
    """Raise ValueError unless the field `whole` is a multiple of the field `part`."""
    if getattr(config, whole) % getattr(config, part):
        raise ValueError(
            f"{what}.{whole}: expected a multiple of {part} = {getattr(config, part)}, found {getattr(config, whole)}"
        )


def checked_mapping(cls: type[Config], config: Mapping[str, Any], what: str, *, later: Collection[str] = ()) -> Config:
    """The dataclass `cls` from a mapping that has each of its fields as a key, and no other.

    Fields in `later` came after the first checkpoints: where they are missing they have their defaults, which say what
    a model was before. Raises ValueError that names the missing and the unknown keys; `what` begins the sentence.

    >>> from dataclasses import make_dataclass
    >>> checked_mapping(make_dataclass("Shape", ["width", "layers"]), {"width": 3, "depth": 2}, "shape")
    Traceback (most recent call last):
        ...
    ValueError: shape: expected the keys layers, width; missing: layers; unknown: depth
    """
    expected, found = {field.name for field in fields(cls)}, set(config)
    if not expected - set(later) <= found <= expected:
        missing = ", ".join(sorted(expected - found - set(later))) or "none"
        unknown = ", ".join(sorted(map(str, found - expected))) or "none"
        raise ValueError(
            f"{what}: expected the keys {', '.join(sorted(expected))}; missing: {missing}; unknown: {unknown}"
        )
    return cls(**config)
