"""Our layers and recurrences on what a peer was given: its weights copied over, the same calls, answers by its names.

What was found to differ between the peers and us, none of it a value but one:

- transformers keeps 4 inputs in its convolution windows and never reads the oldest again; ours keep the last 3.
- fla's RWKV-6 has GroupNorm's eps at 1e-5 unless told otherwise; the published code, the `rwkv` package and ours have
  64e-5. The peer is told so. That is the one difference of value.
- fla's order is r, w, k, v, g, that of `rwkv` w, k, v, r, g, ours r, k, v, g, w; fla's `x_bias`, and `time_maa_q` of
  `rwkv`, are our `mu`; the decay is the bias of fla's second low-rank matrix, and `time_decay` of `rwkv`; `time_faaaa`
  is our bonus; fla's low-rank matrices are transposed.
- fla and `rwkv` apply w's lerp before w's low-rank map, and tanh between the two matrices: as the paper, and as ours.
"""

from collections.abc import Callable

import torch
from statecheck_kernels import Scan, wkv6
from statecheck_reference.mamba1 import Mamba1Mixer
from statecheck_reference.mamba2 import Mamba2Mixer
from statecheck_reference.rwkv6 import TimeMix
from torch import Tensor, nn

from peer_parity.comparison import Arrays, Peer

FLA_ORDER, RWKV_ORDER, OUR_ORDER = "rwkvg", "wkvrg", "rkvgw"  # w is our decay


def mamba1(peer: Peer) -> Mamba1Mixer:
    """The names are the published ones, so the weights go in as they are."""
    sizes = peer.sizes
    inner = sizes["width"] * sizes["expand"]
    layer = Mamba1Mixer(sizes["width"], inner, sizes["state_size"], sizes["rank"]).double()
    layer.load_state_dict(peer.weights())
    return layer


def mamba2(peer: Peer) -> Mamba2Mixer:
    """The names are the published ones here too."""
    sizes = peer.sizes
    inner = sizes["width"] * sizes["expand"]
    layer = Mamba2Mixer(sizes["width"], inner, sizes["heads"], sizes["groups"], sizes["state_size"]).double()
    layer.load_state_dict(peer.weights())
    return layer


def time_mix(peer: Peer) -> TimeMix:
    """fla's layer."""
    width, rank, weights = peer.sizes["width"], peer.sizes["low_rank"], peer.weights()
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
    return _time_mix(peer, ours)


class InStream(nn.Module):
    """What the `rwkv` package calls attention: the stream, and the time mixing of its LayerNorm added to it."""

    def __init__(self, norm: nn.LayerNorm, mix: nn.Module) -> None:
        super().__init__()
        self.norm, self.mix = norm, mix

    def forward(self, stream: Tensor, shift: Tensor, wkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, W) and the two states to the stream after it and the next states."""
        outputs, shift, wkv = self.mix(self.norm(stream), shift, wkv)
        return stream + outputs, shift, wkv


def in_stream(peer: Peer) -> InStream:
    """The layer of the `rwkv` package, from the names of a published RWKV-6 model."""
    weights = peer.weights()
    order = [RWKV_ORDER.index(q) for q in OUR_ORDER]
    ours = {
        f"{name}.weight": weights[f"att.{name}.weight"] for name in ("receptance", "key", "value", "gate", "output")
    }
    ours |= {
        "mu_x": weights["att.time_maa_x"].flatten(),
        "mu": torch.stack([weights[f"att.time_maa_{q}"].flatten() for q in OUR_ORDER]),
        "mix_down": weights["att.time_maa_w1"].unflatten(1, (5, -1))[:, order].flatten(1),
        "mix_up": weights["att.time_maa_w2"][order],
        "decay": weights["att.time_decay"].flatten(),
        "decay_down": weights["att.time_decay_w1"],
        "decay_up": weights["att.time_decay_w2"],
        "bonus": weights["att.time_faaaa"],
        "norm.weight": weights["att.ln_x.weight"],
        "norm.bias": weights["att.ln_x.bias"],
    }
    norm = nn.LayerNorm(peer.sizes["width"]).double()
    norm.load_state_dict({name: weights[f"ln1.{name}"] for name in ("weight", "bias")})
    return InStream(norm, _time_mix(peer, ours))


def _time_mix(peer: Peer, weights: Arrays) -> TimeMix:
    width, heads, rank = (peer.sizes[name] for name in ("width", "heads", "low_rank"))
    layer = TimeMix(width, heads, rank, layer=0, layers=1).double()
    layer.load_state_dict(weights)
    return layer


def by_mamba(layer: nn.Module, peer: Peer, whole: bool = False) -> Arrays:
    """What a Mamba or Mamba-2 layer says."""
    return called_in_pieces(layer, peer, ("conv", "ssm"), whole)


def by_rwkv(layer: nn.Module, peer: Peer, whole: bool = False) -> Arrays:
    """What a layer says that has a time mixing's states."""
    return called_in_pieces(layer, peer, ("shift", "wkv"), whole)


def called_in_pieces(layer: nn.Module, peer: Peer, names: tuple[str, str], whole: bool) -> Arrays:
    """Outputs and the two states after each of the peer's calls; from its first states, or zeros.

    `whole`: all its calls in one, so that only the states at the end are told.
    """
    inputs, dtype = peer.arrays["inputs"], next(layer.parameters()).dtype
    ends = [torch.zeros_like(peer.arrays[f"{name}.1"]) for name in names]
    states = [peer.arrays.get(f"{name}.0", zeros).to(dtype) for name, zeros in zip(names, ends, strict=True)]
    calls = [sum(peer.sizes["pieces"])] if whole else peer.sizes["pieces"]
    outputs, found = [], Arrays()
    with torch.no_grad():
        for n, piece in enumerate(inputs.to(dtype).split(calls, 1), start=1):
            output, *states = layer(piece, *states)
            outputs.append(output)
            told = len(peer.sizes["pieces"]) if whole else n
            found |= {f"{name}.{told}": state for name, state in zip(names, states, strict=True)}
    return {**found, "outputs": torch.cat(outputs, 1)}


def by_recurrence(function: Callable[..., Scan], peer: Peer, dtype: torch.dtype) -> Arrays:
    """What a recurrence says to fla's r, k, v, log w and u."""
    sizes, outputs, found = peer.sizes, [], Arrays()
    zeros = torch.zeros_like(peer.arrays["wkv.1"])
    state, bonus = peer.arrays.get("wkv.0", zeros).to(dtype), peer.arrays["u"].to(dtype)
    parts = (peer.arrays[name].to(dtype).split(sizes["pieces"], 1) for name in ("r", "k", "v", "log_w"))
    for n, piece in enumerate(zip(*parts, strict=True), start=1):
        answers, state, *_ = function(*piece, bonus, state)
        outputs.append(answers)
        found[f"wkv.{n}"] = state
    return {**found, "outputs": torch.cat(outputs, 1)}


#: What we say to each peer's numbers, in one dtype.
OURS: dict[str, Callable[[Peer, torch.dtype], Arrays]] = {
    "transformers-mamba": lambda peer, dtype: by_mamba(mamba1(peer).to(dtype), peer),
    "transformers-mamba2": lambda peer, dtype: by_mamba(mamba2(peer).to(dtype), peer),
    "fla-rwkv6-recurrence": lambda peer, dtype: by_recurrence(wkv6, peer, dtype),
    "fla-rwkv6-layer": lambda peer, dtype: by_rwkv(time_mix(peer).to(dtype), peer),
    "rwkv-time-mixing": lambda peer, dtype: by_rwkv(in_stream(peer).to(dtype), peer),
}
