"""The reference layers say what other libraries say: fixtures of what they said, and transformers itself if installed.

`scripts/make_peer_fixtures.py` ran the peers in float64 on 14 draws of sizes each, call after call with their caches,
and kept weights, inputs, outputs and the states after every call. What was found to differ between the peers and us:

- transformers keeps 4 inputs in its convolution window and never reads the oldest again; ours keeps the last 3.
- fla's RWKV-6 has GroupNorm's eps at 1e-5 unless told otherwise; the published code, and ours, has 64e-5. The fixtures
  told it so. That is the only difference of value; the rest is naming: fla's order is r, w, k, v, g, its `x_bias` are
  our `mu`, its decay is the bias of `w_proj`'s second low-rank matrix, and its Linear weights are transposed.
- fla applies w's lerp before w's low-rank map, and tanh between the two matrices: as the paper, and as ours.
"""

import importlib.util
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from agreement import TOLERANCE, both_forms, error
from safetensors import safe_open
from statecheck_kernels import Scan, forms, wkv6
from statecheck_reference import mamba2, rwkv6
from statecheck_reference.mamba2 import Mamba2Mixer
from statecheck_reference.rwkv6 import TimeMix
from torch import Tensor, nn
from torch.nn import functional
from wrong_recurrences import (
    decay_after_the_write,
    decayed,
    late_by_one,
    read_before_the_write,
    ssd_of,
    tiled,
    with_bonus,
    without_silu,
)

FIXTURES = Path(__file__).parent / "peers"
SCRIPT = Path(__file__).parents[2] / "scripts/make_peer_fixtures.py"
FLA_ORDER, OUR_ORDER = "rwkvg", "rkvgw"  # w is our decay
Arrays = dict[str, Tensor]


class Peer(NamedTuple):
    """One comparison: what the peer was given and said, and its sizes."""

    sizes: dict[str, Any]
    arrays: Arrays

    def weights(self) -> Arrays:
        return {name[8:]: array for name, array in self.arrays.items() if name.startswith("weights.")}


def origin(name: str) -> dict[str, Any]:
    """Peer and version, and the sizes of each comparison."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["origin"])


def peers(name: str) -> list[Peer]:
    """All comparisons of a fixture file, everything in float64."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        arrays = {key: file.get_tensor(key).double() for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    return [
        Peer(sizes, {key.partition(".")[2]: x for key, x in arrays.items() if key.startswith(f"{n}.")})
        for n, sizes in enumerate(origin(name)["cases"])
    ]


def largest(peer: Peer, found: Arrays) -> float:
    """The largest relative error of the outputs and of each state after each call."""
    return max(error(array, peer.arrays[name]) for name, array in found.items())


# ------------------------------------------------------------------------------------------------- each peer, and ours

Layer = Callable[..., tuple[Tensor, Tensor, Tensor]]


def called_in_pieces(layer: Layer, peer: Peer, names: tuple[str, str], shapes: tuple[Any, Any]) -> Arrays:
    """Outputs and the two states after each call of a layer; from the peer's first states, or zeros."""
    inputs = peer.arrays["inputs"]
    dtype = next(layer.parameters()).dtype  # type: ignore[attr-defined]
    states = [
        peer.arrays.get(f"{name}.0", torch.zeros(len(inputs), *shape)).to(dtype)
        for name, shape in zip(names, shapes, strict=True)
    ]
    outputs, found = [], {}
    with torch.no_grad():
        for n, piece in enumerate(inputs.to(dtype).split(peer.sizes["pieces"], 1), start=1):
            output, *states = layer(piece, *states)
            outputs.append(output)
            found |= {f"{name}.{n}": state for name, state in zip(names, states, strict=True)}
    return {**found, "outputs": torch.cat(outputs, 1)}


def our_mixer(peer: Peer) -> Mamba2Mixer:
    """The names are the published ones, so the weights go in as they are."""
    sizes = peer.sizes
    inner = sizes["width"] * sizes["expand"]
    layer = Mamba2Mixer(sizes["width"], inner, sizes["heads"], sizes["groups"], sizes["state_size"]).double()
    layer.load_state_dict(peer.weights())
    return layer


