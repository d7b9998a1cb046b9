"""Does a mutant that gives the same outputs differ in gradients, or in training mode? By plain calls again."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor, nn

from mutation.plain import DIFFERS, length


def differs_elsewhere(mutant: nn.Module, original: nn.Module, histories: int, *, vocabulary: int, seed: int) -> str:
    """ "gradients" of a loss on the last of a few calls, "training mode", or "" if neither differs."""
    for number in range(histories):
        random = Random(f"{seed}:{number}")
        spans = [length(random) for _ in range(random.randint(2, 3))]
        rows = random.randint(1, 3)
        calls = [torch.tensor([[random.randrange(vocabulary) for _ in range(n)] for _ in range(rows)]) for n in spans]
        expected = _gradients(original, calls, put_back=number % 2 == 1)
        try:
            found = _gradients(mutant, calls, put_back=number % 2 == 1)
        except RuntimeError:  # torch refuses a backward pass through what was written in place
            return "gradients"
        if any(_apart(found[name], value) for name, value in expected.items()):
            return "gradients"
        trained, as_before = (_training(model, calls) for model in (mutant, original))
        if _apart(trained, as_before):
            return "training mode"
    return ""


@torch.no_grad()
def _training(model: nn.Module, calls: list[Tensor]) -> Tensor:
    """Outputs of all calls in training mode."""
    model.train()
    model.set_states(None)  # type: ignore[operator]
    outputs = torch.cat([model(inputs) for inputs in calls], 1)
    model.eval().set_states(None)  # type: ignore[operator]
    return outputs


def _gradients(model: nn.Module, calls: list[Tensor], *, put_back: bool) -> dict[str, Tensor]:
    """Of the last call's loss, by name; `put_back`: with respect to the states that the last call starts from."""
    model.set_states(None)  # type: ignore[operator]
    with torch.enable_grad():
        for inputs in calls[:-1]:
            model(inputs)
        leaves = dict(model.named_parameters())
        if put_back:
            held = model.get_states()  # type: ignore[operator]
            leaves = {
                name: state.detach().requires_grad_() for name, state in held.items() if state.is_floating_point()
            }
            model.set_states(held | leaves)  # type: ignore[operator]
        loss = model(calls[-1]).square().mean()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    model.set_states(None)  # type: ignore[operator]
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def _apart(found: Tensor, expected: Tensor) -> bool:
    return not float((found - expected).norm()) <= DIFFERS * max(float(expected.norm()), 1e-6)  # NaN is apart
