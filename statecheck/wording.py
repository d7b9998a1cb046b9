"""Words for one-line messages: names and errors that came from files and foreign code are data, not terminal codes."""

from __future__ import annotations

from collections.abc import Collection


def one_line(text: object, limit: int = 300) -> str:
    r"""`text` on one printable line of at most `limit` characters: line breaks and escape codes become spaces.

    >>> one_line("first\nsecond \x1b[31mred")
    'first second [31mred'
    """
    printable = "".join(character if character.isprintable() else " " for character in str(text)[: 4 * limit])
    flat = " ".join(printable.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def listed(names: Collection[object], limit: int = 5) -> str:
    """The first `limit` names and how many more there are.

    >>> listed(["a", "b", "c"], limit=2), listed([])
    ('a, b and 1 more', 'none')
    """
    shown = ", ".join(one_line(name, 80) for name, _ in zip(names, range(limit), strict=False))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"


def raised(error: BaseException) -> str:
    """What an exception says, on one line.

    >>> raised(ValueError("two\\nlines")), raised(KeyError())
    ('ValueError: two lines', 'KeyError')
    """
    message = one_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
