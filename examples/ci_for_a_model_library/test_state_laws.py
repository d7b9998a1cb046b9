"""The laws of a state, as a test of the library's own: pytest runs one for each law."""

from typing import Any

from my_library import tiny

import statecheck as sc

KNOWN = {"CHUNK": "a second chunk starts from zero, issue 12"}


@sc.parametrize_with_checks([tiny()], suite="conformance", expected_failures=KNOWN)
def test_the_laws_of_a_state(model: Any, check: Any) -> None:
    check(model)
