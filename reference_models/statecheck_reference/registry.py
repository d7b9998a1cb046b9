"""The models that this package offers to statecheck by name (entry points `statecheck.models` in pyproject.toml)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from statecheck.protocol import RegisteredModel
from statecheck_reference.lstm import LSTMConfig, LSTMLanguageModel

PACKAGE = Path(__file__).resolve().parent
LSTM_FOLDER, TEXT_FOLDER = PACKAGE / "lstm", PACKAGE / "text"


def build_lstm(config: Mapping[str, Any]) -> LSTMLanguageModel:
    """An untrained LSTM language model of the shape that `config` gives; ValueError names a wrong key or value.

    >>> build_lstm({"vocabulary": 256, "width": 16, "layers": 3}).config
    LSTMConfig(vocabulary=256, width=16, layers=3)
    """
    return LSTMLanguageModel(LSTMConfig.from_mapping(config))


reference_lstm = RegisteredModel(
    name="reference-lstm",
    title="Reference LSTM: 2 layers of 224, 4,096 byte pairs, trained on 25 English novels",
    build=build_lstm,
    folder=LSTM_FOLDER,
    text=TEXT_FOLDER,
)

# What `statecheck run` checks when it is given no model.
reference = replace(reference_lstm, name="reference")
