"""The causal language models of an installed transformers: which there are, and a tiny one of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from statecheck.adapters.huggingface.transcript import scatter
from statecheck.surveys.tiny import tiny_config

MOST_PARAMETERS = 5_000_000

#: What the names of a configuration's fields do not tell: sizes that must fit each other.
HINTS: dict[str, dict[str, Any]] = {
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "zamba": {"num_hidden_layers": 6, "n_mamba_heads": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"per_layer_config": {"02": {}}},
    "gemma3n_text": {"num_hidden_layers": 6, "num_kv_shared_layers": 0},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "xmod": {"default_language": "en_XX"},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "conv"]},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16},
        **{"indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "hc_lowrank": 8},
    },
    "prophetnet": {"max_position_embeddings": 256},  # its relative positions are a square of that
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "linear_attention"],
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
}


def causal_models() -> dict[str, tuple[type, type]]:
    """Model type -> (configuration class, model class), in alphabetical order."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    names = {config: name for name, config in CONFIG_MAPPING.items()}
    found: dict[str, tuple[type, type]] = {}
    for config, model in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        for one in model if isinstance(model, (tuple, list)) else [model]:
            found.setdefault(names.get(config, config.__name__), (config, one))
    return dict(sorted(found.items()))


def build(config_class: Any, model_class: Any, *, seed: int = 0) -> nn.Module:
    """A tiny model of these classes in float32, its weights drawn so that the state matters.

    Raises ValueError where the model is not tiny, with the parameter that is too large.
    """
    if {"text_config", "decoder"} & set(getattr(config_class, "sub_configs", None) or {}):
        raise ValueError("a composite of several models: its language model is surveyed under its own name")
    config = tiny_config(config_class, HINTS.get(getattr(config_class, "model_type", "")))
    with torch.device("meta"):
        sizes = {name: value.numel() for name, value in model_class(config).named_parameters()}
    if sum(sizes.values()) > MOST_PARAMETERS:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(f"{sum(sizes.values()):,} parameters, the most in {largest}: a size was not recognised")
    torch.manual_seed(seed)
    return scatter(model_class(config).float(), seed)
