"""What a mutant is: one line of a module, changed."""

from __future__ import annotations

from dataclasses import dataclass

K, R = "statecheck_kernels", "statecheck_reference"


@dataclass(frozen=True)
class Mutant:
    """In `module`, `old`, a part of one line that is there once, becomes `new`.

    `subject` names the model that is made of it, `law` the one that ought to kill it.
    """

    name: str
    subject: str
    kind: str
    law: str
    module: str
    old: str
    new: str
