"""The chunked form and the compiled one pass the battery; what the chunked one holds in memory."""

import pytest
import statecheck_kernels
import torch
from battery import CASES, Case
from drawing import OPERATIONS, SCAN, Operation, drawn, run
from statecheck_kernels import Observe
from statecheck_kernels.statistics import Observer
from torch import Tensor


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("form", ["chunked", "cpu"])
def test_form_passes_the_battery(form: str, case: Case) -> None:
    usable, detail = next((usable, detail) for name, usable, detail in statecheck_kernels.describe() if name == form)
    if not usable:
        pytest.skip(f"{form}: {detail}")
    case.check(form)


def test_the_chunked_scan_keeps_a_state_a_chunk() -> None:
    """What waits for the backward pass is the inputs and T / 32 states, not T of them."""
    arguments = {name: x.requires_grad_() for name, x in drawn(SCAN, 256, {"D": 8, "N": 16}).items()}
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run(SCAN, arguments, "chunked")
    states = 256 * arguments["state"].numel()
    assert 0 < sum(kept) < states / 2


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_chunked_form_looks_at_one_chunk_of_states_at_a_time(
    operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = Observer.take

    def counted(self: Observer, states: Tensor) -> None:
        taken.append(states.shape[1])
        take(self, states)

    monkeypatch.setattr(Observer, "take", counted)
    run(operation, drawn(operation, 200), "chunked", observe=Observe())
    assert sum(taken) >= 200
    assert max(taken) <= 64
