"""Families of libraries as StatefulModels; :func:`wrap` picks the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from statecheck.adapters.contract import Declared, Patterns
from statecheck.adapters.declared import check_found, check_said
from statecheck.adapters.exported import carried_explicitly, is_script, takes_state
from statecheck.adapters.huggingface import CachedModel, takes_cache, wrap_cached
from statecheck.adapters.keras_layers import is_keras, states_of_layers
from statecheck.adapters.module import ModuleAdapter, wrap_module
from statecheck.adapters.onnx_session import carried_by_session, is_session
from statecheck.adapters.operation import Function, Signature, carried
from statecheck.adapters.rwkv import carried_by_rows, takes_lists
from statecheck.adapters.stepping import Start, carried_by_steps, takes_steps
from statecheck.adapters.torch_rnn import known_facts, named_states, selective
from statecheck.carrying import Calls
from statecheck.errors import ContractError
from statecheck.protocol import ModelFacts, StatefulModel

__all__ = ["wrap", "wrap_op"]


def wrap(
    model: object,
    *,
    vocabulary: int | None = None,
    width: int | None = None,
    components: Patterns | None = None,
    parameters: Patterns | None = None,
    modules: Patterns | None = None,
    training_length: int | None = None,
    loss: str | None = None,
    selective: bool | Mapping[str, bool] | None = None,
    states: Mapping[str, Mapping[str, Any]] | None = None,
    signals: Mapping[str, str] | None = None,
    title: str | None = None,
    tokenizer: str | Path | None = None,
    start: Start | None = None,
    carries: Mapping[str, str] | None = None,
) -> StatefulModel:
    """A model as a StatefulModel, with facts declared here or found by trying it.

    `model` is an nn.Module with `get_states()` (and, for most checks, `set_states()`), a torch.nn.LSTM, GRU or RNN, or
    a StatefulModel already (returned as it is). What can't be inferred is said: `vocabulary` (ids 0 .. V-1) or `width`
    of the input vectors; `components`, `parameters`, `modules`: component name -> shell-style patterns of names;
    `training_length` in tokens; `loss` "cross_entropy" or "mse"; `selective`: does retention depend on the input, for
    all components or one by one; `states`: pattern -> fields of StateFacts (kind, layer, head_axis, time_axis,
    normaliser, bounds, recurrence); `signals`: pattern of a name of `get_signals()` -> "gate", "log_decay" or
    "selection", for pictures.

    Taken as they are as well: modules with a `step` beside their forward, modules and TorchScript whose forward takes
    and brings a state, causal language models with a cache, models called as those of rwkv are, stateful layers of
    keras, sessions of onnxruntime (docs/wrapping.md). `start` makes the state before the first element for so many
    rows, where a step or forward needs one; `carries`: for a session, input of a state -> output that goes into it.

    Raises :class:`statecheck.errors.ContractError` with the fix when the protocol is broken.

    >>> import torch
    >>> model = wrap(torch.nn.LSTM(8, 16, num_layers=2, batch_first=True), training_length=64)
    >>> sorted(model.facts.states), model.facts.loss
    (['layers.0.c', 'layers.0.h', 'layers.1.c', 'layers.1.h'], None)
    """
    if isinstance(getattr(model, "facts", None), ModelFacts):
        return cast(StatefulModel, model)
    if not isinstance(model, nn.Module) and not is_session(model):
        raise ContractError(
            f"expected an nn.Module or a StatefulModel, found {type(model).__name__}:"
            " give the module itself, not its class or a checkpoint"
        )
    if isinstance(model, nn.Module):
        _refuse_unsuitable(model)
    declared = Declared(
        vocabulary=vocabulary,
        width=width,
        components=components,
        parameters=parameters,
        modules=modules,
        training_length=training_length,
        loss=_known_loss(loss),
        selective=selective,
        states=states or {},
        signals=signals or {},
        title=title,
        tokenizer=Path(tokenizer) if tokenizer else None,
    )
    check_said(declared)
    if isinstance(model, nn.Module):
        if carries is not None:
            raise ContractError("carries= pairs the inputs and outputs of an onnxruntime session: this is a module")
        adapter = _adapted(model, declared, start)
    else:
        adapter = _with_contract(wrap_module(*carried_by_session(model, declared, start, carries)))
    check_found(declared, adapter.module, adapter.facts)
    return adapter


def _adapted(model: nn.Module, declared: Declared, start: Start | None) -> ModuleAdapter | CachedModel:
    """The adapter for what the model offers."""
    if isinstance(model, nn.RNNBase):
        return wrap_module(named_states(model), _with_family(model, declared))
    if callable(getattr(model, "get_states", None)):
        return wrap_module(model, declared)
    if is_keras(model):
        return wrap_module(*states_of_layers(model, declared))
    named = replace(declared, title=declared.title or type(model).__name__)
    if is_script(model):
        return _with_contract(wrap_module(*carried_explicitly(model, named, start)))
    if takes_cache(model):
        return wrap_cached(model, declared)
    if takes_lists(model):
        return _with_contract(wrap_module(*carried_by_rows(model, named)))
    if takes_steps(model):
        return _with_contract(wrap_module(*carried_by_steps(model, named, start)))
    if takes_state(model, said=start is not None):
        return _with_contract(wrap_module(*carried_explicitly(model, named, start)))
    return wrap_module(model, declared)


def wrap_op(
    function: Function,
    arguments: Mapping[str, Sequence[int]],
    *,
    transforms: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    options: Mapping[str, object] | None = None,
    reference: Function | None = None,
    step: Function | None = None,
    time_axis: int = 1,
    initial: str | None = None,
    packing: str | None = None,
    boundaries: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    states: Mapping[str, Mapping[str, Any]] | None = None,
    selective: bool | None = None,
    training_length: int | None = None,
    title: str | None = None,
) -> StatefulModel:
    """A bare operation with an initial and a final state as a StatefulModel of vectors.

    `arguments`: its tensors and their shapes without batch and time, {"q": (heads, width), "g": (heads,)}; the features
    of an input vector are split into them in this order, each by way of its entry in `transforms` (a log-sigmoid for a
    log decay). `options` go along as they are; tensors among them are parameters. `reference` is another function of
    the same arguments, whose whole call is what the operation is held against; `step` one that reads single elements
    on a warm state in its place. `time_axis` is 2 where heads come before the time; `initial` and `packing` name
    arguments that the signature does not tell; `boundaries` are chunk sizes that it does not tell.

    Raises :class:`statecheck.errors.ContractError` for arguments that the function does not take, one that takes no
    initial state and one that returns no final state.

    >>> def leaky(x, *, initial_state=None):
    ...     h = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state
    ...     outputs = []
    ...     for x_t in x.unbind(1):
    ...         h = 0.5 * h + x_t
    ...         outputs.append(h)
    ...     return torch.stack(outputs, 1), h
    >>> model = wrap_op(leaky, {"x": (3,)})
    >>> model.facts.title, model.facts.states["state"].dtype, model(torch.ones(1, 2, 3))[0, :, 0].tolist()
    ('leaky', 'float32', [1.0, 1.5])
    """
    said = Signature(arguments, transforms or {}, options or {}, time_axis, initial, packing)
    declared = Declared(
        width=said.width,
        selective=selective,
        states=states or {},
        training_length=training_length,
        title=title or getattr(function, "__name__", type(function).__name__),
    )
    check_said(declared)
    calls = carried(function, said, reference=reference, step=step, dtype=dtype, boundaries=boundaries)
    adapter = _with_contract(wrap_module(calls, declared))
    check_found(declared, calls, adapter.facts)
    return adapter


def _with_contract(adapter: ModuleAdapter) -> ModuleAdapter:
    """The facts of an adapter, completed with what the way in which its library is called tells."""
    calls = getattr(adapter.module, "calls", None)
    if not isinstance(calls, Calls):
        return adapter
    facts, reasons = adapter.facts, calls.reasons
    return adapter.with_facts(
        replace(
            facts,
            capabilities=facts.capabilities - set(reasons),
            missing={**facts.missing, **reasons},
            boundaries=calls.boundaries,
        )
    )


def _with_family(rnn: nn.RNNBase, declared: Declared) -> Declared:
    """What the caller said, completed with what is known of torch's RNNs."""
    return replace(
        declared,
        width=declared.width or rnn.input_size,
        selective=selective(rnn) if declared.selective is None else declared.selective,
        states={**known_facts(rnn), **declared.states},
        title=declared.title or f"{type(rnn).__name__}({rnn.input_size}, {rnn.hidden_size}) x {rnn.num_layers}",
    )


def _known_loss(loss: str | None) -> str | None:
    if loss not in (None, "cross_entropy", "mse"):
        raise ContractError(f"unknown loss {loss!r}: expected 'cross_entropy' (tokens) or 'mse' (vectors)")
    return loss


def _refuse_unsuitable(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) is True:
        raise ContractError("an encoder-decoder model has no single state that a call continues from: wrap its decoder")
    names: Sequence[str] = [
        name for name, child in model.named_modules() if getattr(child, "bidirectional", False) is True
    ]
    if names and not isinstance(model, nn.RNNBase):
        raise ContractError(
            f"{names[0] or type(model).__name__} is bidirectional: it reads the future, so no state can be carried"
        )
