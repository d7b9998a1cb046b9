"""PADR: padding behind a row, with its mask, changes nothing that comes after it."""

from __future__ import annotations

from statecheck.histories.padding import padded
from statecheck.laws.contract import Evidence, Outcome, hold, probe
from statecheck.protocol import Capability


@probe("PADR", "Padding behind a row changes nothing after it", cost="each history, and each of its rows alone")
def right_padding(evidence: Evidence) -> Outcome:
    """Is a row that is padded on the right, with its mask, the row alone without padding, in the steps after it too?

    Pads hold drawn elements, not zeros, so that a mask that is not used shows. One row and several are drawn: some
    libraries ignore the mask of a batch of one. SKIP for a model whose calls take no mask.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> right_padding(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    Traceback (most recent call last):
    statecheck.errors.CapabilityMissing: the model has no capability 'mask': its calls take no mask
    """
    evidence.facts.require(Capability.MASK)
    return hold(evidence, "PADR", padded(evidence.facts, "right", fewest_steps=1))
