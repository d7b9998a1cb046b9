"""What is done with a cached model, written down as lines of Python that need its library and nothing else.

A maintainer is to read, and run, the calls of the library itself: the arguments of forward, the cache that a call
brought and that the next one is given, its own reorder_cache and crop. The lines are those of the calls that were made.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statecheck.errors import NotOffered

SPREAD, MOVED = 0.15, 0.1  # random weights: matrices N(0, 0.15), vectors moved by N(0, 0.1), so that states matter
MOST_DRAWN = 50_000_000  # parameters of a model that is built a second time
TOLD_APART = ("transformers_version", "architectures", "dtype", "torch_dtype", "model_type")
WEIGHTS = f"""\
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # random weights for which the state matters
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_({SPREAD} * drawn if parameter.dim() > 1 else parameter + {MOVED} * drawn)"""


@torch.no_grad()
def scatter(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights drawn anew, in evaluation mode; the same for the same seed. Vectors move: constant ones hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.copy_(SPREAD * drawn if parameter.dim() > 1 else parameter + MOVED * drawn)
    return module.eval()


@dataclass
class Transcript:
    """Lines of Python: `recipe` defines make(), a new model; `lines` are what was done with it.

    `calls` are the outputs of the calls made so far, as expressions. `sequences` are those that the lines may name.
    """

    recipe: Sequence[str]
    sequences: Mapping[str, Tensor]
    lines: list[str] = field(default_factory=lambda: ["model = make()"])
    calls: list[str] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)  # of caches, by identity
    _caches: list[object] = field(default_factory=list)  # kept, so that no identity is used twice
    _made: int = 0

    def name(self, cache: object, name: str) -> str:
        """From now on `cache` is called `name`."""
        self._caches.append(cache)
        self._names[id(cache)] = name
        return name

    def named(self, cache: object) -> str:
        """What a cache is called. Raises :class:`NotOffered` for one that no line has made."""
        if id(cache) not in self._names:
            raise NotOffered("a cache of which no line of the script tells where it is from")
        return self._names[id(cache)]

    def variable(self) -> str:
        """A name that is not used yet."""
        self._made += 1
        return f"cache{self._made}"

    def calling(self, model: str, given: Mapping[str, Any]) -> None:
        """A call of the model is about to be made."""
        arguments = ", ".join(f"{key}={self.written(value)}" for key, value in given.items())
        self.lines.append(f"out{len(self.calls) + 1} = {model}({arguments})")
        self.calls.append("")

    def called(self, given: Any, brought: Mapping[str, object]) -> None:
        """The call was made: what it gave, and the caches to go on with."""
        out = f"out{len(self.calls)}"
        outputs = next((key for key in ("logits", "last_hidden_state") if hasattr(given, key)), None)
        self.calls[-1] = f"{out}.{outputs}" if outputs else f"{out}[0]"
        for argument, cache in brought.items():
            self.name(cache, f"{out}.{argument}" if hasattr(given, argument) else f'{out}["{argument}"]')

    def copied(self, old: Mapping[str, object], new: Mapping[str, object]) -> None:
        """Caches were copied."""
        for argument, cache in old.items():
            line = self.name(new[argument], self.variable()) + f" = copy.deepcopy({self.named(cache)})"
            self.lines.append(line)

    def made(self, model: str, how: str, caches: Mapping[str, object], inputs: Tensor) -> None:
        """The caches of a first call were made: empty ones, or by the model's preparation for generation."""
        for argument, cache in caches.items():
            name = self.name(cache, self.variable())
            if how == "dynamic":
                takes = "config" in inspect.signature(type(cache).__init__).parameters  # newer releases do
                self.lines.append(f"{name} = transformers.DynamicCache({f'config={model}.config' if takes else ''})")
            else:
                asked = f"{self.written(inputs)}, attention_mask=torch.ones{tuple(inputs.shape)}.long(), use_cache=True"
                positions = f"cache_position=torch.arange({inputs.shape[1]})"
                prepared = f"{model}.prepare_inputs_for_generation({asked}, {positions})"
                self.lines.append(f'{name} = {prepared}["{argument}"]')

    def reordering(self, model: str, cache: object, rows: Tensor) -> str:
        """The rows of a cache are about to be reordered, by itself where `model` is "", else by the model.

        What the cache is called afterwards.
        """
        name, index = self.named(cache), f"torch.tensor({rows.tolist()})"
        if not model:
            self.lines.append(f"{name}.reorder_cache({index})")
            return name
        after = self.variable()
        self.lines.append(f"{after} = {model}._reorder_cache({name}, {index})")
        return after

    def written(self, value: Any) -> str:
        """An argument of a call as an expression."""
        if isinstance(value, Tensor):
            return self._sliced(value) or _literal(value)
        return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else self.named(value)

    def _sliced(self, value: Tensor) -> str:
        """The part of a sequence that has these values, "" if none has."""
        for name, whole in self.sequences.items():
            wide = value.shape[1] if value.dim() == whole.dim() else whole.shape[1] + 1
            for start in range(whole.shape[1] - wide + 1):
                span = f"{start}:{start + wide}"
                part = whole[:, start : start + wide]
                if part.shape == value.shape and torch.equal(part, value):
                    return f"{name}[:, {span}]"
                index = [_row(part, row) for row in value]
                if wide > 1 and None not in index and part.dtype == value.dtype:
                    return f"{name}[{index}, {span}]"
        return ""


