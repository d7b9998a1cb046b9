"""Modules with a step beside their forward: found out by trying, held against their own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conforming import broken, skipped
from torch import Tensor, nn
from torch.nn import functional

import statecheck as sc
from statecheck.errors import ContractError
from statecheck.protocol import native_of

LAYERS, WIDTH, WINDOW = 2, 6, 3


class Windows(nn.Module):
    """Called as mambapy's models: x (B, D), a list with a pair (hidden state or None, window (B, D, W - 1)) a layer."""

    def __init__(self, *, late: bool = False, mixes: bool = False, kept: bool = True) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, WINDOW, groups=WIDTH) for _ in range(LAYERS))
        self.gate = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.late, self.mixes, self.kept = late, mixes, kept

    def forward(self, x: Tensor) -> Tensor:
        for mix, gate in zip(self.mix, self.gate, strict=True):
            u = functional.silu(mix(functional.pad(x.transpose(1, 2), (WINDOW - 1, 0)))).transpose(1, 2)
            h, ys = torch.zeros_like(u[:, 0]), []
            for u_t in u.unbind(1):
                h = torch.sigmoid(gate(u_t)) * h + u_t
                ys.append(h)
            x = x + torch.stack(ys, 1)
        return x

    def step(self, x: Tensor, caches: list[Any]) -> tuple[Tensor, list[Any]]:
        for i, (mix, gate) in enumerate(zip(self.mix, self.gate, strict=True)):
            h, window = caches[i]
            read = torch.cat([window, x[:, :, None]], 2)
            u = functional.silu(mix(read)[:, :, 0])
            h = u if h is None else torch.sigmoid(gate(u)) * (h if self.kept else 0 * h) + u
            if self.mixes:
                h = h + 0.1 * (h.mean(0) - h)
            caches[i] = (h, read[:, :, : WINDOW - 1] if self.late else read[:, :, 1:])
            x = x + h
        return x, caches


def empty(rows: int) -> list[Any]:
    """As generation of such a library starts."""
    return [(None, torch.zeros(rows, WIDTH, WINDOW - 1)) for _ in range(LAYERS)]


class Cells(nn.Module):
    """Called as xlstm's: x (B, 1, D), a mapping for each block that goes in as keywords; states (2, B, D) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        state = None
        outputs = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t : t + 1], state)
            outputs.append(y)
        return torch.cat(outputs, 1)

    def step(self, x: Tensor, state: dict | None = None) -> tuple[Tensor, dict]:
        assert x.shape[1] == 1
        held = {} if state is None else dict(state)
        for i, cell in enumerate(self.cells):
            old = held.get(f"block_{i}", {}).get("lstm")
            h, c = cell(x[:, 0], None if old is None else (old[0], old[1]))
            held[f"block_{i}"] = {"lstm": torch.stack([h, c])}
            x = h[:, None]
        return x, held


class Allocating(nn.Module):
    """Called as mamba_ssm's layers: two states one by one, allocated by the module and written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch_size, WIDTH), torch.zeros(batch_size, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        last = functional.pad(x, (0, 0, 1, 0))[:, :-1]
        h, ys = torch.zeros_like(x[:, 0]), []
        for x_t, last_t in zip(x.unbind(1), last.unbind(1), strict=True):
            h = torch.sigmoid(self.gate(last_t)) * h + x_t
            ys.append(h)
        return torch.stack(ys, 1)

    def step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert x.shape[1] == 1
        ssm_state.copy_(torch.sigmoid(self.gate(conv_state)) * ssm_state + x[:, 0])
        conv_state.copy_(x[:, 0])
        return ssm_state[:, None].clone(), conv_state, ssm_state


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class TestWhatIsFound:
    def test_states_of_a_list_of_pairs(self) -> None:
        model = sc.wrap(Windows(), start=empty)
        shapes = {name: (state.shape, state.layer) for name, state in model.facts.states.items()}
        assert shapes == {
            "state.0.0": ((6,), 0),
            "state.0.1": ((6, 2), 0),
            "state.1.0": ((6,), 1),
            "state.1.1": ((6, 2), 1),
        }

    def test_a_batch_that_lies_elsewhere_is_brought_to_the_front(self) -> None:
        model = sc.wrap(Cells(), width=WIDTH)
        x = torch.randn(3, 4, WIDTH)
        outputs = model(x)
        states = model.get_states()
        assert {name: tuple(value.shape) for name, value in states.items()} == {
            f"state.block_{i}.lstm.{part}": (3, WIDTH) for i in range(2) for part in range(2)
        }
        torch.testing.assert_close(states["state.block_1.lstm.0"], outputs[:, -1])

    def test_steps_go_on_and_uncached_is_forward(self) -> None:
        module = Windows().eval()
        model = sc.wrap(module, start=empty)
        x = torch.randn(2, 5, WIDTH)
        expected = module(x)
        with torch.no_grad():
            found = torch.cat([model(x[:, :2]), model(x[:, 2:3]), model(x[:, 3:])], 1)
        torch.testing.assert_close(found, expected)
        uncached = native_of(model).uncached
        assert uncached is not None
        assert torch.equal(uncached(x, None), expected)

    def test_gradients_of_a_first_call_are_those_of_forward(self) -> None:
        class Untrained(Windows):
            def step(self, x: Tensor, caches: list[Any]) -> tuple[Tensor, list[Any]]:
                with torch.no_grad():
                    return super().step(x, caches)

        assert sc.wrap(Untrained(), start=empty)(torch.randn(2, 3, WIDTH)).requires_grad

    def test_states_that_are_allocated_and_written_in_place(self) -> None:
        model = sc.wrap(Allocating(), width=WIDTH)
        assert list(model.facts.states) == ["state.0", "state.1"]
        assert "no gradient goes back through several steps" in model.facts.missing[sc.Capability.GRADIENT_STEP]


