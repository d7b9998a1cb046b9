"""The models that this package offers to statecheck by name (entry points `statecheck.models` in pyproject.toml)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from statecheck.protocol import RegisteredModel
from statecheck_reference.models import MODELS, PACKAGE
from statecheck_reference.vector_gru import VectorGRU, VectorGRUConfig

TEXT_FOLDER = PACKAGE / "text"


def registered(name: str) -> RegisteredModel:
    """What statecheck is told of a model of the table: how to build it, its weights, and the text to check it on.

    >>> registered("lstm").name
    'reference-lstm'
    """
    model = MODELS[name]
    return RegisteredModel(model.registered, model.title, model.build, model.folder, TEXT_FOLDER)


def build_vector_gru(config: Mapping[str, Any]) -> VectorGRU:
    """An untrained GRU of vectors of the shape that `config` gives; ValueError names a wrong key or value.

    >>> build_vector_gru({"width": 8, "hidden": 16, "layers": 1}).config
    VectorGRUConfig(width=8, hidden=16, layers=1)
    """
    return VectorGRU(VectorGRUConfig.from_mapping(config))


reference_hybrid = registered("hybrid")
reference_lstm = registered("lstm")
reference_transformer = registered("transformer")
reference_vectors = RegisteredModel(
    name="reference-vectors",
    title="Reference GRU of vectors: 2 layers of 48, the style of every eight words of 25 English novels",
    build=build_vector_gru,
    folder=PACKAGE / "vector_gru",
    text=PACKAGE / "vector_gru" / "vectors.npz",
)

# What `statecheck run` checks when it is given no model.
reference = replace(reference_hybrid, name="reference")
