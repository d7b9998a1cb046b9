"""Models that are called with a list of tokens and a list of states, as those of the package rwkv."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conforming import broken, skipped
from torch import Tensor, nn

import statecheck as sc

VOCABULARY, WIDTH, LAYERS = 20, 6, 2


class Lists(nn.Module):
    """Two leaky layers and their last inputs, called as the package's models: it writes into the list it is given."""

    def __init__(self, *, restarts: bool = False, shift: int = 1) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.args = SimpleNamespace(n_layer=LAYERS, vocab_size=VOCABULARY)
        self.w = {name: torch.randn(VOCABULARY, WIDTH, generator=draw) for name in ("emb.weight", "head.weight")}
        self.decay = torch.rand(LAYERS, WIDTH, generator=draw)
        self.restarts, self.shift = restarts, shift

    def forward(self, tokens: list[int], state: list[Tensor] | None, full_output: bool = False) -> tuple:
        with torch.no_grad():
            if state is None or (self.restarts and len(tokens) > 1):
                state = [torch.zeros(WIDTH) for _ in range(2 * LAYERS)]
            x = self.w["emb.weight"][tokens]
            for i in range(LAYERS):
                last, h = state[2 * i : 2 * i + 2]
                shifted = torch.cat([last[None], x])[: len(x)]
                ys = []
                for now in (x + 0.5 * shifted).unbind(0):
                    h = self.decay[i] * h + now.tanh()
                    ys.append(h)
                state[2 * i], state[2 * i + 1] = x[-self.shift if len(x) > 1 else -1], h
                x = torch.stack(ys)
            logits = x @ self.w["head.weight"].T
            return (logits if full_output and len(tokens) > 1 else logits[-1]), state


def test_states_are_named_by_layer_and_stacked_by_row() -> None:
    module = Lists()
    model = sc.wrap(module)
    outputs = model(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert {name: state.layer for name, state in model.facts.states.items()} == {
        "layers.0.0": 0,
        "layers.0.1": 0,
        "layers.1.0": 1,
        "layers.1.1": 1,
    }
    logits, state = module.forward([4, 5, 6], None, full_output=True)
    assert torch.equal(outputs[1], logits)
    assert all(torch.equal(value[1], own) for value, own in zip(model.get_states().values(), state, strict=True))
    assert model.facts.vocabulary == VOCABULARY


def test_a_healthy_one_conforms() -> None:
    assert broken(sc.wrap(Lists()), "STEP", "CHUNK", "BATCH", "RESET", "FORK", "HONEST") == []


@pytest.mark.parametrize("fault", [{"restarts": True}, {"shift": 2}], ids=["restarts from zero", "stale token shift"])
def test_a_prefill_that_loses_the_state_is_caught(fault: dict[str, Any]) -> None:
    assert broken(sc.wrap(Lists(**fault)), "STEP", "CHUNK") != []


def test_masks_are_left_out_with_the_reason() -> None:
    assert "its calls take no mask" in skipped(sc.wrap(Lists()), "PADL")


def test_a_model_that_can_not_be_copied_is_shared_by_its_copies() -> None:
    class Uncopied(Lists):
        def __deepcopy__(self, memo: dict) -> Lists:
            raise TypeError("held by TorchScript")

    model = sc.wrap(Uncopied())
    other = model.rebuild()  # type: ignore[attr-defined]
    model(torch.tensor([[1, 2]]))
    assert other.get_states() == {}
    assert torch.equal(other(torch.tensor([[3]])), sc.wrap(Lists())(torch.tensor([[3]])))


def weights(width: int, heads: int, layers: int) -> dict[str, Tensor]:
    """Random weights of RWKV-7, by the names of its checkpoints."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw)

    made = {"emb.weight": normal(VOCABULARY, width), "head.weight": normal(VOCABULARY, width)}
    norms = ["ln_out", "blocks.0.ln0"]
    for i in range(layers):
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norms += [f"blocks.{i}.ln1", f"blocks.{i}.ln2", att + "ln_x"]
        made |= {f"{att}x_{name}": torch.rand(1, 1, width, generator=draw) for name in "rwkvag"}
        for name in "wavg":
            made |= {f"{att}{name}1": normal(width, 4), f"{att}{name}2": normal(4, width)}
        made |= {f"{att}{name}": normal(1, 1, width) for name in ("w0", "a0", "v0", "k_k", "k_a")}
        made[att + "r_k"] = normal(heads, width // heads)
        made |= {f"{att}{name}.weight": normal(width, width) for name in ("receptance", "key", "value", "output")}
        made[ffn + "x_k"] = torch.rand(1, 1, width, generator=draw)
        made |= {ffn + "key.weight": normal(2 * width, width), ffn + "value.weight": normal(width, 2 * width)}
    for name in norms:
        made |= {f"{name}.weight": 1 + normal(width), f"{name}.bias": normal(width)}
    return made


def test_rwkv_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_V7_ON", "1")
    rwkv = pytest.importorskip("rwkv.model")
    torch.save(weights(16, 2, 2), tmp_path / "tiny.pth")
    model = sc.wrap(rwkv.RWKV(model=str(tmp_path / "tiny"), strategy="cpu fp32"))
    assert broken(model, "STEP", "CHUNK", "PREFIX", "BATCH", "RESET", "FORK") == []
