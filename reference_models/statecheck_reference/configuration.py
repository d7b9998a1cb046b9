"""What the configurations of the reference models share: whole numbers of at least 1, and all keys, by name."""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)


def require_whole_numbers(config: Dataclass, what: str) -> None:
    """Raise ValueError that names the first field of `config` that is no whole number of at least 1."""
    for field in fields(config):
        value = getattr(config, field.name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{what}.{field.name}: expected a whole number of at least 1, found {value!r}")


def checked_mapping(cls: type[Config], config: Mapping[str, Any], what: str) -> Config:
    """The dataclass `cls` from a mapping that has each of its fields as a key, and no other.

    Raises ValueError that names the missing and the unknown keys; `what` begins the sentence.

    >>> from dataclasses import make_dataclass
    >>> checked_mapping(make_dataclass("Shape", ["width", "layers"]), {"width": 3, "depth": 2}, "shape")
    Traceback (most recent call last):
        ...
    ValueError: shape: expected the keys layers, width; missing: layers; unknown: depth
    """
    expected, found = {field.name for field in fields(cls)}, set(config)
    if expected != found:
        missing = ", ".join(sorted(expected - found)) or "none"
        unknown = ", ".join(sorted(map(str, found - expected))) or "none"
        raise ValueError(
            f"{what}: expected the keys {', '.join(sorted(expected))}; missing: {missing}; unknown: {unknown}"
        )
    return cls(**config)
