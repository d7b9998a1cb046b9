"""Code that the user names on the command line, or that a plug-in brings: imported and called, with its faults told.

Names of code come from the command line and from entry points, never from a data file.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from statecheck.errors import InputRefused, StatecheckError, UsageError
from statecheck.wording import one_line, raised


def find_code(name: str, option: str, *, working_directory: bool) -> Callable[..., Any]:
    """The function that "package.module:function" names; `option` ("MODEL", "--loader") is for messages.

    With `working_directory` the current directory is put at the end of the import path, where it can hide nothing.
    Raises :class:`UsageError` if there is no such module or function, and :class:`InputRefused` if the module raises.

    >>> find_code("math:sqrt", "MODEL", working_directory=False)(9)
    3.0
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"{option} {one_line(name, 120)!r}: expected package.module:function")
    if working_directory and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    module = guarded(f"{option} {name}: importing {module_name}", lambda: _import(module_name, option))
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            home = getattr(module, "__file__", None) or "a built-in module"
            raise UsageError(f"{option} {name}: {module_name} ({one_line(home)}) has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise InputRefused(f"{option} {name}: expected a function, found a {type(found).__name__}")
    return found


def _import(module_name: str, option: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"{option}: no module {one_line(error.name, 80)!r} is installed or lies in {one_line(os.getcwd())}"
            ) from None
        raise


def call_code(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the user's function. Raises :class:`InputRefused` with what it raised, or what it expects instead."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        takes = "no argument" if not arguments else "one argument, the path of the checkpoint"
        raise InputRefused(f"{name}: expected a function of {takes} ({one_line(error)})") from None
    except ValueError:  # built-in functions without a signature
        pass
    return guarded(name, lambda: function(*arguments))


def guarded(what: str, action: Callable[[], Any]) -> Any:
    """What `action` returns. What foreign code raises becomes one line; a KeyboardInterrupt passes through.

    >>> guarded("my factory", lambda: 1 / 0)
    Traceback (most recent call last):
    statecheck.errors.InputRefused: my factory raised ZeroDivisionError: division by zero; mend that code
    """
    try:
        return action()
    except InputRefused as error:
        error.within(one_line(what))
        raise
    except (StatecheckError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputRefused(f"{one_line(what)} raised {raised(error)}; mend that code") from error
