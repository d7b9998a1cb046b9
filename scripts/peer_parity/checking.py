"""All peers and our layers now, at sizes and numbers from a seed: relative errors, and an exit code."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch

from peer_parity.catalogue import SOURCES, Source
from peer_parity.comparison import Arrays, Peer, largest
from peer_parity.float64 import as_it_is, in_float64
from peer_parity.ours import OURS

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
UNITS = (1, 8)  # every other case is of small sizes, with what is peculiar to a size of 1


class Errors(NamedTuple):
    """The largest relative error of any output or state of some cases."""

    float64: float  # ours in float64 against the peer in float64
    float32: float  # ours in float32 against the peer in float64
    as_it_is: float  # ours in float32 against the peer's untouched code, in float32

    @property
    def small(self) -> bool:
        """Whether all are within the tolerance."""
        narrow = max(self.float32, self.as_it_is)
        return self.float64 <= TOLERANCE[torch.float64] and narrow <= TOLERANCE[torch.float32]


def check(names: Sequence[str], seed: int, cases: int) -> int:
    """Compare with each peer on so many cases and print the errors: 0 all small, 1 not, 2 a peer is missing."""
    missing = [name for name in names if not installed(SOURCES[name])]
    print(f"{'largest relative error':32} {'cases':>6} {'float64':>9} {'float32':>9} {'peer in float32':>16}")
    large = False
    for name in names:
        source = SOURCES[name]
        if name in missing:
            print(f"{name:32} not installed: pip install {source.distribution}")
            continue
        found = measure(name, seed, cases)
        large = large or not found.small
        title, verdict = f"{name} {version(source.distribution)}", "" if found.small else "  TOO LARGE"
        numbers = f"{cases:6} {found.float64:9.1e} {found.float32:9.1e} {found.as_it_is:16.1e}"
        print(f"{title:32} {numbers}{verdict}")
    return 1 if large else 2 if missing else 0


def installed(source: Source) -> bool:
    """Whether the library of a peer is here."""
    return importlib.util.find_spec(source.module) is not None


def measure(name: str, seed: int, cases: int) -> Errors:
    """The largest errors over so many cases that the seed draws; the peer runs now."""
    source, ours = SOURCES[name], OURS[name]
    errors = []
    for n, own in enumerate(np.random.default_rng(seed).integers(6, 2**31, cases).tolist()):
        case = source.draw(own, UNITS[n % len(UNITS)])
        exact = Peer(case, _wide(in_float64(source.run, case)))
        narrow = ours(exact, torch.float32)
        untouched = Peer(case, _wide(as_it_is(source.run, case)))
        wide = largest(exact, ours(exact, torch.float64))
        errors.append(Errors(wide, largest(exact, narrow), largest(untouched, narrow)))
    return Errors(*(max(column) for column in zip(*errors, strict=True)))


def _wide(arrays: Arrays) -> Arrays:
    return {name: array.double() for name, array in arrays.items()}
