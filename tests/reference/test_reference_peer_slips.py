"""Proof that the comparisons with other libraries can fail: small slips, one by one, against the very same fixtures."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from agreement import TOLERANCE
from peer_fixtures import LAYERS, MIXERS, MIXERS1, RECURRENCES, STREAMS
from peer_parity import ours
from peer_parity.comparison import Arrays, Peer, largest
from peer_parity.ours import FLA_ORDER, OUR_ORDER, InStream
from statecheck_kernels import Scan
from statecheck_reference import mamba1, mamba2, rwkv6
from statecheck_reference.mamba1 import Mamba1Mixer
from statecheck_reference.mamba2 import Mamba2Mixer
from statecheck_reference.rwkv6 import TimeMix
from torch import Tensor, nn
from torch.nn import functional
from wrong_recurrences import (
    decay_after_the_write,
    decayed,
    late_by_one,
    read_before_the_write,
    scan_by,
    ssd_of,
    tiled,
    with_bonus,
    without_silu,
)

Slip = Callable[[Any, pytest.MonkeyPatch], nn.Module]


def shown(
    slip: Slip,
    chosen: Sequence[Peer],
    right: Callable[[Peer], nn.Module],
    by: Callable[[nn.Module, Peer], Arrays],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slip is far off in every one of these cases, and the layer without it is not off in any."""
    assert chosen
    for peer in chosen:
        with monkeypatch.context() as patch:
            found = largest(peer, by(slip(right(peer), patch), peer))
        assert found > 100 * TOLERANCE[torch.float32]
        assert largest(peer, by(right(peer), peer)) < TOLERANCE[torch.float64]


