"""What tests of the hybrid family share: small models of every make, and the whole family a second time, in numpy.

The second time: float64, one sequence, the glossaries of hybrid.py, fusion.py and attention.py read again. It shares
with the package its config and the names of its weights; the recurrences are the sums of `paper.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import paper
import torch
from agreement import randomised
from cuts import generator
from paper import Array, silu, softplus
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import HybridConfig
from statecheck_reference.rwkv6 import TimeMix
from test_reference_hybrid import SMALL
from test_reference_rwkv6 import in_the_papers_names
from torch import Tensor

BASE = replace(SMALL, attention_heads=2, attention_window=4)
#: One make each of all that a hybrid can be: what differs from BASE, which is parallel with a gate for each channel.
MAKES: dict[str, dict[str, Any]] = {
    "parallel": {},
    "interleaved": {"layout": "interleaved", "ratio": "3:1", "blocks": 4},
    "sequential": {"layout": "sequential", "ratio": "1:2", "blocks": 3, "branch_norm": True},
    "pure-rwkv": {"layout": "interleaved", "ratio": "1:0", "norm_groups": 1, "attention_at": 1},
    "pure-mamba": {"layout": "sequential", "ratio": "0:1", "norm_groups": 4, "residual_gamma": 0.3},
    "branch-norm": {"branch_norm": True, "fusion": "sum"},
    "gamma": {"residual_gamma": 0.5, "fusion": "gate"},
    "norm-groups": {"norm_groups": 4, "width": 12, "fusion": "project"},
    "attention": {"attention_at": 0, "residual_gamma": 0.2, "attention_window": 3},
    "no-feeding": {"feed_forward": 0, "attention_at": 1, "fusion": "residual"},
    "mamba-1": {"mamba_version": 1, "mamba_rank": 2, "branch_norm": True, "residual_gamma": 0.4, "attention_at": 1},
    "mamba-1 in turn": {"layout": "interleaved", "mamba_version": 1, "mamba_rank": 3, "feed_forward": 0},
    "fixed-sum": {"fusion": "sum", "blend": 0.7, "blend_learned": False},
}


def config_of(make: str) -> HybridConfig:
    """The config of that make."""
    return replace(BASE, **MAKES[make])


def family_model(make: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> HybridLanguageModel:
    """A model of that make all of whose weights matter."""
    return randomised(lambda: HybridLanguageModel(config_of(make)), seed).to(dtype)


def some_states(model: HybridLanguageModel, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Normal numbers in all states; some places of a cache are empty."""
    draw, like = generator(seed), model.embedding.weight
    found = {n: torch.randn(batch, *s, generator=draw, dtype=torch.float64) for n, s in model.state_shapes.items()}
    return {n: ((x > -0.5) if n.endswith("filled") else x).to(like.dtype) for n, x in found.items()}


# ----------------------------------------------------------------------------------------------------- a second time


def rms(x: Array, gain: Array) -> Array:
    """RMSNorm over the last axis."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def time_mixing(layer: TimeMix, x: Array, held: Mapping[str, Array], groups: int) -> tuple[Array, dict[str, Array]]:
    """RWKV-6 as `paper.time_mixing`, with the norm of the answer over any number of groups of channels."""
    p, states = in_the_papers_names(layer), held["wkv"]
    shifted = np.concatenate([held["shift"][None], x])[:-1]
    apart = shifted - x
    low = x + apart * p["mu_x"]
    mixed = {q: x + apart * (p[f"lambda_{q}"] + np.tanh(low @ p[f"A_{q}"]) @ p[f"B_{q}"]) for q in "rkvgd"}
    r, k, v, g = (mixed[q] @ p[f"W_{q}"] for q in "rkvg")
    w = np.exp(-np.exp(p["lambda_w"] + np.tanh(mixed["d"] @ p["A_w"]) @ p["B_w"]))
    y, last, size = np.zeros_like(x), np.zeros_like(states), x.shape[1] // len(states)
    for head, state in enumerate(states):
        own = np.s_[:, head * size : (head + 1) * size]
        y[own], last[head] = paper.wkv(r[own], k[own], v[own], w[own], p["u"][head], state)
    parts = y.reshape(len(x), groups, -1)
    centred = parts - parts.mean(-1, keepdims=True)
    normed = (centred / np.sqrt(parts.var(-1, keepdims=True) + 64e-5)).reshape(x.shape)
    return (silu(g) * (normed * p["gain"] + p["bias"])) @ p["W_o"], {"shift": x[-1], "wkv": last}


def mamba2(
    p: Mapping[str, Array], u: Array, held: Mapping[str, Array], shared: int, groups: int
) -> tuple[Array, dict[str, Array]]:
    """Mamba-2 as `paper.mamba2`, B and C `shared` by so many groups of heads, the norm over any number of groups."""
    states = held["ssm"]
    heads, size, n = states.shape
    inner = heads * size
    z, entering, dt = np.split(u @ p["in_proj.weight"].T, [inner, 2 * inner + 2 * shared * n], axis=1)
    seen = np.concatenate([held["conv"].T, entering])
    kernel = p["conv1d.weight"][:, 0].T  # (4, channels), the latest last
    convolved = silu(sum(kernel[lag] * seen[lag : lag + len(u)] for lag in range(4)) + p["conv1d.bias"])
    x, b, c = np.split(convolved, [inner, inner + shared * n], axis=1)
    dt = softplus(dt + p["dt_bias"])
    y, last = np.zeros_like(x), np.zeros_like(states)
    for head, state in enumerate(states):
        own, group = np.s_[:, head * size : (head + 1) * size], head * shared // heads
        of_group, step = np.s_[:, group * n : (group + 1) * n], dt[:, [head]]
        log_a = -step[:, 0] * np.exp(p["A_log"][head])
        answer, last[head] = paper.ssm(x[own] * step, log_a, b[of_group], c[of_group], state)
        y[own] = answer + p["D"][head] * x[own]
    parts = (y * silu(z)).reshape(len(u), groups, -1)
    normed = (parts / np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5)).reshape(y.shape)
    return (normed * p["norm.weight"]) @ p["out_proj.weight"].T, {"conv": seen[-3:].T, "ssm": last}


def attention(p: Mapping[str, Array], x: Array, held: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Each token's query against the filled places kept and its own, the oldest place going with each token."""
    kept, heads, size = held["keys"].shape
    w_q, w_k, w_v = p["qkv.weight"].reshape(3, heads, size, -1)
    keys, values, filled = held["keys"], held["values"], held["filled"]
    answers = []
    for token in x:
        keys, values = np.concatenate([keys, [w_k @ token]]), np.concatenate([values, [w_v @ token]])  # (P + 1, H, D)
        filled = np.append(filled, 1.0)
        scores = np.einsum("hd,phd->ph", w_q @ token, keys) / np.sqrt(size)
        weights = np.exp(scores) * filled[:, None]
        answers.append(np.einsum("ph,phd->hd", weights / weights.sum(0), values).ravel())
        keys, values, filled = keys[-kept:], values[-kept:], filled[-kept:]
    return np.array(answers) @ p["output.weight"].T, {"keys": keys, "values": values, "filled": filled}


