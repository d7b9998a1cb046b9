"""From what a user calls MODEL to a model that can be checked: `Request` -> `Subject`.

Four doors: a registered name (entry points `statecheck.models`), a checkpoint file, a checkpoint folder, and the user's
own code (`package.module:factory`, or `--loader package.module:function` for a file). Only the last one runs code that
was named on the command line, and the origin says so. A data file can name a registered model and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from statecheck.adapters import wrap
from statecheck.catalogue import model_entry_points, suggest
from statecheck.checkpoint import (
    FolderConfig,
    Weights,
    fit,
    load_weights,
    nonfinite_tensors,
    read_config,
    tensors_digest,
)
from statecheck.checkpoint.files import parse_json, refusal
from statecheck.checkpoint.folders import CONFIG
from statecheck.errors import CheckpointRefused, InputRefused, UsageError
from statecheck.naming import Kind, read_spec
from statecheck.own_code import call_code, find_code, guarded
from statecheck.protocol import ModelFacts, RegisteredModel, StatefulModel
from statecheck.wording import listed, one_line

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Request:
    """What was asked for. `spec` is MODEL as typed; None is the registered `reference`.

    `model` (--model) names the registered architecture of a checkpoint, `loader` (--loader) the user's own
    "package.module:function" that opens it. `tokenizer` and `training_log` come before those that a folder names.
    """

    spec: str | None = None
    model: str | None = None
    loader: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    tokenizer: str | None = None
    training_log: str | None = None
    working_directory_on_path: bool = True


@dataclass(frozen=True)
class Subject:
    """A model with all that came with it.

    `origin` is a sentence for the report. `digest` is the SHA-256 of the weights: of the file, or of the tensors where
    code built them; None if the model shows none. `text` are documents (a folder, or an .npz), `notes` for the reader.
    """

    model: StatefulModel
    title: str
    origin: str
    tokenizer: Path | None = None
    text: Path | None = None
    training_log: Path | None = None
    digest: str | None = None
    notes: tuple[str, ...] = ()


def resolve(request: Request) -> Subject:
    """Load the model that `request` names, on its device and in its dtype.

    Raises :class:`UsageError` (exit 2) for names and options that mean nothing, and :class:`InputRefused` (exit 4) for
    files, models and code that can't be taken; each with one line that says what to do.

    >>> subject = resolve(Request("reference"))
    >>> subject.model.facts.vocabulary, subject.origin.split(",")[0]
    (4096, "registered model 'reference' (statecheck_reference.registry:reference)")
    """
    if request.model and request.loader:
        raise UsageError("--model and --loader exclude each other: a registered architecture, or your own code")
    placement = _placement(request)
    named = read_spec(request.spec)
    if named.kind is not Kind.PATH and (request.model or request.loader):
        option, value = ("--model", request.model) if request.model else ("--loader", request.loader)
        raise UsageError(f"{option} {value} is for a checkpoint, and MODEL is {named.name!r}: give a file or a folder")
    if named.kind is Kind.REGISTERED:
        subject = _from_registered(named.name, placement)
    elif named.kind is Kind.CODE:
        subject = _from_code(request, named.name, None, placement)
    elif request.loader:
        subject = _from_code(request, request.loader, Path(named.name), placement)
    else:
        subject = _from_checkpoint(Path(named.name), request.model, placement)
    return _with_companions(subject, request)


def _with_companions(subject: Subject, request: Request) -> Subject:
    """The tokenizer and the training log that were named on the command line, before those that came with the model."""
    return replace(
        subject,
        tokenizer=Path(request.tokenizer) if request.tokenizer else subject.tokenizer,
        training_log=Path(request.training_log) if request.training_log else subject.training_log,
    )


ARCHITECTURAL = ("components", "parameters", "modules", "selective", "states", "signals")  # fields of FolderConfig


@dataclass(frozen=True)
class _Placement:
    device: torch.device
    dtype: torch.dtype | None

    def move(self, module: nn.Module) -> nn.Module:
        """The module where it was asked for; the very same one if nothing was asked."""
        return module.to(device=self.device, dtype=self.dtype)


def _placement(request: Request) -> _Placement:
    if request.dtype is not None and request.dtype not in DTYPES:
        raise UsageError(f"--dtype {one_line(request.dtype, 40)}: expected {', '.join(DTYPES)}")
    try:
        device = torch.device(request.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as cause:
        reason = one_line(str(cause).partition("\n")[0], 120)
        raise UsageError(f"--device {one_line(request.device, 40)} can't be used here: {reason}") from None
    if device.type == "meta":
        raise UsageError("--device meta holds no numbers: give cpu or cuda")
    return _Placement(device, DTYPES[request.dtype] if request.dtype else None)


def _from_registered(name: str, placement: _Placement) -> Subject:
    entry = registered_model(name)
    if entry.folder is None:
        raise UsageError(f"the registered model {name!r} comes without weights: give a checkpoint with --model {name}")
    weights, config = load_weights(entry.folder), read_config(entry.folder)
    model, notes = _assemble(entry, weights, config, placement)
    value = model_entry_points()[name].value
    origin = f"registered model {name!r} ({value}), weights {one_line(weights.path)}"
    return Subject(model, entry.title, origin, config.tokenizer, entry.text, config.training_log, weights.sha256, notes)


def registered_model(name: str) -> RegisteredModel:
    """The registered model of that name.

    Raises :class:`UsageError` with the nearest name if there is none, and :class:`InputRefused` if the package that
    registers it raises on import or registers something else.
    """
    points = model_entry_points()
    if name not in points:
        known = suggest(name, points) if points else "; no package that registers models is installed"
        raise UsageError(f"no registered model is called {one_line(name, 80)!r}{known}")
    point = points[name]
    what = f"the plug-in that registers the model {name!r} ({point.value})"
    entry = guarded(what, point.load)
    if not isinstance(entry, RegisteredModel):
        raise InputRefused(f"{what}: expected a statecheck.RegisteredModel, found a {type(entry).__name__}")
    return entry


def _from_checkpoint(path: Path, model: str | None, placement: _Placement) -> Subject:
    weights = load_weights(path)
    has_config = os.path.isdir(path) and os.path.lexists(path / CONFIG)
    config = read_config(path) if has_config else FolderConfig(path)
    name = _architecture(path, model, config.model or weights.metadata.get("statecheck.model"))
    entry = registered_model(name)
    config, note = _configured(config, weights, entry)
    config = _described(config, entry)
    built, notes = _assemble(entry, weights, config, placement)
    origin = f"checkpoint {one_line(path)} of registered model {name!r}"
    title = f"{one_line(os.path.basename(os.path.realpath(path)))} ({name})"
    return Subject(built, title, origin, config.tokenizer, None, config.training_log, weights.sha256, (*note, *notes))


def _architecture(path: Path, asked: str | None, written: str | None) -> str:
    """The registered name: as asked with --model, or as the checkpoint says; they may not contradict each other."""
    if asked and written and asked != written:
        raise UsageError(
            f"{one_line(path)} is of model {one_line(written, 80)!r}, and --model says {asked!r}: drop one"
        )
    if asked:
        return asked
    if not written:
        remedy = "give --model NAME (a registered model) or --loader package.module:function (your own code)"
        raise refusal(path, "it holds weights and does not say of which architecture", remedy)
    if written not in model_entry_points():
        found = f"it is of model {one_line(written, 80)!r}, which no installed package registers"
        raise refusal(
            path, found, f"install that package, or give --model NAME{suggest(written, model_entry_points())}"
        )
    return written


def _configured(config: FolderConfig, weights: Weights, entry: RegisteredModel) -> tuple[FolderConfig, tuple[str, ...]]:
    """The configuration to build with: config.json, else what the weights say, else that of the registered model."""
    if config.model:
        return config, ()
    written = weights.metadata.get("statecheck.config")
    if written is not None:
        parsed = parse_json(written.encode(), weights.path, "its statecheck.config")
        return replace(config, config=parsed), ()
    if entry.folder is None:
        return config, ()
    own = read_config(entry.folder).config
    return replace(config, config=own), (f"built in the configuration of the registered model {entry.name!r}",)


def _described(config: FolderConfig, entry: RegisteredModel) -> FolderConfig:
    """`config` with what the architecture declares of itself where it is silent: components and facts of states.

    They belong to the registered model, not to one file of its weights: a lone .safetensors of a hybrid is a hybrid.
    """
    if entry.folder is None:
        return config
    own = read_config(entry.folder)
    silent = [name for name in ARCHITECTURAL if getattr(config, name) in (None, {})]
    return replace(config, **{name: getattr(own, name) for name in silent})


def _assemble(
    entry: RegisteredModel, weights: Weights, config: FolderConfig, placement: _Placement
) -> tuple[StatefulModel, tuple[str, ...]]:
    """Build, fill, place and wrap a registered architecture."""
    module = _build(entry, config.config, config.path)
    notes = fit(module, weights)
    broken = nonfinite_tensors(weights.tensors)
    if broken:
        notes += (f"{len(broken)} weights hold NaN or infinite values: {listed(broken)}",)
    placed = placement.move(module).eval()
    return _wrapped(entry.name, placed, config, title=entry.title), notes


def _build(entry: RegisteredModel, config: Mapping[str, Any], path: Path) -> nn.Module:
    try:
        module = guarded(f"building {entry.name!r}", lambda: entry.build(config))
    except InputRefused as error:
        if isinstance(error.__cause__, ValueError):
            found = f"not a configuration of {entry.name!r} ({one_line(error.__cause__)})"
            raise refusal(path, found, "mend it, or give another --model") from error
        raise
    if not isinstance(module, nn.Module):
        raise InputRefused(f"building {entry.name!r}: expected an nn.Module, found a {type(module).__name__}")
    return module


def _wrapped(what: str, model: object, config: FolderConfig | None, title: str | None) -> StatefulModel:
    said = config or FolderConfig(Path())
    action: Callable[[], StatefulModel] = lambda: wrap(  # noqa: E731
        model,
        components=said.components,
        parameters=said.parameters,
        modules=said.modules,
        training_length=said.training_length,
        selective=said.selective,
        states=said.states,
        signals=said.signals,
        title=title,
        tokenizer=said.tokenizer,
    )
    return cast(StatefulModel, guarded(what, action))


def _from_code(request: Request, name: str, checkpoint: Path | None, placement: _Placement) -> Subject:
    """Run the user's code: a factory without arguments, or a loader that gets the path of `checkpoint`."""
    option = "--loader" if checkpoint else "MODEL"
    if checkpoint is not None and not os.path.exists(checkpoint):
        raise CheckpointRefused(f"{one_line(checkpoint)}: no such file; check the path")
    function = find_code(name, option, working_directory=request.working_directory_on_path)
    if isinstance(function, nn.Module) or _is_ready(function):
        raise InputRefused(f"{name} is a model; expected a function that makes one: def factory(): return model")
    made = call_code(name, function, *((checkpoint,) if checkpoint else ()))
    if isinstance(made, nn.Module) and not _is_ready(made):
        digest = tensors_digest(made)
        model = _wrapped(name, guarded(name, lambda: placement.move(made)), None, None)
    elif _is_ready(made):
        model = cast(StatefulModel, made)
        _check_placed(name, model.facts, request)
        digest = tensors_digest(getattr(made, "module", made))
    else:
        raise InputRefused(f"{name}: expected an nn.Module or a StatefulModel, found a {type(made).__name__}")
    origin = f"ran the code of {name}" + (f" on {one_line(checkpoint)}" if checkpoint else "")
    return Subject(model, model.facts.title, origin, tokenizer=model.facts.tokenizer, digest=digest)


def _is_ready(value: object) -> bool:
    """True for a StatefulModel with facts; classes are not."""
    parts = (getattr(value, name, None) for name in ("get_states", "set_states"))
    return callable(value) and isinstance(getattr(value, "facts", None), ModelFacts) and all(map(callable, parts))


def _check_placed(name: str, facts: ModelFacts, request: Request) -> None:
    """A finished StatefulModel is not moved: its facts already say where it is."""
    finished = f"{name} returns a finished StatefulModel"
    if request.dtype and request.dtype != facts.dtype:
        raise UsageError(f"--dtype {request.dtype}: {finished} in {facts.dtype}; set the dtype there")
    if request.device != "cpu" and torch.device(request.device).type != torch.device(facts.device).type:
        raise UsageError(f"--device {request.device}: {finished} on {facts.device}; set the device there")