class Mutated(nn.Module):
    """A layer with `change` made to the states that it is given."""

    def __init__(self, layer: nn.Module, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, inputs: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer(inputs, *self.change(first, second))


def first_state_not_carried(layer: nn.Module, _: pytest.MonkeyPatch) -> nn.Module:
    return Mutated(layer, lambda first, second: (torch.zeros_like(first), second))


def second_state_not_carried(layer: nn.Module, _: pytest.MonkeyPatch) -> nn.Module:
    return Mutated(layer, lambda first, second: (first, torch.zeros_like(second)))


def patched(module: Any, name: str, mutant: Any) -> Slip:
    def apply(layer: nn.Module, patch: pytest.MonkeyPatch) -> nn.Module:
        patch.setattr(module, name, mutant)
        return layer

    return apply


# ------------------------------------------------------------------------------------------------------------ RWKV-6


@pytest.mark.parametrize("mutant", [decay_after_the_write, with_bonus(0), with_bonus(1)])
def test_a_wrong_recurrence_is_not_flas(mutant: Callable[..., Scan]) -> None:
    """In every case: the state after a single token shows what its answer can't."""
    for peer in RECURRENCES:
        assert largest(peer, ours.by_recurrence(mutant, peer, torch.float64)) > 100 * TOLERANCE[torch.float32]


def over_all_channels(layer: TimeMix, _: pytest.MonkeyPatch) -> TimeMix:
    layer.norm.num_groups = 1
    return layer


def without_tanh(which: int) -> Slip:
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


TIME_MIX_SLIPS = {
    "decay after the write": patched(rwkv6, "wkv6", decay_after_the_write),
    "no bonus": patched(rwkv6, "wkv6", with_bonus(0)),
    "token shift not carried": first_state_not_carried,
    "norm over all channels": over_all_channels,
    "mixing without tanh": without_tanh(1),
    "decay without tanh": without_tanh(0),
    "weights in another order": weights_in_flas_order,
}
by_every_slip = pytest.mark.parametrize("name", TIME_MIX_SLIPS)


def of_several_heads(peers: Sequence[Peer]) -> list[Peer]:
    """Those that start from a state."""
    return [peer for peer in peers if peer.sizes["heads"] > 1 and peer.sizes["started"]]


def mild(peers: Sequence[Peer]) -> list[Peer]:
    """Those whose decays are neither 0 nor 1, where it would not matter what they are."""
    return [peer for peer in peers if not peer.sizes["extreme"]]


@by_every_slip
def test_a_wrong_time_mix_is_not_flas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(TIME_MIX_SLIPS[name], of_several_heads(LAYERS), ours.time_mix, ours.by_rwkv, monkeypatch)


@by_every_slip
def test_a_wrong_time_mix_is_not_that_of_the_rwkv_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(layer: InStream, patch: pytest.MonkeyPatch) -> InStream:
        return InStream(layer.norm, TIME_MIX_SLIPS[name](layer.mix, patch))

    shown(slip, mild(of_several_heads(STREAMS)), ours.in_stream, ours.by_rwkv, monkeypatch)


@pytest.mark.parametrize("peers", [LAYERS, STREAMS], ids=["fla", "rwkv"])
def test_the_eps_of_the_norm_shows(peers: Sequence[Peer]) -> None:
    """fla's default in place of the published one: small, and far above what float64 leaves."""
    for peer in peers:
        layer = ours.time_mix(peer) if peers is LAYERS else ours.in_stream(peer)
        mix = layer.mix if isinstance(layer, InStream) else layer
        assert isinstance(mix, TimeMix)
        mix.norm.eps = 1e-5
        assert largest(peer, ours.by_rwkv(layer, peer)) > 100 * TOLERANCE[torch.float64]


# ----------------------------------------------------------------------------------------------------------- Mamba-2


def one_group_in_the_norm(layer: Mamba2Mixer, _: pytest.MonkeyPatch) -> Mamba2Mixer:
    layer.norm.groups = 1
    return layer


def without_skip(layer: Any, _: pytest.MonkeyPatch) -> nn.Module:
    layer.D.data.zero_()
    return layer


def gate_after_the_norm(self: mamba2.GatedRMSNorm, x: Tensor, z: Tensor) -> Tensor:
    parts = x.unflatten(-1, (self.groups, -1))
    return self.weight * functional.rms_norm(parts, parts.shape[-1:], eps=1e-5).flatten(-2) * functional.silu(z)


MIXER_SLIPS = {
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


@pytest.mark.parametrize("name", MIXER_SLIPS)
def test_a_wrong_mamba2_is_not_that_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped = name in ("groups repeated in another order", "norm over all channels")
    chosen = [
        peer
        for peer in MIXERS
        if peer.sizes["started"] and (not grouped or 1 < peer.sizes["groups"] < peer.sizes["heads"])
    ]
    shown(MIXER_SLIPS[name], chosen, ours.mamba2, ours.by_mamba, monkeypatch)


# ------------------------------------------------------------------------------------------------------------- Mamba


def one_rate_a_channel(layer: Mamba1Mixer, _: pytest.MonkeyPatch) -> Mamba1Mixer:
    layer.A_log.data = layer.A_log.data.mean(1, keepdim=True).expand_as(layer.A_log).clone()
    return layer


def step_without_its_bias(layer: Mamba1Mixer, _: pytest.MonkeyPatch) -> Mamba1Mixer:
    layer.dt_proj.bias.data.zero_()
    return layer


def rows_in_another_order(name: str, *order: int) -> Slip:
    """The parts of a projection's rows, numbered, in this order."""

    def apply(layer: Mamba1Mixer, _: pytest.MonkeyPatch) -> Mamba1Mixer:
        weight = layer.get_parameter(name)
        sizes = {"in_proj.weight": [layer.inner] * 2, "x_proj.weight": [layer.rank, *[layer.state_size] * 2]}
        parts = weight.data.split(sizes[name])
        weight.data = torch.cat([parts[n] for n in order])
        return layer

    return apply


MAMBA_SLIPS = {
    "decay on the write": patched(mamba1, "selective_scan", scan_by("decay on the write")),
    "read before the write": patched(mamba1, "selective_scan", scan_by("read before the write")),
    "the paper's exact integral": patched(mamba1, "selective_scan", scan_by("exact integral")),
    "one rate a channel": one_rate_a_channel,
    "step without its bias": step_without_its_bias,
    "x and gate swapped": rows_in_another_order("in_proj.weight", 1, 0),
    "write and read swapped": rows_in_another_order("x_proj.weight", 0, 2, 1),
    "window off by one": patched(mamba1, "causal_conv1d", late_by_one),
    "no curve after the convolution": patched(mamba1, "causal_conv1d", without_silu),
    "window not carried": first_state_not_carried,
    "memory not carried": second_state_not_carried,
    "no skip": without_skip,
}


@pytest.mark.parametrize("name", MAMBA_SLIPS)
def test_a_wrong_mamba_is_not_that_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [peer for peer in mild(MIXERS1) if peer.sizes["started"] and peer.sizes["state_size"] > 1]
    shown(MAMBA_SLIPS[name], chosen, ours.mamba1, ours.by_mamba, monkeypatch)


def test_the_loop_that_the_slips_of_mamba_are_made_of_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no slip it is what transformers says: what they show is the slip."""
    monkeypatch.setattr(mamba1, "selective_scan", scan_by("no slip"))
    for peer in MIXERS1:
        assert largest(peer, ours.by_mamba(ours.mamba1(peer), peer)) < TOLERANCE[torch.float64]
