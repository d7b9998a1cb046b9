"""The models that this package trains and ships: one literal table, all that the rest of the package knows of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from statecheck.protocol import ComponentFacts
from statecheck_reference.carrying import CarriesStates
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import HybridConfig
from statecheck_reference.lstm import LSTMConfig, LSTMLanguageModel
from statecheck_reference.transformer import TransformerConfig, TransformerLanguageModel

PACKAGE = Path(__file__).resolve().parent
LanguageModel = CarriesStates  # (batch, time) ids to (batch, time, vocabulary) logits
Shape = Mapping[str, int | float | str | bool]


class Config(Protocol):
    """The shape of a model: a dataclass whose defaults are the shipped model's."""

    def to_dict(self) -> dict[str, Any]: ...

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "Config": ...


@dataclass(frozen=True)
class Declared:
    """What can't be found by trying: components; pattern of state names -> fields of `StateFacts`; and the kinds of
    what `get_signals()` shows, by pattern."""

    components: Mapping[str, ComponentFacts]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    signals: Mapping[str, str] = field(default_factory=dict)

    def for_wrap(self) -> dict[str, Any]:
        """In the words of `statecheck.wrap` and of config.json; what is empty is left out.

        >>> MODELS["lstm"].declared({}).for_wrap()
        {'components': {'lstm': ('layers.*',)}, 'selective': {'lstm': True}}
        """
        facts = self.components.items()
        said = {
            "components": {name: one.states for name, one in facts},
            "parameters": {name: one.parameters for name, one in facts if one.parameters},
            "modules": {name: one.modules for name, one in facts if one.modules},
            "selective": {name: one.selective for name, one in facts if one.selective is not None},
            "states": self.states,
            "signals": self.signals,
        }
        return {key: value for key, value in said.items() if value}


@dataclass(frozen=True)
class Architecture:
    """One kind of model: its classes, where its trained weights ship, and what it declares to statecheck."""

    name: str
    title: str
    config: type[Config]
    module: Callable[[Any], LanguageModel]
    folder: Path
    declare: Callable[[Any], Declared]  # of a config

    @property
    def registered(self) -> str:
        """The name under which statecheck and the checkpoints know the model."""
        return f"reference-{self.name}"

    def complete(self, shape: Shape) -> dict[str, Any]:
        """`shape` with the shipped model's values for what it leaves out; ValueError names a wrong key or value.

        >>> MODELS["lstm"].complete({"width": 16})
        {'vocabulary': 4096, 'width': 16, 'layers': 2}
        """
        return self.config.from_mapping({**self.config().to_dict(), **shape}).to_dict()

    def build(self, shape: Mapping[str, Any]) -> LanguageModel:
        """An untrained model of a whole shape, as a checkpoint names it; ValueError names a wrong key or value.

        >>> MODELS["lstm"].build({"vocabulary": 256, "width": 16, "layers": 3}).config
        LSTMConfig(vocabulary=256, width=16, layers=3)
        """
        return self.module(self.config.from_mapping(shape))

    def declared(self, shape: Shape) -> Declared:
        """What a model of that shape declares; what the shape leaves out is the shipped model's.

        >>> list(MODELS["hybrid"].declared({"layout": "interleaved", "ratio": "0:1"}).components)
        ['mamba']
        """
        return self.declare(self.config.from_mapping(self.complete(shape)))


HYBRID_COMPONENTS = {
    "rwkv": ComponentFacts(("*.rwkv.*",), ("*.rwkv.*",), ("*.rwkv",), selective=True),
    "mamba": ComponentFacts(("*.mamba.*",), ("*.mamba.*",), ("*.mamba",), selective=True),
    "attention": ComponentFacts(("*.attention.*",), ("*.attention.*",), ("*.attention",)),
}
HYBRID_STATES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "rwkv": {
        "*.rwkv.wkv": {"kind": "matrix", "head_axis": 1, "recurrence": "diagonal"},
        "*.rwkv.shift": {"kind": "conv"},
    },
    "mamba": {
        "*.mamba.ssm": {"kind": "matrix", "head_axis": 1, "recurrence": "diagonal"},
        "*.mamba.conv": {"kind": "conv"},
    },
    "attention": {
        "*.attention.keys": {"kind": "kv", "head_axis": 2},
        "*.attention.values": {"kind": "kv", "head_axis": 2},
        "*.attention.filled": {"kind": "mask"},
    },
}


def declare_hybrid(config: HybridConfig) -> Declared:
    """The mixers that a hybrid of this config has; a Mamba-1 state has channels and no heads."""
    states = {pattern: fields for name in config.components for pattern, fields in HYBRID_STATES[name].items()}
    if config.mamba_version == 1 and "mamba" in config.components:
        states["*.mamba.ssm"] = {"kind": "matrix", "recurrence": "diagonal"}
    gated = config.layout == "parallel" and config.fusion in ("gate", "channel-gate", "sum")
    signals = {"*.gate": "gate"} if gated else {}
    return Declared(
        {name: HYBRID_COMPONENTS[name] for name in config.components}, states, {**signals, "*.log_decay": "log_decay"}
    )


MODELS: dict[str, Architecture] = {
    "lstm": Architecture(
        name="lstm",
        title="Reference LSTM: 2 layers of 224, 4,096 byte pairs, trained on 25 English novels",
        config=LSTMConfig,
        module=LSTMLanguageModel,
        folder=PACKAGE / "lstm",
        declare=lambda config: Declared({"lstm": ComponentFacts(states=("layers.*",), selective=True)}),
    ),
    "hybrid": Architecture(
        name="hybrid",
        title="Reference hybrid: 6 blocks of RWKV-6 beside Mamba-2, 4,096 byte pairs, trained on 25 English novels",
        config=HybridConfig,
        module=HybridLanguageModel,
        folder=PACKAGE / "hybrid",
        declare=declare_hybrid,
    ),
    "transformer": Architecture(
        name="transformer",
        title="Reference transformer: 2 layers of 96 with a cache, 4,096 byte pairs, trained on 25 English novels",
        config=TransformerConfig,
        module=TransformerLanguageModel,
        folder=PACKAGE / "transformer",
        declare=lambda config: Declared({"attention": ComponentFacts(states=("layers.*",))}),
    ),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name; ValueError lists those that there are.

    >>> architecture("gru")
    Traceback (most recent call last):
        ...
    ValueError: model: expected one of hybrid, lstm, transformer, found 'gru'
    """
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(sorted(MODELS))}, found {name!r}")
    return MODELS[name]