def by_our_mixer(layer: Mamba2Mixer, peer: Peer) -> Arrays:
    shapes = (layer.conv1d.in_channels, 3), (layer.heads, layer.inner // layer.heads, layer.state_size)
    return called_in_pieces(layer, peer, ("conv", "ssm"), shapes)


def our_time_mix(peer: Peer) -> TimeMix:
    width, heads, rank = (peer.sizes[name] for name in ("width", "heads", "low_rank"))
    layer = TimeMix(width, heads, rank, depth=0.0).double()
    weights = peer.weights()
    order = [FLA_ORDER.index(q) for q in OUR_ORDER]
    down = weights["x_proj.0.linear.weight"].view(5, rank, width)[order]  # (5, R, W)
    up = weights["x_proj.2.weight"].view(width, 5, rank)[:, order]  # (W, 5, R)
    linear = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj"}
    ours = {f"{name}.weight": weights[f"{theirs}.linear.weight"] for name, theirs in linear.items()}
    ours |= {
        "mu_x": weights["x_proj.0.mu"],
        "mu": weights["x_bias"][order],
        "mix_down": down.flatten(0, 1).T,
        "mix_up": up.permute(1, 2, 0),
        "decay": weights["w_proj.linear.lora.2.bias"],
        "decay_down": weights["w_proj.linear.lora.0.weight"].T,
        "decay_up": weights["w_proj.linear.lora.2.weight"].T,
        "bonus": weights["bonus"],
        "norm.weight": weights["g_norm.weight"],
        "norm.bias": weights["g_norm.bias"],
        "output.weight": weights["o_proj.weight"],
    }
    layer.load_state_dict(ours)
    return layer


def by_our_time_mix(layer: TimeMix, peer: Peer) -> Arrays:
    width = peer.sizes["width"]
    head = width // layer.heads
    return called_in_pieces(layer, peer, ("shift", "wkv"), ((width,), (layer.heads, head, head)))


def by_recurrence(function: Callable[..., Scan], peer: Peer, dtype: torch.dtype) -> Arrays:
    sizes, outputs, found = peer.sizes, [], {}
    zeros = torch.zeros(sizes["batch"], sizes["heads"], sizes["key"], sizes["value"])
    state, bonus = peer.arrays.get("wkv.0", zeros).to(dtype), peer.arrays["u"].to(dtype)
    parts = (peer.arrays[name].to(dtype).split(sizes["pieces"], 1) for name in ("r", "k", "v", "log_w"))
    for n, piece in enumerate(zip(*parts, strict=True), start=1):
        answers, state, *_ = function(*piece, bonus, state)
        outputs.append(answers)
        found[f"wkv.{n}"] = state
    return {**found, "outputs": torch.cat(outputs, 1)}


MIXERS, LAYERS = peers("transformers-mamba2"), peers("fla-rwkv6-layer")
RECURRENCES = peers("fla-rwkv6-recurrence")


def sizes_of(peer: Peer) -> str:
    return "-".join(f"{name}{value}" for name, value in peer.sizes.items() if isinstance(value, int))


@both_forms
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("peer", MIXERS, ids=sizes_of)
def test_mamba2_is_that_of_transformers(peer: Peer, dtype: torch.dtype) -> None:
    assert largest(peer, by_our_mixer(our_mixer(peer).to(dtype), peer)) < TOLERANCE[dtype]


@both_forms
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("peer", LAYERS, ids=sizes_of)
def test_time_mix_is_the_rwkv6_layer_of_fla(peer: Peer, dtype: torch.dtype) -> None:
    assert largest(peer, by_our_time_mix(our_time_mix(peer).to(dtype), peer)) < TOLERANCE[dtype]


@both_forms
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("peer", RECURRENCES, ids=sizes_of)
def test_wkv6_is_the_naive_recurrence_of_fla(peer: Peer, dtype: torch.dtype) -> None:
    assert largest(peer, by_recurrence(wkv6, peer, dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_reference_form_is_what_the_peers_say(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, as the papers write it: what all other forms are held against."""
    monkeypatch.setenv(forms.VARIABLE, "reference")
    for peer in RECURRENCES:
        assert largest(peer, by_recurrence(wkv6, peer, dtype)) < TOLERANCE[dtype]
    for peer in MIXERS:
        assert largest(peer, by_our_mixer(our_mixer(peer).to(dtype), peer)) < TOLERANCE[dtype]


def test_the_fixtures_are_what_they_should_be() -> None:
    """A dozen sizes of each peer at least: one token, single tokens after a prefix, past the chunks."""
    for name, version in (("transformers-mamba2", "transformers 5."), ("fla-rwkv6-layer", "fla-core 0.6")):
        assert origin(name)["peer"].startswith(version)
    for found in (MIXERS, LAYERS, RECURRENCES):
        sizes = [peer.sizes for peer in found]
        assert len(found) >= 12
        assert any(size["pieces"] == [1] for size in sizes)
        assert any(1 in size["pieces"][1:] for size in sizes)
        assert any(max(size["pieces"]) > 64 for size in sizes)
        assert {size["started"] for size in sizes} == {size["extreme"] for size in sizes} == {True, False}
        assert len({size["batch"] for size in sizes}) > 1 < len({size["heads"] for size in sizes})
    groups = [(peer.sizes["groups"], peer.sizes["heads"]) for peer in MIXERS]
    assert any(1 < group < heads for group, heads in groups)
    assert any(group == heads > 1 for group, heads in groups)
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 1_000_000


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_mamba2_is_that_of_the_transformers_installed_here() -> None:
    """Sizes that are in no fixture, run now."""
    script = runpy.run_path(str(SCRIPT))
    errors = {}
    for seed in range(100, 120):
        sizes = script["mamba_case"](seed)
        with script["InFloat64"]():
            peer = Peer(sizes, {name: array.double() for name, array in script["run_mamba"](sizes).items()})
        errors[sizes_of(peer)] = largest(peer, by_our_mixer(our_mixer(peer), peer))
    assert {sizes: error for sizes, error in errors.items() if not error < TOLERANCE[torch.float64]} == {}


# --------------------------------------------------------------------- proof that the comparisons can fail, one by one


@pytest.mark.parametrize("mutant", [decay_after_the_write, with_bonus(0), with_bonus(1)])
def test_a_wrong_recurrence_is_not_flas(mutant: Callable[..., Scan]) -> None:
    """In every case: the state after a single token shows what its answer can't."""
    for peer in RECURRENCES:
        assert largest(peer, by_recurrence(mutant, peer, torch.float64)) > 100 * TOLERANCE[torch.float32]


class Mutated(nn.Module):
    """A layer with `change` made to the states that it is given, or to those that it returns."""

    def __init__(self, layer: nn.Module, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, inputs: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer(inputs, *self.change(first, second))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("layer", "_modules") else getattr(self._modules["layer"], name)


def first_state_not_carried(layer: nn.Module, _: pytest.MonkeyPatch) -> nn.Module:
    return Mutated(layer, lambda first, second: (torch.zeros_like(first), second))


def patched(module: Any, name: str, mutant: Any) -> Callable[[nn.Module, pytest.MonkeyPatch], nn.Module]:
    def apply(layer: nn.Module, patch: pytest.MonkeyPatch) -> nn.Module:
        patch.setattr(module, name, mutant)
        return layer

    return apply


def over_all_channels(layer: TimeMix, _: pytest.MonkeyPatch) -> TimeMix:
    layer.norm.num_groups = 1
    return layer


def without_tanh(which: int) -> Callable[[TimeMix, pytest.MonkeyPatch], TimeMix]:
    """The first tanh of a call mixes, the second one decays."""

    def apply(layer: TimeMix, patch: pytest.MonkeyPatch) -> TimeMix:
        calls, tanh = [], torch.tanh

        def sometimes(x: Tensor) -> Tensor:
            calls.append(1)
            return x if len(calls) % 2 == which else tanh(x)

        patch.setattr(rwkv6.torch, "tanh", sometimes)
        return layer

    return apply


def weights_in_flas_order(layer: TimeMix, _: pytest.MonkeyPatch) -> TimeMix:
    order = [OUR_ORDER.index(q) for q in FLA_ORDER]
    layer.mu.data = layer.mu.data[order]
    return layer


TIME_MIX_MUTANTS = {
    "decay after the write": patched(rwkv6, "wkv6", decay_after_the_write),
    "no bonus": patched(rwkv6, "wkv6", with_bonus(0)),
    "token shift not carried": first_state_not_carried,
    "norm over all channels": over_all_channels,
    "mixing without tanh": without_tanh(1),
    "decay without tanh": without_tanh(0),
    "weights in another order": weights_in_flas_order,
}


@pytest.mark.parametrize("name", TIME_MIX_MUTANTS)
def test_a_wrong_time_mix_is_not_flas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every case of several heads that starts from a state."""
    chosen = [peer for peer in LAYERS if peer.sizes["heads"] > 1 and peer.sizes["started"]]
    assert chosen
    for peer in chosen:
        with monkeypatch.context() as patch:
            layer = TIME_MIX_MUTANTS[name](our_time_mix(peer), patch)
            found = largest(peer, by_our_time_mix(layer, peer))  # type: ignore[arg-type]
        assert found > 100 * TOLERANCE[torch.float32]
        assert largest(peer, by_our_time_mix(our_time_mix(peer), peer)) < TOLERANCE[torch.float64]


def test_the_eps_of_the_norm_shows() -> None:
    """fla's default in place of the published one: small, and far above what float64 leaves."""
    for peer in LAYERS:
        layer = our_time_mix(peer)
        layer.norm.eps = 1e-5
        assert largest(peer, by_our_time_mix(layer, peer)) > 100 * TOLERANCE[torch.float64]


def one_group_in_the_norm(layer: Mamba2Mixer, _: pytest.MonkeyPatch) -> Mamba2Mixer:
    layer.norm.groups = 1
    return layer


def without_skip(layer: Mamba2Mixer, _: pytest.MonkeyPatch) -> Mamba2Mixer:
    layer.D.data.zero_()
    return layer


def gate_after_the_norm(self: mamba2.GatedRMSNorm, x: Tensor, z: Tensor) -> Tensor:
    parts = x.unflatten(-1, (self.groups, -1))
    return self.weight * functional.rms_norm(parts, parts.shape[-1:], eps=1e-5).flatten(-2) * functional.silu(z)


MIXER_MUTANTS = {
    "decay on the write": patched(mamba2, "ssd", ssd_of(decayed)),
    "read before the write": patched(mamba2, "ssd", read_before_the_write),
    "groups repeated in another order": patched(mamba2, "ssd", ssd_of(tiled)),
    "window off by one": patched(mamba2, "causal_conv1d", late_by_one),
    "no curve after the convolution": patched(mamba2, "causal_conv1d", without_silu),
    "window not carried": first_state_not_carried,
    "norm over all channels": one_group_in_the_norm,
    "gate after the norm": patched(mamba2.GatedRMSNorm, "forward", gate_after_the_norm),
    "no skip": without_skip,
}


@pytest.mark.parametrize("name", MIXER_MUTANTS)
def test_a_wrong_mixer_is_not_that_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = name in ("groups repeated in another order", "norm over all channels")
    chosen = [
        peer
        for peer in MIXERS
        if peer.sizes["started"] and (not grouped or 1 < peer.sizes["groups"] < peer.sizes["heads"])
    ]
    assert chosen
    for peer in chosen:
        with monkeypatch.context() as patch:
            layer = MIXER_MUTANTS[name](our_mixer(peer), patch)
            found = largest(peer, by_our_mixer(layer, peer))  # type: ignore[arg-type]
        assert found > 100 * TOLERANCE[torch.float32]
        assert largest(peer, by_our_mixer(our_mixer(peer), peer)) < TOLERANCE[torch.float64]
