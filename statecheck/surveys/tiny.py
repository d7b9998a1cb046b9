"""A tiny configuration of any causal language model of transformers, from its class alone.

Sizes are set by the names of configuration fields: every name that speaks of a width, a number of heads or of layers
gets a small value of its kind, and the class computes the rest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any

VOCABULARY = 64
LAYERS = 4

#: (pattern of a whole field name, value), the first that fits counts.
FIELDS: tuple[tuple[str, Any], ...] = (
    (r".*vocab_size.*|.*_group_vocab", VOCABULARY),
    (r"(pad|bos|eos|sep|cls|unk|mask|decoder_start)_token_id", 0),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks", LAYERS),
    (r"num_nextn_predict_layers|num_mtp_layers|mtp_num_hidden_layers", 0),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),  # times a head of 8: twice the width, as their expansion is
    (r".*(num_key_value_heads|num_kv_heads|n_head_kv|num_key_heads|n_kv_heads).*", 2),
    (r".*(num_attention_heads|num_heads|n_heads?|num_value_heads|n_head|num_query_heads).*", 4),
    (r"mamba_n_groups|n_groups|mamba_ngroups", 2),
    (r"n_group|topk_group|num_expert_groups?", 1),
    (r"(mamba_)?(d_state|state_size|ssm_state_size|mamba_state_size)|mamba_d_ssm_state", 8),
    (r"(mamba_)?(d_conv|conv_kernel|conv_kernel_size)|linear_conv_kernel_dim|conv_L_cache|conv1d_width", 4),
    (r".*chunk_size", 8),
    (r"(num_)?(encoder|decoder)_layers", 2),
    (r"(num_)?(encoder|decoder)_attention_heads", 4),
    (r"is_decoder", True),
    (r"layer_group_size|full_attention_interval", 2),
    (r".*(dt_rank|time_step_rank)", 4),
    (r"mamba_d_ssm|mamba_intermediate", 64),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 8),
    (r"(q|o|kv)_lora_rank|rope_rank|kda_rank", 16),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"qk_nope_head_dim|v_head_dim", 8),
    (r".*head_dim|d_kv|attention_head_size|kv_channels", 8),
    (r"hidden_size|d_model|n_embd|embedding_size|dim|attention_hidden_size|lru_width|emb_dim", 32),
    (r"word_embed_proj_dim|hidden_size_per_layer_input|embed_dim|embedding_dim", 32),
    (r".*(intermediate_size|ffn_dim|ffn_hidden_size|n_inner|d_ff|feedforward|mlp_dim|mlp_hidden).*", 64),
    (r"num_experts_per_tok|moe_k|num_selected_experts|moe_topk|top_k_experts|num_experts_per_token", 2),
    (r"n_shared_experts|num_shared_experts|first_k_dense_replace|moe_layer_start_index", 1),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts)", 4),
    (r"(attn|expert|full_attention|attention)_(layer_)?(period|interval)", 2),
    (r"(attn|expert)_layer_offset", 1),
    (r"attn_layer_indices|full_attn_idxs", [1]),
    (r"(sliding_window|attention_window_size|window_size|local_attention|attention_window)", 16),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length|seq_length", 4096),
    (r".*dropout.*|.*dropout_prob|.*pdrop|layerdrop", 0.0),
    (r"rope_theta", 10000.0),
    (r"use_mamba_kernels|use_kernels|use_cuda", False),
)

#: Set although they are None or false as they come.
OFF_BY_DEFAULT = (
    *("is_decoder", "attn_layer_indices", "head_dim", "rope_theta", "num_key_value_heads", "n_group", "topk_group"),
    *("num_experts_per_tok", "n_routed_experts"),
)


def fields(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Small values for the fields of a configuration that have a size; those that are None or false stay.

    >>> fields({"hidden_size": 4096, "num_key_value_heads": 8, "sliding_window": None, "rms_norm_eps": 1e-6})
    {'hidden_size': 32, 'num_key_value_heads': 2}
    """
    found: dict[str, Any] = {}
    for name, value in defaults.items():
        if (value is None or value is False) and name not in OFF_BY_DEFAULT:
            continue
        for pattern, small in FIELDS:
            if re.fullmatch(pattern, name):
                found[name] = small
                break
    kinds = list(dict.fromkeys(defaults.get("layer_types") or ()))
    if kinds:  # one layer of each kind at least, and one that has keys
        kinds += ["full_attention"] if kinds == ["linear_attention"] else []
        found["layer_types"] = [kinds[i % len(kinds)] for i in range(LAYERS)]
    return found | _together(defaults, found)


def _together(defaults: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that must fit each other: heads of an expanded width, of latent attention, of rounded memories."""
    if "expand" in defaults and {"num_heads", "head_dim"} <= set(defaults):
        return {"num_heads": 8, "head_dim": 8}
    if defaults.get("kv_lora_rank") is not None:
        heads = {name: 4 for name in found if name == "num_key_value_heads"}
        sizes = {"head_dim": found.get("qk_rope_head_dim", 4), "qk_head_dim": 12}
        return heads | {name: size for name, size in sizes.items() if name in found}
    if "qk_dim_factor" in defaults:
        return {"hidden_size": 128}
    return {"attention_hidden_size": 64} if "attention_head_dim" in defaults and "mamba_expand" in defaults else {}


def tiny_config(make: Callable[..., Any], hints: Mapping[str, Any] | None = None) -> Any:
    """A configuration of this class with small sizes. A field that the class refuses is left as it comes."""
    default = make()
    small = fields(default.to_dict()) | dict(hints or {})
    taken = set(inspect.signature(make).parameters) | set(default.to_dict())
    small = {name: value for name, value in small.items() if name in taken}
    for left_out in ((), *((name,) for name in small), *combinations(small, 2)):
        with suppress(Exception):  # fields that must be set together: the fewest are left as they come
            return make(**{name: value for name, value in small.items() if name not in left_out})
    return default
