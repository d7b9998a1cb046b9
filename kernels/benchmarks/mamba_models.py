"""A language model of Mamba-1 blocks, three times: on our kernels, on mambapy's blocks, and transformers' own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from statecheck_reference.hybrid_config import HybridConfig
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.learners import Names, Read, copy_weights
from benchmarks.peers import attribute

MAMBA = HybridConfig(
    layout="interleaved",
    ratio="0:1",
    mamba_version=1,
    feed_forward=0,
    width=256,
    rwkv_heads=4,  # it has none, and they must divide the width
    mamba_inner=512,
    mamba_state=16,
    mamba_rank=16,
    blocks=4,
    vocabulary=4096,
)
EPSILON = 1e-6  # of our norms, given to both peers


@dataclass(frozen=True)
class Peer:
    """A peer's model with our weights: how it reads, how it calls our parameters; `slow`: a step takes a minute."""

    model: nn.Module
    read: Read
    names: Names
    slow: bool = False


Make = Callable[[HybridConfig, nn.Module], Peer | str]  # of a config and a model of ours; or why there is none


class MambapyLanguageModel(nn.Module):
    """mambapy's blocks and norm between an embedding and its transpose; mambapy.lm itself needs mamba_ssm to import."""

    def __init__(self, layers: nn.Module, norm: nn.Module, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding, self.mamba, self.norm_f = nn.Embedding(vocabulary, width), layers, norm

    def forward(self, inputs: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, T, V)."""
        return functional.linear(self.norm_f(self.mamba(self.embedding(inputs))), self.embedding.weight)


def mambapy(config: HybridConfig, ours: nn.Module) -> Peer | str:
    """With its parallel scan, as it ships."""
    found: list[Any] = []
    for name in ("Mamba", "MambaConfig", "RMSNorm"):
        one, why = attribute("mambapy.mamba", name)
        if one is None:
            return why
        found.append(one)
    mamba, settings, norm = found
    shape = settings(
        d_model=config.width,
        n_layers=config.blocks,
        dt_rank=config.mamba_rank,
        d_state=config.mamba_state,
        expand_factor=config.mamba_inner // config.width,
        rms_norm_eps=EPSILON,
    )
    model = MambapyLanguageModel(mamba(shape), norm(config.width, EPSILON), config.vocabulary, config.width)
    copy_weights(ours, model, _of_mambapy)
    return Peer(model, model, _of_mambapy)


def transformers(config: HybridConfig, ours: nn.Module) -> Peer | str:
    """Its slow path, the loop over time that runs where no kernels are."""
    settings, why = attribute("transformers", "MambaConfig")
    kind, why_not = attribute("transformers", "MambaForCausalLM")
    if settings is None or kind is None:
        return why or why_not
    shape = settings(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        state_size=config.mamba_state,
        num_hidden_layers=config.blocks,
        expand=config.mamba_inner // config.width,
        time_step_rank=config.mamba_rank,
        layer_norm_epsilon=EPSILON,
        use_mambapy=False,
        use_cache=False,
        tie_word_embeddings=True,
    )
    model = kind(shape).train()
    copy_weights(ours, model, _of_transformers)

    def read(inputs: Tensor) -> Tensor:
        logits: Tensor = model(inputs).logits
        return logits

    return Peer(model, read, _of_transformers, slow=True)


PEERS: dict[str, Make] = {"mambapy": mambapy, "transformers slow path": transformers}


def _of_mambapy(name: str) -> str:
    """Our name of a parameter -> mambapy's.

    >>> [_of_mambapy(name) for name in ("embedding.weight", "blocks.0.mamba.A_log", "norm.weight")]
    ['embedding.weight', 'mamba.layers.0.mixer.A_log', 'norm_f.weight']
    """
    if name.startswith("blocks."):
        return f"mamba.layers.{name.removeprefix('blocks.').replace('.mamba.', '.mixer.')}"
    return "norm_f.weight" if name == "norm.weight" else name


def _of_transformers(name: str) -> str:
    """Our name of a parameter -> transformers'.

    >>> [_of_transformers(name) for name in ("embedding.weight", "blocks.0.norm.weight")]
    ['backbone.embeddings.weight', 'backbone.layers.0.norm.weight']
    """
    if name.startswith("embedding."):
        return "backbone.embeddings.weight"
    return "backbone." + _of_mambapy(name).removeprefix("mamba.")
