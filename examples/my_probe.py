"""A probe of one's own: is the state spread over its units, or has one unit swallowed the rest?

python examples/my_probe.py        # checks a small GRU with examples/my_suite.toml
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import statecheck as sc
from statecheck.probes.contract import Evidence
from statecheck.recording import groups, values, walk
from statecheck.statistics import bca


@sc.probe("spread", "Energy spread: do many units carry the state?", cost="1 training length")
def energy_spread(evidence: Evidence, *, at: float = 1.0) -> sc.Outcome:
    """spread: -sum p log p / log D, p = h^2 / sum h^2: 1 when all D units have the same energy, 0 when one has it all.

    After `at` training lengths, for each document and (component, layer); the layer with the smallest mean counts. It
    depends on the coordinates of the state, as every count of units does. BCa over documents.
    """
    places = groups(evidence.facts)  # the recurrent states of each (component, layer)
    if not places:
        return sc.Outcome(absences=(sc.Absence("spread.entropy", sc.Status.NOT_APPLICABLE, "no recurrent state"),))
    position = max(1, round(at * evidence.training_length))
    inputs = evidence.streams(position, name="spread")  # (documents, time): a seeded window of each
    if missing := evidence.too_few(["spread.entropy"], len(inputs)):
        return sc.Outcome(absences=missing)
    ((_, states, _),) = walk(evidence.model, inputs, [position])
    table = np.stack([entropy(values(states, evidence.facts, place)) for place in places], axis=1)
    worst = places[int(table.mean(axis=0).argmin())]
    smallest = bca(lambda rows: table[rows].mean(axis=1).min(axis=1), len(table), evidence.generator("spread"))
    return sc.Outcome((evidence.measure("spread.entropy", smallest, worst.where, unit="of log D"),))


def entropy(h: torch.Tensor) -> np.ndarray:
    """Normalised entropy of the energy of each row of h (n, D), 0..1; a row of zeros has 0."""
    energy = h.double().square()
    p = energy / energy.sum(dim=1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
    return (-torch.special.xlogy(p, p).sum(dim=1) / np.log(max(2, h.shape[1]))).numpy(force=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = sc.wrap(torch.nn.GRU(8, 32, num_layers=2, batch_first=True), training_length=64)
    report = sc.check_model(model, suite=Path(__file__).with_name("my_suite.toml"), probes=[energy_spread])
    print(report)
