"""Weights from files, and into them: `load_weights`, `save_weights`, `nonfinite_tensors`."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from statecheck.atomic import atomic_write_bytes
from statecheck.checkpoint.archives import open_archive
from statecheck.checkpoint.files import inside, open_regular, read_json, refusal
from statecheck.checkpoint.headers import read_header
from statecheck.checkpoint.pickles import check_pickle
from statecheck.checkpoint.recognition import OWN_CODE, RUNS_CODE, recognise
from statecheck.errors import InputRefused
from statecheck.wording import listed, one_line, raised

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Where a training checkpoint keeps its weights, beside optimiser, step count and the like.
WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on the CPU, with what the file says of itself.

    `metadata` holds strings; `statecheck.model` and `statecheck.config` (JSON) name the registered model that the
    weights belong to. `format` is "zip" (a .pt) or "safetensors". `sha256` is of the file; of a sharded checkpoint, of
    its shards' names and sums. `notes` say what was left out.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    format: str
    sha256: str
    path: Path
    notes: tuple[str, ...] = ()


def load_weights(path: str | os.PathLike[str]) -> Weights:
    """The weights in a .pt or .safetensors file, or in a folder with model.safetensors or its sharded index.

    The file is checked before torch sees it, and nothing in it is ever run. Weights that are NaN or infinite are loaded
    like any others: see :func:`nonfinite_tensors`.

    Raises :class:`statecheck.errors.CheckpointRefused` with one line: what was found, and what to do.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "model.safetensors")
    >>> save_weights(file, {"gate.weight": torch.ones(2, 3)}, {"statecheck.model": "reference"})
    >>> weights = load_weights(file)
    >>> weights.tensors["gate.weight"].shape, weights.metadata, weights.format
    (torch.Size([2, 3]), {'statecheck.model': 'reference'}, 'safetensors')
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, false where the path may not be looked at
        return _load_folder(path)
    with open_regular(path) as file:
        before = _identity(os.fstat(file.fileno()))
        kind = recognise(path, file)
        tensors, metadata, notes = _load_zip(path, file) if kind == "zip" else _load_safetensors(path, file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if _identity(os.fstat(file.fileno())) != before or not os.path.exists(path) or _identity(path.stat()) != before:
            raise refusal(path, "the file changed while it was read", "wait until it is written, then run again")
    return Weights(tensors, metadata, kind, digest, path, notes)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


_Loaded = tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]


def _load_safetensors(path: Path, file: BinaryIO) -> _Loaded:
    names, metadata = read_header(path, file)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as archive:
            # Cloned, since the library's tensors are a map of the file: they would change or fault with it.
            return {name: archive.get_tensor(name).clone() for name in names}, metadata, ()
    except Exception as cause:  # the library's own checks, for what those above let through
        raise refusal(path, f"safetensors can't read it ({raised(cause)})", "save it again") from None


def _load_zip(path: Path, file: BinaryIO) -> _Loaded:
    with open_archive(path, file) as archive:
        prefix = _archive_prefix(path, archive)
        storages = {
            member.filename.removeprefix(f"{prefix}data/"): member
            for member in archive.infolist()
            if member.filename.startswith(f"{prefix}data/")
        }
        check_pickle(path, archive.read(f"{prefix}data.pkl"), storages)
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch raises RuntimeError, UnpicklingError, ValueError and more
        remedy = "save it again, as safetensors if you can"
        raise refusal(path, f"torch {torch.__version__} can't read it ({raised(cause)})", remedy) from None
    return _state_dict(path, content)


def _archive_prefix(path: Path, archive: zipfile.ZipFile) -> str:
    """'NAME/' of the archive that torch.save wrote; other archives are refused by the name of what they are."""
    names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise refusal(path, "a TorchScript archive, which is a program", f"{RUNS_CODE}, {OWN_CODE}")
    if "archive_format" in inner or "serialized_exported_program.json" in {*inner, *names}:
        raise refusal(path, "a program from torch.export (.pt2)", f"{RUNS_CODE}, {OWN_CODE}")
    if names and all(name.endswith(".npy") for name in names):
        raise refusal(path, "a NumPy archive (.npz), which holds data", "give it as --data, and the weights as MODEL")
    prefixes = {name.partition("/")[0] for name in names}
    if len(prefixes) != 1 or "data.pkl" not in inner:
        found = f"a zip archive that torch.save did not write (it holds {listed(names)})"
        raise refusal(path, found, "give the .pt or .safetensors file itself")
    return f"{prefixes.pop()}/"


def _state_dict(path: Path, content: Any) -> _Loaded:
    """The tensors of a state_dict, bare or in the wrapper of a training checkpoint."""
    content = _mapping(path, content, "the file")
    wrappers = [name for name in WRAPPERS if isinstance(content.get(name), dict)]
    if len(wrappers) > 1:
        found = f"both {wrappers[0]!r} and {wrappers[1]!r} hold weights"
        raise refusal(path, found, "save one of them alone: torch.save(state_dict, path)")
    label = content.pop("statecheck", None)
    metadata = {} if label is None else _label(path, label)
    if not wrappers:
        return _tensors(path, content), metadata, ()
    left_out = sorted(set(content) - set(wrappers))
    notes = (f"of {one_line(path)} only {wrappers[0]!r} was used, not {listed(left_out)}",) if left_out else ()
    return _tensors(path, _mapping(path, content[wrappers[0]], f"its {wrappers[0]!r}")), metadata, notes


