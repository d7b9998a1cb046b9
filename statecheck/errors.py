"""The exceptions of statecheck, and the exit code that each one leads to.

    StatecheckError            3  could not judge
    +-- UsageError             2  a wrong option, suite, plan or output folder
    +-- InputRefused           4  a file, model or data set that is not taken
    |   +-- CheckpointRefused  4  a file that is not what it claims to be, or may not be opened
    |   +-- ContractError      4  a model that breaks the protocol (batch first, flat names, tensors)
    +-- CapabilityMissing      3  the model can't do what a check needs: that check is SKIP
    |   +-- NotOffered         3  the library has no such operation, or refuses it: nothing to hold a law on
    +-- ModelRaised            3  the model raised in a call that the protocol allows: that check is FAIL
    +-- NothingChecked         5  the plan held no item that ran

Every message says what was expected, what was found and what to do next. Errors gain context on the way up
with :meth:`StatecheckError.within`.

>>> error = UsageError("unknown item 'D9'").within("suite 'phase39'")
>>> str(error), error.exit_code
("suite 'phase39': unknown item 'D9'", 2)
"""

from __future__ import annotations

from typing import Self


class StatecheckError(Exception):
    """Base of all errors that statecheck raises on purpose."""

    exit_code = 3

    def within(self, context: str) -> Self:
        """The same error with `context` put before its message."""
        self.args = (f"{context}: {self.args[0]}", *self.args[1:])
        return self


class UsageError(StatecheckError):
    """A wrong option, suite, plan or output folder."""

    exit_code = 2


class InputRefused(StatecheckError):
    """A file, model or data set that statecheck does not take."""

    exit_code = 4


class CheckpointRefused(InputRefused):
    """A checkpoint that is not what it claims to be, or that may not be opened."""


class ContractError(InputRefused):
    """A model that breaks the protocol of :mod:`statecheck.protocol`."""


class CapabilityMissing(StatecheckError):
    """The model can't do what a check needs; the check becomes SKIP with this reason."""


class NotOffered(CapabilityMissing):
    """The library offers no such operation of its own, or refuses it clearly: there is nothing to hold a law on."""


class ModelRaised(StatecheckError):
    """The model under test raised in a call that the protocol allows; the check becomes FAIL with this reason."""


class NothingChecked(StatecheckError):
    """The plan held no item that ran."""

    exit_code = 5