def fused(fusion: str, p: Mapping[str, Array], n: Array, r: Array, m: Array) -> Array:
    """The five formulas of fusion.py."""
    if fusion in ("gate", "channel-gate"):
        g = sigmoid(n @ p["weight"].T + p["bias"])
        return g * r + (1 - g) * m
    if fusion == "sum":
        a = sigmoid(p["weight"])
        return a * r + (1 - a) * m
    return r + p["weight"] * m if fusion == "residual" else np.concatenate([r, m], axis=1) @ p["weight"].T


def part_of(weights: Mapping[str, Array], name: str) -> dict[str, Array]:
    """The entries NAME.*, by the rest of their names."""
    return {key.removeprefix(f"{name}."): one for key, one in weights.items() if key.startswith(f"{name}.")}


def mixed(model: HybridLanguageModel, n: int, name: str, x: Array, held: Mapping[str, Array]) -> Any:
    """What the mixer of that name in block `n` says of x (T, W), and its next states."""
    config, layer = model.config, model.blocks[n].get_submodule(name)
    p = {key: value.detach().numpy() for key, value in layer.named_parameters()}
    if name == "rwkv":
        return time_mixing(layer, x, held, config.norm_groups or config.rwkv_heads)
    if name == "attention":
        return attention(p, x, held)
    if config.mamba_version == 1:
        answer, conv, ssm = paper.mamba1(p, x, held["conv"], held["ssm"])
        return answer, {"conv": conv, "ssm": ssm}
    return mamba2(p, x, held, config.mamba_groups, config.norm_groups or config.mamba_groups)


def block_again(
    model: HybridLanguageModel, n: int, x: Array, held: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Block `n`: the stream (T, W) after it, and its next states."""
    config, after = model.config, {}
    p = {name: value.detach().numpy() for name, value in model.blocks[n].named_parameters()}

    def scale(name: str) -> Array | float:
        return p[f"gamma.{name}"] if config.residual_gamma else 1.0

    def answer(name: str, normed: Array) -> Array:
        said, states = mixed(model, n, name, normed, part_of(held, name))
        after.update({f"{name}.{state}": value for state, value in states.items()})
        return said

    if n == config.attention_at:
        x = x + scale("attention") * answer("attention", rms(x, p["attention_norm.weight"]))
    normed = rms(x, p["norm.weight"])
    said = [answer(name, normed) for name in config.mixers[n]]
    if config.branch_norm:
        said = [rms(one, p[f"branch_norms.{i}.weight"]) for i, one in enumerate(said)]
    joined = fused(config.fusion, part_of(p, "fusion"), normed, *said) if len(said) == 2 else said[0]
    x = x + scale("mixing") * joined
    if config.feed_forward:
        hidden = np.maximum(rms(x, p["feed_norm.weight"]) @ p["feed_in.weight"].T, 0) ** 2
        x = x + scale("feeding") * (hidden @ p["feed_out.weight"].T)
    return x, after


def model_again(model: HybridLanguageModel, tokens: Array, held: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Logits (T, V) of tokens (T) and the next states, from `held`, the states of one row."""
    table, after = model.embedding.weight.detach().numpy(), {}
    stream = table[tokens]
    for n in range(model.config.blocks):
        stream, own = block_again(model, n, stream, part_of(held, f"blocks.{n}"))
        after |= {f"blocks.{n}.{name}": state for name, state in own.items()}
    return rms(stream, model.norm.weight.detach().numpy()) @ table.T, after
