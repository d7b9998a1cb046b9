"""Tiny models of libraries of recurrent models, mambapy, xlstm and rwkv: what a survey of them builds.

Each maker gives a module with random weights, and what `wrap` must be told of it. None of these libraries has a list
of its models to go through: these are the ways in that their own pages show.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from statecheck.adapters.huggingface.transcript import scatter

WIDTH, VOCABULARY = 8, 32
Made = tuple[Any, dict[str, Any]]


def _mambapy(*, pscan: bool, seed: int) -> Made:
    library = import_module("mambapy.mamba")
    config = library.MambaConfig(d_model=WIDTH, n_layers=2, d_state=4, pscan=pscan)
    return scatter(library.Mamba(config), seed), {"width": WIDTH}


def _mambapy_jamba(*, seed: int) -> Made:
    library = import_module("mambapy.jamba")
    sizes = {"n_layers": 4, "mlp_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4}
    placed = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    config = library.JambaLMConfig(vocab_size=VOCABULARY, d_model=16, d_state=4, **sizes, **placed)
    return scatter(library.JambaLM(config), seed), {"vocabulary": VOCABULARY}


def _mambapy_mamba2(*, seed: int) -> Made:
    library = import_module("mambapy.mamba2")
    config = library.Mamba2Config(d_model=16, n_layers=2, d_head=8, d_state=8)
    return scatter(library.Mamba2(config), seed), {"width": 16}


def _xlstm_settings(*, mlstm: bool, slstm: bool) -> dict[str, Any]:
    library = import_module("xlstm")
    blocks: dict[str, Any] = {"context_length": 256, "num_blocks": 2, "embedding_dim": WIDTH}
    if mlstm:
        blocks["mlstm_block"] = library.mLSTMBlockConfig(mlstm=library.mLSTMLayerConfig(num_heads=2))
    if slstm:
        layer = library.sLSTMLayerConfig(backend="vanilla", num_heads=2)
        blocks |= {"slstm_block": library.sLSTMBlockConfig(slstm=layer), "slstm_at": [1] if mlstm else "all"}
    return blocks


def _xlstm(*, mlstm: bool, slstm: bool, seed: int) -> Made:
    library = import_module("xlstm")
    config = library.xLSTMBlockStackConfig(**_xlstm_settings(mlstm=mlstm, slstm=slstm))
    return scatter(library.xLSTMBlockStack(config), seed), {"width": WIDTH}


def _xlstm_language_model(*, seed: int) -> Made:
    library = import_module("xlstm.xlstm_lm_model")
    config = library.xLSTMLMModelConfig(**_xlstm_settings(mlstm=True, slstm=True), vocab_size=VOCABULARY)
    return scatter(library.xLSTMLMModel(config), seed), {"vocabulary": VOCABULARY}


def _rwkv7(*, seed: int) -> Made:
    os.environ["RWKV_V7_ON"] = "1"  # read when the package is imported
    library = import_module("rwkv.model")
    with TemporaryDirectory() as folder:
        torch.save(rwkv7_weights(16, 2, 2, seed=seed), Path(folder) / "tiny.pth")
        return library.RWKV(model=str(Path(folder) / "tiny"), strategy="cpu fp32"), {}


def rwkv7_weights(width: int, heads: int, layers: int, *, seed: int) -> dict[str, Tensor]:
    """Random weights of RWKV-7, by the names of its checkpoints."""
    draw = torch.Generator().manual_seed(seed)

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


#: Library -> model -> how it is made from a seed.
MAKERS: Mapping[str, Mapping[str, Callable[[int], Made]]] = {
    "mambapy": {
        "mamba": lambda seed: _mambapy(pscan=True, seed=seed),
        "mamba-sequential": lambda seed: _mambapy(pscan=False, seed=seed),
        "mamba2": lambda seed: _mambapy_mamba2(seed=seed),
        "jamba": lambda seed: _mambapy_jamba(seed=seed),
    },
    "xlstm": {
        "mlstm": lambda seed: _xlstm(mlstm=True, slstm=False, seed=seed),
        "slstm": lambda seed: _xlstm(mlstm=False, slstm=True, seed=seed),
        "both": lambda seed: _xlstm(mlstm=True, slstm=True, seed=seed),
        "language-model": lambda seed: _xlstm_language_model(seed=seed),
    },
    "rwkv": {"rwkv7": lambda seed: _rwkv7(seed=seed)},
}
