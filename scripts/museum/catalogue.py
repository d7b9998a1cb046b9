"""The exhibits: a bug, the model that shows it, the law it breaks, the releases that have it or are free of it."""

from __future__ import annotations

from typing import NamedTuple


class Exhibit(NamedTuple):
    """One bug in one family of models."""

    number: int  # exhibits of one bug share it
    reference: str
    family: str  # of `families`, or of `plain_keras`
    law: str
    bad: tuple[str, ...]  # the oldest release that has it and can be run, and the newest
    fixed: str  # the first release that is free of it; "" while there is none
    happens: str
    library: str = "transformers"
    plain: str = ""  # the function of the plain confirmation; the law in small letters if not said

    @property
    def id(self) -> str:
        """`1-mamba2`."""
        return f"{self.number}-{self.family}"

    @property
    def confirmation(self) -> str:
        """The name of the plain confirmation."""
        return self.plain or self.law.lower()

    def releases(self) -> list[tuple[str, bool]]:
        """(release, has the bug): `("transformers==4.44.0", True)`."""
        found = [(version, True) for version in self.bad] + ([(self.fixed, False)] if self.fixed else [])
        return [(f"{self.library}=={version}", bad) for version, bad in found]


_RESTART = "a call of several tokens on a warm state starts from zero states"
_ONE_BRANCH = "a cached call of several tokens takes the branch of one token"
_AXIS = "beyond one chunk, states are summed over the wrong axis: not causal"
_ORDER = "a prefill repeats groups in one order, a step in another"
_OUTER = "a cached step of batch B returns (B, B, V)"
_MASK = "the mask is dropped: pads enter the convolution and the state"
_ONE_ROW = "the mask is dropped in a batch of one"
_RIGHT = "pads on the right enter the state that a step starts from"
_BEAMS = "beam search goes on with the states of other beams"
_KEPT = "the state outlives the call: another batch size raises"
_CROP = "crop() shortens the keys and leaves the recurrent state where it was"
_SILENT = "keys and values: no law may be broken"
_GRAD = "the state is assigned in place: the backward pass raises"

EXHIBITS = (
    Exhibit(1, "transformers#46032", "mamba2", "CHUNK", ("4.44.0", "5.12.1"), "5.13.1", _ONE_BRANCH),
    Exhibit(2, "transformers#46741", "bamba", "CHUNK", ("4.51.3", "5.12.1"), "5.13.1", _RESTART),
    Exhibit(2, "transformers#46741", "granite-hybrid", "CHUNK", ("4.57.1", "5.12.1"), "5.13.1", _RESTART),
    Exhibit(2, "transformers#46741", "falcon-h1", "CHUNK", ("4.57.1", "5.12.1"), "5.15.1", _RESTART),
    Exhibit(3, "transformers#45513", "qwen3-next", "CHUNK", ("4.57.1", "5.6.2"), "5.8.1", _RESTART),
    Exhibit(4, "transformers#34817", "mamba2", "PREFIX", ("4.44.0", "4.47.1"), "4.48.0", _AXIS),
    Exhibit(5, "transformers#37533", "mamba2", "STEP", ("4.48.0", "4.51.3"), "4.57.1", _ORDER),
    Exhibit(6, "transformers#33567", "mamba2", "BATCH", ("4.44.0", "4.47.1"), "4.48.0", _OUTER),
    Exhibit(7, "transformers#31540", "mamba", "PADL", ("4.39.3", "4.44.2"), "4.45.0", _MASK),
    Exhibit(8, "transformers#46773", "mamba2", "PADL", ("4.44.0", "5.14.1"), "5.15.1", _ONE_ROW, plain="padl_one"),
    Exhibit(8, "transformers#46773", "bamba", "PADL", ("4.51.3", "5.14.1"), "5.15.1", _ONE_ROW, plain="padl_one"),
    Exhibit(9, "transformers#48256", "mamba", "PADR", ("4.45.0", "5.23.0"), "", _RIGHT),
    Exhibit(9, "transformers#48256", "mamba2", "PADR", ("4.48.0", "5.23.0"), "", _RIGHT),
    Exhibit(9, "transformers#48256", "qwen3-next", "PADR", ("4.57.1", "5.23.0"), "", _RIGHT),
    Exhibit(9, "transformers#48256", "lfm2", "PADR", ("4.57.1", "5.23.0"), "", _RIGHT),
    Exhibit(10, "transformers#46612", "mamba", "REORDER", ("4.42.4", "5.12.1"), "5.13.1", _BEAMS),
    Exhibit(10, "transformers#46612", "mamba2", "REORDER", ("4.44.0", "5.12.1"), "5.13.1", _BEAMS),
    Exhibit(11, "transformers#42627", "recurrent-gemma", "RESET", ("4.44.2", "4.57.1"), "5.0.0", _KEPT),
    Exhibit(12, "transformers (behaviour)", "bamba", "CROP", ("5.6.2", "5.13.1"), "5.14.1", _CROP),
    Exhibit(12, "transformers (behaviour)", "falcon-h1", "CROP", ("5.6.2", "5.13.1"), "5.14.1", _CROP),
    Exhibit(12, "transformers (behaviour)", "qwen3-next", "CROP", ("5.6.2", "5.13.1"), "5.14.1", _CROP),
    Exhibit(13, "keras#20875", "keras-lstm", "GRAD", ("3.8.0",), "3.9.0", _GRAD, library="keras"),
    Exhibit(13, "keras#20875", "keras-gru", "GRAD", ("3.8.0",), "3.9.0", _GRAD, library="keras"),
    Exhibit(0, "control", "llama", "PADR", (), "4.44.2", _SILENT),
    Exhibit(0, "control", "llama", "CROP", (), "5.23.0", _SILENT),
)
