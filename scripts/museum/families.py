"""Tiny causal language models of transformers, from a config alone, with every number drawn.

Small sizes with the edges of the real ones: more heads than groups, more groups than one, a convolution of four and
chunks of eight. A model as it is initialised hides faults: decays that are all alike, D = 1, biases and dt of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

VOCABULARY = 64
SPREAD = 0.15  # of every matrix
COMMON = {"hidden_size": 32, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False}
SSD = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_conv_bias": True,
}

#: Family -> model class, options of its config.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**COMMON, **ATTENTION, "num_hidden_layers": 2}),
    "mamba": (
        "MambaForCausalLM",
        {**COMMON, "state_size": 8, "num_hidden_layers": 2, "conv_kernel": 4, "expand": 2, "use_bias": True},
    ),
    "falcon-mamba": (
        "FalconMambaForCausalLM",
        {**COMMON, "state_size": 8, "num_hidden_layers": 2, "conv_kernel": 4, "expand": 2, "use_bias": True},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            **COMMON,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "state_size": 8,
            "num_hidden_layers": 2,
            "conv_kernel": 4,
            "chunk_size": 8,
            "expand": 2,
            "use_conv_bias": True,
        },
    ),
    "bamba": ("BambaForCausalLM", {**COMMON, **ATTENTION, **SSD, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "granite-hybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            **COMMON,
            **ATTENTION,
            **SSD,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
        },
    ),
    "falcon-h1": (
        "FalconH1ForCausalLM",
        {
            **COMMON,
            **ATTENTION,
            **SSD,
            "num_hidden_layers": 2,
            "mamba_d_ssm": 64,
            "head_dim": 8,
            "mamba_rms_norm": False,
        },
    ),
    "qwen3-next": (
        "Qwen3NextForCausalLM",
        {
            **COMMON,
            **ATTENTION,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "head_dim": 8,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_conv_kernel_dim": 4,
            "mlp_only_layers": [0, 1, 2],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        {
            **COMMON,
            **ATTENTION,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_L_cache": 4,
            "block_ff_dim": 48,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        {
            **COMMON,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "lru_width": 32,
            "num_hidden_layers": 3,
            "attention_window_size": 64,
            "conv1d_width": 4,
            "block_types": ("recurrent", "recurrent", "attention"),
        },
    ),
}


def build(family: str, seed: int = 0) -> nn.Module:
    """A model of the family, in evaluation mode; the same numbers for the same seed and release."""
    import transformers

    name, options = FAMILIES[family]
    model_class = getattr(transformers, name)
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**options)).eval()
    draw(model, seed)
    return model


@torch.no_grad()
def draw(model: nn.Module, seed: int) -> None:
    """Draw every parameter of a model."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        rule = next((rule for ending, rule in RULES.items() if name.endswith(ending)), _matrix)
        parameter.copy_(rule(torch.randn(parameter.shape, generator=generator)))


def _matrix(noise: torch.Tensor) -> torch.Tensor:
    return SPREAD * noise


def _about_one(noise: torch.Tensor) -> torch.Tensor:
    return 1 + SPREAD * noise


def _step(noise: torch.Tensor) -> torch.Tensor:
    """Such that softplus of it is log-uniform in 0.05 .. 0.8."""
    share = 0.5 * (1 + torch.erf(noise / math.sqrt(2)))
    step = torch.exp(math.log(0.05) + share * math.log(16))
    return step + torch.log(-torch.expm1(-step))


def _rate(noise: torch.Tensor) -> torch.Tensor:
    """The logarithm of a decay's rate."""
    return 0.5 * noise


def _filter(noise: torch.Tensor) -> torch.Tensor:
    return 0.5 * noise


#: End of a parameter's name -> what is made of standard normal numbers; _matrix for all others.
RULES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "A_log": _rate,
    "dt_bias": _step,
    "dt_proj.bias": _step,
    ".D": _about_one,
    "norm.weight": _about_one,
    "norm_f.weight": _about_one,
    "layernorm.weight": _about_one,
    "conv1d.weight": _filter,
    "conv_1d.weight": _filter,
    "conv.conv.weight": _filter,
    "recurrent_param": _rate,
}