class TestLaws:
    @pytest.mark.parametrize("make", [Windows, Cells, Allocating])
    def test_healthy_ones_conform(self, make: type[nn.Module]) -> None:
        model = sc.wrap(make().eval(), width=WIDTH, start=empty if make is Windows else None)
        assert broken(model, "STEP", "BATCH", "FORK", "ALIAS", "HONEST") == []

    def test_a_window_that_is_late_is_caught(self) -> None:
        assert broken(sc.wrap(Windows(late=True), start=empty), "STEP") == ["STEP"]

    def test_a_state_that_is_dropped_is_caught(self) -> None:
        assert broken(sc.wrap(Windows(kept=False), start=empty), "STEP") == ["STEP"]

    def test_rows_that_mix_are_caught(self) -> None:
        assert broken(sc.wrap(Windows(mixes=True), start=empty), "BATCH") == ["BATCH"]

    def test_calls_of_several_elements_are_left_out_with_the_reason(self) -> None:
        assert "no call of several elements on a warm state" in skipped(sc.wrap(Cells(), width=WIDTH), "CHUNK")


class TestRefusals:
    def test_a_first_state_that_is_needed_is_asked_for(self) -> None:
        with pytest.raises(
            ContractError, match=r"Windows.step can't be called: x \(batch, 1, ...\).*start=, a function"
        ):
            sc.wrap(Windows())

    def test_a_step_that_brings_no_state(self) -> None:
        class Plain(Cells):
            def step(self, x: Tensor, state: Any = None) -> Tensor:  # type: ignore[override]
                return x

        with pytest.raises(ContractError, match=r"step returned a Tensor: expected \(outputs, state\)"):
            sc.wrap(Plain(), width=WIDTH)

    def test_a_library_without_its_compiled_part_says_so(self) -> None:
        class Compiled(Cells):
            def step(self, x: Tensor, state: Any = None) -> Any:
                raise RuntimeError("no CUDA")

        Compiled.__module__ = "mamba_ssm.modules.mamba_simple"
        with pytest.raises(ContractError, match="mamba_ssm has no compiled module selective_scan_cuda here"):
            sc.wrap(Compiled(), width=WIDTH)


def test_mambapy_conforms() -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    model = sc.wrap(mamba.Mamba(mamba.MambaConfig(d_model=8, n_layers=2, d_state=4)).eval())
    assert broken(model, "STEP", "PREFIX", "BATCH", "RESET", "FORK") == []


def test_xlstm_conforms() -> None:
    xlstm = pytest.importorskip("xlstm")
    layer = xlstm.mLSTMLayerConfig(num_heads=2)
    config = xlstm.xLSTMBlockStackConfig(
        mlstm_block=xlstm.mLSTMBlockConfig(mlstm=layer),
        slstm_block=xlstm.sLSTMBlockConfig(slstm=xlstm.sLSTMLayerConfig(backend="vanilla", num_heads=2)),
        context_length=256,
        num_blocks=2,
        embedding_dim=8,
        slstm_at=[1],
    )
    model = sc.wrap(xlstm.xLSTMBlockStack(config).eval(), width=8)
    assert broken(model, "STEP", "PREFIX", "BATCH", "RESET", "FORK") == []