def _row(part: Tensor, row: Tensor) -> int | None:
    return next((i for i, other in enumerate(part) if torch.equal(other, row)), None)


def _literal(value: Tensor) -> str:
    values = value.tolist()
    if value.dim() == 1 and values == list(range(values[0], values[0] + len(values))):
        return f"torch.arange({values[0]}, {values[0] + len(values)})"
    if value.dim() == 2 and value.dtype == torch.long and bool((value == 1).all()):
        return f"torch.ones({len(value)}, {value.shape[1]}, dtype=torch.long)"
    return f"torch.tensor({values})"


def recipe_by_config(module: nn.Module) -> tuple[list[str], nn.Module]:
    """Lines that define make(): a model of the same configuration with random weights; and that model.

    Raises :class:`NotOffered` where a configuration can't be written down, or the model is too large to build again.
    """
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        raise NotOffered("the model has no configuration")
    if sum(parameter.numel() for parameter in module.parameters()) > MOST_DRAWN:
        raise NotOffered(f"the model has more than {MOST_DRAWN:,} parameters")
    fields = settings(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = scatter(type(module)(type(config)(**fields)).float())
    arguments = [f"        {key}={value!r}," for key, value in fields.items()]
    lines = [
        *_imports(type(config), type(module)),
        "",
        "",
        "def make():",
        "    torch.manual_seed(0)",
        f"    config = {type(config).__name__}(",
        *arguments,
        "    )",
        f"    model = {type(module).__name__}(config).float().eval()",
        *WEIGHTS.splitlines(),
        "    return model",
    ]
    return lines, twin


def recipe_by_weights(module: nn.Module, folder: Path) -> list[str]:
    """Lines that define make(): the model, loaded from `folder`, where it is saved in the library's own way."""
    module.save_pretrained(folder)  # type: ignore[operator]
    loaded = f'{type(module).__name__}.from_pretrained("../{folder.name}").eval()'
    return [*_imports(type(module)), "", "", "def make():", f"    return {loaded}"]


def settings(config: Any) -> dict[str, Any]:
    """What of a configuration differs from its class's own, as arguments.

    Raises :class:`NotOffered` where these arguments do not make the same configuration.
    """
    own = config.to_dict()
    try:
        plain = type(config)().to_dict()
        fields = {key: value for key, value in own.items() if _told(key) and plain.get(key, ...) != value}
        fields = ast.literal_eval(repr(fields))
        again = type(config)(**fields).to_dict()
    except Exception as error:  # whatever a configuration raises
        raise NotOffered("the configuration can't be written as arguments") from error
    if any(again.get(key) != value for key, value in own.items() if _told(key)):
        raise NotOffered("arguments do not make the same configuration again")
    return fields


def _told(key: str) -> bool:
    return not key.startswith("_") and key not in TOLD_APART


def _imports(*classes: type) -> list[str]:
    """From the package itself where it exports them. Raises :class:`NotOffered` where a script can't import them."""
    if any(one.__module__ == "__main__" or "<locals>" in one.__qualname__ for one in classes):
        raise NotOffered("a class of the model is defined in the script that was run, or in a function")
    lines: dict[str, list[str]] = {}
    for one in classes:
        package = one.__module__.partition(".")[0]
        exported = getattr(sys.modules[package], one.__name__, None) is one
        lines.setdefault(package if exported else one.__module__, []).append(one.__name__)
    package = classes[0].__module__.partition(".")[0]
    told = f"{package} {getattr(sys.modules[package], '__version__', '')}".strip()
    return [
        f"# {told}, torch {torch.__version__}",
        *(f"from {module} import {', '.join(sorted(names))}" for module, names in lines.items()),
    ]
