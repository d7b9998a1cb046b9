"""No adapter, law or history knows a family of models, or a class, by its name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import statecheck as sc

FAMILIES = re.compile(
    "mamba|llama|rwkv|bamba|jamba|zamba|gpt|mistral|gemma|qwen|falcon|granite|nemotron|xlstm|lfm2|griffin|retnet|hgrn"
    "|deltanet|minimax|bloom|olmo",
    re.IGNORECASE,
)
#: How a library is called is the matter of its adapter, which may look its package up.
LIBRARIES = {"mamba_ssm", "mambapy", "rwkv", "fla", "xlstm", "keras", "onnxruntime", "transformers"}
FILES = [
    path
    for folder in ("adapters", "laws", "histories")
    for path in sorted((Path(sc.__file__).parent / folder).glob("*.py"))
]


def words(tree: ast.AST) -> list[str]:
    """Texts of the code that are single words; docstrings are sentences."""
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if text and not any(space in text for space in " \n")]


def compared_names(tree: ast.AST) -> list[str]:
    """Comparisons that ask for the name of a class or the type of a model in a configuration."""
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    asked = {"__name__", "__qualname__", "model_type", "architectures"}
    inside = [(node, inner) for node in compared for inner in ast.walk(node) if isinstance(inner, ast.Attribute)]
    return [ast.unparse(node) for node, inner in inside if inner.attr in asked]


def told(code: str) -> list[str]:
    """What of a file's code knows a family."""
    tree = ast.parse(code)
    named = [word for word in words(tree) if word not in LIBRARIES]
    return [word for word in named if FAMILIES.search(word)] + compared_names(tree)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_file_knows_no_family_and_no_class_by_its_name(path: Path) -> None:
    assert not told(path.read_text())


@pytest.mark.parametrize(
    "code",
    [
        'if model_kind == "mamba2": repair()',
        'REPAIRS = {"BambaForCausalLM": repair}',
        "if config.model_type in chosen: repair()",
        'if type(module).__name__ == "MyCache": repair()',
        'if re.match("Qwen.*", told): repair()',
    ],
)
def test_a_file_that_did_would_be_found(code: str) -> None:
    assert told(code)
