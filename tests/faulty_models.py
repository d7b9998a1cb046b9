"""Factories of small models with real faults: `statecheck run faulty_models:NAME` from this folder.

The faults strike where the name says: in the factory, or in a forward call on a batch of more than three rows, which
the shared trace of S1 and S2 is the first to make. A fault `once` strikes only while the file that FAULT_MARK names
does not exist, and makes it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

VOCABULARY = 16
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


class TinyGRU(nn.Module):
    """One GRU layer of 8 units over 16 tokens; `strike` is called before a forward of more than three rows."""

    def __init__(self, strike: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)
        self.strike = strike
        self.state: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.strike is not None and len(inputs) > 3:
            self.strike()
        outputs, state = self.gru(self.embedding(inputs), None if self.state is None else self.state[None])
        self.state = state[0]
        return self.head(outputs)

    def get_states(self) -> dict[str, Tensor]:
        return {} if self.state is None else {"layers.0.h": self.state.clone()}

    def set_states(self, states: dict[str, Tensor] | None) -> None:
        self.state = states["layers.0.h"] if states else None


def build(strike: Callable[[], object] | None = None) -> nn.Module:
    torch.manual_seed(0)
    return TinyGRU(strike)


def once(strike: Callable[[], object]) -> Callable[[], object]:
    """Strike while the file FAULT_MARK does not exist."""

    def strike_once() -> None:
        mark = Path(os.environ["FAULT_MARK"])
        if not mark.exists():
            mark.touch()
            strike()

    return strike_once


def exit_now() -> None:
    os._exit(0)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def allocate_for_ever() -> None:
    held = []
    while True:
        held.append(torch.ones(8 * 2**20))  # 32 MiB, touched
        time.sleep(0.005)


def raise_error() -> None:
    raise ValueError(f"the gate\n  overflowed {ESCAPE}")


def print_and_read() -> None:
    """Escape codes to all that is a terminal in a plain script; standard input, if it holds anything, is taken."""
    print(ESCAPE, flush=True)
    print(ESCAPE, file=sys.stderr, flush=True)
    os.write(1, ESCAPE.encode())
    sys.stdin.read()


def start_a_child_and_sleep() -> None:
    """A child process that would outlive the model; its id goes into the file FAULT_MARK."""
    child = os.fork()
    if child == 0:
        sleep_for_ever()
    Path(os.environ["FAULT_MARK"]).write_text(str(child))
    sleep_for_ever()


def healthy() -> nn.Module:
    print(ESCAPE)
    return build()


def slow() -> nn.Module:
    """Healthy, and takes a few seconds for the shared trace."""
    return build(lambda: time.sleep(0.02))


def exits() -> nn.Module:
    return build(exit_now)


def exits_once() -> nn.Module:
    return build(once(exit_now))


def is_killed_once() -> nn.Module:
    return build(once(kill_itself))


def hangs_once() -> nn.Module:
    return build(once(sleep_for_ever))


def hangs_with_a_child() -> nn.Module:
    return build(start_a_child_and_sleep)


def allocates_once() -> nn.Module:
    return build(once(allocate_for_ever))


def calls_sys_exit() -> nn.Module:
    return build(lambda: sys.exit(0))


def raises() -> nn.Module:
    return build(raise_error)


def prints_and_reads() -> nn.Module:
    return build(print_and_read)


def factory_exits() -> nn.Module:
    exit_now()
    return build()


def factory_is_killed() -> nn.Module:
    kill_itself()
    return build()


def factory_hangs() -> nn.Module:
    sleep_for_ever()
    return build()


def factory_allocates() -> nn.Module:
    allocate_for_ever()
    return build()


def factory_raises() -> nn.Module:
    raise_error()
    return build()


def factory_calls_sys_exit() -> nn.Module:
    sys.exit(0)


def unseeded_and_dies_once() -> nn.Module:
    """Another model at every call, whatever the global seed is."""
    torch.seed()
    return TinyGRU(once(exit_now))
