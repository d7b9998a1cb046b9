"""A copy of the packages with one line changed: compiled from changed text, held in memory, gone afterwards.

The copy has names of its own (`planted3_statecheck_kernels` ...), so that it lives beside the packages themselves and
shares nothing with them. It has neither the compiled nor the GPU form of the kernels: what runs is the pure-torch form,
whose lines can be changed.
"""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from mutation.rows import Mutant

PACKAGES = ("statecheck_kernels", "statecheck_reference")
LEFT_OUT = ("statecheck_kernels.cpu", "statecheck_kernels.triton_form")
#: Without it every copy would warn that the compiled form is not there.
PURE = ("statecheck_kernels.forms", '{"cuda": "triton", "cpu": "cpu"}.get', "{}.get")

Load = Callable[[str], ModuleType]
_numbers = itertools.count()


def text_of(module: str) -> str:
    """The source of a module as it is on disk."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def changed(text: str, old: str, new: str) -> str:
    """`text` with `new` for `old`. Raises ValueError where `old` is not there just once, or is no part of one line.

    >>> changed("a = 1\\nb = 2", "= 2", "= 3")
    'a = 1\\nb = 3'
    """
    if (times := text.count(old)) != 1 or "\n" in old + new:
        raise ValueError(f"expected a part of one line that is there once, found {old!r} {times} times")
    return text.replace(old, new)


@contextmanager
def planted(mutant: Mutant | None) -> Iterator[Load]:
    """While it is open: a function that loads a module of the copy by its own name (None: nothing is changed)."""
    copy = _Copy(f"planted{next(_numbers)}_", [] if mutant is None else [(mutant.module, mutant.old, mutant.new)])
    sys.meta_path.insert(0, copy)
    try:
        yield lambda name: importlib.import_module(copy.tag + name)
    finally:
        sys.meta_path.remove(copy)
        for name in [name for name in sys.modules if name.startswith(copy.tag)]:
            del sys.modules[name]


class _Copy(MetaPathFinder, Loader):
    """Finds the modules whose name begins with `tag`, and makes them from the changed text of the others."""

    def __init__(self, tag: str, changes: Sequence[tuple[str, str, str]]) -> None:
        self.tag = tag
        self.changes = [PURE, *changes]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.removeprefix(self.tag)
        if name == fullname or name in LEFT_OUT:
            return None
        original = find_spec(name)
        if original is None:
            return None
        is_package = original.submodule_search_locations is not None
        return spec_from_loader(fullname, self, origin=original.origin, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.removeprefix(self.tag)
        text = text_of(name)
        for where, old, new in self.changes:
            text = changed(text, old, new) if where == name else text
        own = re.sub(rf"\b({'|'.join(PACKAGES)})\b", self.tag + r"\1", text)
        module.__file__ = None if module.__spec__ is None else module.__spec__.origin
        exec(compile(own, module.__name__, "exec"), vars(module))