def _mapping(path: Path, value: Any, what: str) -> dict[str, Any]:
    """A plain copy of a dictionary with string keys. The copy has no attributes that a file could have planted."""
    if not isinstance(value, dict):
        found = f"{what} holds a {type(value).__name__}, not a dictionary of tensors"
        raise refusal(path, found, "save model.state_dict()")
    plain = {key: dict.__getitem__(value, key) for key in dict.keys(value)}
    strange = [key for key in plain if not isinstance(key, str)]
    if strange:
        found = f"{what} has the key {one_line(strange[0], 60)}, which is no name of a tensor"
        raise refusal(path, found, "save model.state_dict()")
    return plain


def _tensors(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    if not content:
        raise refusal(path, "it holds no tensors", "save model.state_dict()")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            found = f"the entry {one_line(name, 80)!r} is a {type(value).__name__}, not a tensor"
            raise refusal(path, found, f"save model.state_dict() alone, or under the key {WRAPPERS[0]!r}")
    return {name: value.detach() for name, value in content.items()}


def _label(path: Path, label: Any) -> dict[str, str]:
    """`{"model": NAME, "config": {...}}` as metadata of the form that safetensors files have."""
    if not isinstance(label, dict) or not isinstance(label.get("model"), str) or set(label) - {"model", "config"}:
        raise refusal(path, "its 'statecheck' entry is not {'model': NAME, 'config': {...}}", "mend it, or use --model")
    try:
        config = json.dumps(label.get("config", {}), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as cause:
        raise refusal(path, f"its 'statecheck' config is not plain data ({raised(cause)})", "mend it") from None
    return {"statecheck.model": label["model"], "statecheck.config": config}


def _load_folder(folder: Path) -> Weights:
    if os.path.lexists(folder / SINGLE):
        return load_weights(inside(folder, SINGLE, folder))
    if os.path.lexists(folder / INDEX):
        return _load_shards(folder)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as cause:
        raise refusal(folder, f"the folder can't be read ({raised(cause)})", "change its mode or its owner") from None
    found = f"the folder has neither {SINGLE} nor {INDEX}; it holds {listed(names)}"
    raise refusal(folder, found, "give the weights file itself, or save it under that name")


def _load_shards(folder: Path) -> Weights:
    """All shards that the index names; index and shards must agree on every tensor."""
    index = inside(folder, INDEX, folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise refusal(index, "it has no 'weight_map' of tensor names to file names", "download it again")
    shards = {name: load_weights(_shard(folder, name, index)) for name in sorted(set(weight_map.values()))}
    tensors: dict[str, Tensor] = {}
    for name, shard in shards.items():
        expected = {tensor for tensor, home in weight_map.items() if home == name}
        if expected != set(shard.tensors):
            differing = sorted(expected ^ set(shard.tensors))
            found = f"index and {one_line(name)!r} disagree about {listed(differing)}"
            raise refusal(index, found, "download all shards and the index again, from one revision")
        tensors |= shard.tensors
    if not tensors:
        raise refusal(index, "it names no tensors", "download it again")
    sums = "".join(f"{shard.sha256}  {name}\n" for name, shard in shards.items())
    metadata = {key: value for shard in shards.values() for key, value in shard.metadata.items()}
    return Weights(tensors, metadata, "safetensors", hashlib.sha256(sums.encode()).hexdigest(), index)


def _shard(folder: Path, name: str, index: Path) -> Path:
    path = inside(folder, name, index)
    if os.path.isdir(path) or not name.endswith(".safetensors"):
        raise refusal(index, f"the shard {one_line(name)!r} is not a .safetensors file", "convert it to safetensors")
    return path


def save_weights(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as safetensors, atomically: after a crash the old file or the new one is there.

    The same tensors and metadata give the same bytes. Tensors that share memory are written apart; :func:`fit` ties
    them again. Raises :class:`statecheck.errors.InputRefused` if there are no tensors or the metadata are not strings,
    and OSError when the disk says no.
    """
    if not tensors or not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise InputRefused(f"{one_line(path)}: expected some tensors, and metadata of strings to strings")
    own = {name: tensors[name].detach().to("cpu").clone(memory_format=torch.contiguous_format) for name in tensors}
    atomic_write_bytes(path, _sorted_metadata(safetensors.torch.save(own, dict(metadata))))


def _sorted_metadata(data: bytes) -> bytes:
    """The file with its metadata sorted: the library writes them in an order that differs from run to run."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def nonfinite_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, in order.

    >>> nonfinite_tensors({"a": torch.ones(2), "b": torch.tensor([0.0, float("nan")])})
    ['b']
    """
    return [name for name, value in tensors.items() if _may_overflow(value) and not bool(torch.isfinite(value).all())]


def tensors_digest(module: object) -> str | None:
    """SHA-256 of names, dtypes, shapes and bytes of all parameters and buffers; None for what is no nn.Module.

    >>> tensors_digest(torch.nn.Linear(1, 1)) == tensors_digest(torch.nn.Linear(2, 1)), tensors_digest("a string")
    (False, None)
    """
    if not isinstance(module, torch.nn.Module):
        return None
    total = hashlib.sha256()
    for name, value in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
        plain = value.detach().to("cpu").contiguous().reshape(-1)
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(plain.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _may_overflow(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()
