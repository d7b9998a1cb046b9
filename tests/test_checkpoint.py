"""Healthy checkpoints load as they are; saving is atomic and repeatable; sharded folders; the non-finite are named."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from bad_checkpoints import healthy, rewrite
from safetensors.torch import save, save_file
from torch import Tensor, nn

from statecheck.checkpoint import load_weights, nonfinite_tensors, read_config, save_weights, tensors_digest
from statecheck.errors import CheckpointRefused, InputRefused

torch.set_num_threads(1)

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
)  # fmt: skip


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and torch.equal(_bytes(a[name]), _bytes(b[name]))
        for name in a
    )


def _bytes(value: Tensor) -> Tensor:
    return value.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_each_dtype_comes_back(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([[0, 1], [1, 0]]).to(dtype), "scalar": torch.tensor(1).to(dtype)}
    path = tmp_path / f"m{suffix}"
    torch.save(tensors, path) if suffix == ".pt" else save_weights(path, tensors, {})
    assert equal(load_weights(path).tensors, tensors)


def test_state_dict_of_a_module_with_views_ties_and_parameters(tmp_path: Path) -> None:
    embedding, readout = nn.Embedding(5, 4), nn.Linear(4, 5)
    readout.weight = embedding.weight
    model = nn.Sequential(embedding, nn.BatchNorm1d(4), nn.LSTM(4, 4), readout)
    state = OrderedDict(model.state_dict())
    state["parameter"] = nn.Parameter(torch.ones(2))
    state["transposed"] = torch.arange(6.0).reshape(2, 3).t()
    state["view"] = torch.arange(10.0)[2:5]
    state["expanded"] = torch.ones(1, 3).expand(4, 3)
    state["empty"] = torch.zeros(0, 3)
    torch.save(state, tmp_path / "m.pt")
    weights = load_weights(tmp_path / "m.pt")
    assert equal(weights.tensors, {name: value.detach() for name, value in state.items()})
    assert weights.format == "zip"


def test_the_format_is_told_by_content_and_not_by_suffix(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.pt", {"w": torch.ones(2)}, {"a": "b"})
    healthy(tmp_path / "m.safetensors")
    assert load_weights(tmp_path / "m.pt").format == "safetensors"
    assert load_weights(tmp_path / "m.safetensors").format == "zip"


def test_a_compressed_archive_loads(tmp_path: Path) -> None:
    healthy(tmp_path / "m.pt")
    expected = load_weights(tmp_path / "m.pt").tensors
    rewrite(tmp_path / "m.pt", lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert equal(load_weights(tmp_path / "m.pt").tensors, expected)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_training_checkpoint_gives_its_weights_and_says_what_was_left_out(key: str, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    label = {"model": "reference", "config": {"width": 8}}
    content = {key: model.state_dict(), "optimizer": optimiser.state_dict(), "step": 7, "statecheck": label}
    torch.save(content, tmp_path / "m.pt")
    weights = load_weights(tmp_path / "m.pt")
    assert equal(weights.tensors, model.state_dict())
    assert weights.metadata == {"statecheck.model": "reference", "statecheck.config": '{"width": 8}'}
    assert len(weights.notes) == 1
    assert "optimizer, step" in weights.notes[0]


def test_a_tensor_called_model_is_a_weight(tmp_path: Path) -> None:
    torch.save({"model": torch.ones(2)}, tmp_path / "m.pt")
    assert list(load_weights(tmp_path / "m.pt").tensors) == ["model"]


def test_nonfinite_weights_load_and_are_named(tmp_path: Path) -> None:
    tensors = {"fine": torch.ones(2), "nan": torch.tensor([1.0, float("nan")]), "count": torch.tensor(3)}
    tensors["infinite"] = torch.tensor([float("-inf")], dtype=torch.bfloat16)
    save_weights(tmp_path / "m.safetensors", tensors, {})
    assert nonfinite_tensors(load_weights(tmp_path / "m.safetensors").tensors) == ["nan", "infinite"]


def test_loaded_tensors_are_not_a_window_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_weights(path, {"w": torch.ones(4096)}, {})
    tensors = load_weights(path).tensors
    with path.open("r+b") as file:
        file.truncate(10)
    assert tensors["w"].sum() == 4096


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path: Path) -> None:
    """The library itself writes metadata in an order that differs from call to call."""
    tensors, metadata = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}, {f"key {n}": "ü" for n in range(9)}
    for number in range(6):
        save_weights(tmp_path / f"{number}", tensors, metadata)
    weights = [load_weights(tmp_path / f"{number}") for number in range(6)]
    assert len({one.sha256 for one in weights}) == 1
    assert weights[0].metadata == metadata
    assert equal(weights[0].tensors, tensors)
    assert len({save(tensors, metadata) for _ in range(6)}) > 1, "sorting is no longer needed"


def test_saving_keeps_ties_views_and_the_old_file_on_failure(tmp_path: Path) -> None:
    path, shared = tmp_path / "m.safetensors", torch.arange(6.0).reshape(2, 3)
    tensors = {"a": shared, "b": shared, "transposed": shared.t()}
    save_weights(path, tensors, {})
    assert equal(load_weights(path).tensors, tensors)
    with pytest.raises(InputRefused, match="strings to strings"):
        save_weights(path, tensors, {"step": 3})  # type: ignore[dict-item]
    assert equal(load_weights(path).tensors, tensors)
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_digest_of_tensors_sees_every_bit_and_name() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(2, 3)
    before = tensors_digest(model)
    assert tensors_digest(model) == before
    with torch.no_grad():
        weight = model.all_weights[0][1]
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert tensors_digest(model) != before
    assert tensors_digest(object()) is None


# Folders


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, folder / "part-1.safetensors")
    save_file({"c": torch.ones(4)}, folder / "part-2.safetensors")
    write_index(folder, {"a": "part-1.safetensors", "b": "part-1.safetensors", "c": "part-2.safetensors"})
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_put_together(sharded: Path) -> None:
    weights = load_weights(sharded)
    assert {name: value.numel() for name, value in weights.tensors.items()} == {"a": 2, "b": 3, "c": 4}
    before = weights.sha256
    save_file({"c": torch.zeros(4)}, sharded / "part-2.safetensors")
    assert load_weights(sharded).sha256 != before


def test_a_single_file_comes_before_an_index(sharded: Path) -> None:
    save_file({"whole": torch.ones(1)}, sharded / "model.safetensors")
    assert list(load_weights(sharded).tensors) == ["whole"]


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../outside.safetensors"}, ("lies outside the folder", "copy the file into")),
        ({"a": "/etc/passwd"}, ("lies outside the folder", "copy the file into")),
        ({"a": "link.safetensors"}, ("lies outside the folder", "copy the file into")),
        ({"a": "x\0.safetensors"}, ("is not a file name", "mend")),
        ({"a": "part-3.safetensors"}, ("no such file", "check the path")),
        ({"a": "notes.txt"}, ("not a .safetensors file", "convert")),
        ({"a": "fake.safetensors"}, ("bare pickle", "safetensors")),
        ({"a": "part-1.safetensors"}, ("disagree about b", "download all shards")),
        ({"a": 3}, ("no 'weight_map'", "download it again")),
        ({}, ("no tensors", "download it again")),
        ([], ("no 'weight_map'", "download it again")),
    ],
)
def test_an_index_can_not_lead_out_or_lie(weight_map: object, words: tuple[str, ...], sharded: Path) -> None:
    outside = sharded.parent / "outside.safetensors"
    save_file({"a": torch.ones(1)}, outside)
    (sharded / "link.safetensors").symlink_to(outside)
    (sharded / "fake.safetensors").write_bytes(b"\x80\x04N.")
    (sharded / "notes.txt").write_text("x")
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointRefused) as caught:
        load_weights(sharded)
    line = str(caught.value)
    assert line.isprintable()
    assert str(sharded) in line
    assert all(word in line for word in words)


def test_a_shard_may_be_a_pickle_by_no_name(sharded: Path) -> None:
    """A shard is read by its content too: a .pt under a shard's name passes the same checks as any .pt."""
    healthy(sharded / "part-2.safetensors")
    with pytest.raises(CheckpointRefused, match=r"disagree about a\.bias"):
        load_weights(sharded)


def test_a_snapshot_of_the_hugging_face_cache_is_links_to_its_own_blobs(tmp_path: Path) -> None:
    cache = tmp_path / "models--someone--model"
    snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"w": torch.ones(2)}, blobs / "sha")
    (snapshot / "model.safetensors").symlink_to("../../blobs/sha")
    assert list(load_weights(snapshot).tensors) == ["w"]
    shutil.move(blobs / "sha", tmp_path / "sha")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../sha")
    with pytest.raises(CheckpointRefused, match="lies outside the folder"):
        load_weights(snapshot)


# config.json


def test_config_is_read_and_its_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "tok.json").write_text("{}")
    said = {"model": "m", "config": {"width": 2}, "training_length": 64, "tokenizer": "tok.json"}
    said["components"] = {"fast": "layers.*.fast", "slow": ["a", "b"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    config = read_config(tmp_path)
    assert (config.model, config.config, config.training_length) == ("m", {"width": 2}, 64)
    assert config.tokenizer == tmp_path / "tok.json"
    assert config.components == {"fast": ("layers.*.fast",), "slow": ("a", "b")}
    assert config.training_log is None


def test_config_of_another_library_names_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"], "vocab_size": 50280}')
    assert read_config(tmp_path).model is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model": "m", "trainig_length": 5}', ("'trainig_length'", "did you mean 'training_length'?")),
        ('{"model": "m", "zzz": 5}', ("unknown key 'zzz'", "known are model, config")),
        ('{"model": 3}', ("'model' is 3", "a string")),
        ('{"model": "m", "config": []}', ("'config' is []", "an object")),
        ('{"model": "m", "training_length": true}', ("'training_length' is True", "a whole number")),
        ('{"model": "m", "training_length": 0}', ("'training_length' is 0", "at least 1")),
        ('{"model": "m", "training_length": NaN}', ("NaN", "write it again")),
        ('{"model": "m", "model": "n"}', ("'model' stands twice", "write it again")),
        ('{"model": "m", "tokenizer": "../t.json"}', ("lies outside the folder", "copy the file into")),
        ('{"model": "m", "training_log": "gone.jsonl"}', ("is no file there", "drop the key")),
        ('{"model": "m", "components": {"a": []}}', ("components.a is []", "a pattern")),
        ('{"model": "m", "modules": {"a": [3]}}', ("modules.a is [3]", "a pattern")),
        ('["model"]', ("a JSON list", "write it again")),
        ('{"model": ', ("not valid JSON", "write it again")),
        ("\xff", ("not valid JSON", "write it again")),
    ],
)
def test_a_wrong_config_is_refused(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointRefused) as caught:
        read_config(tmp_path)
    line = str(caught.value)
    assert line.isprintable()
    assert "config.json" in line
    assert all(word in line for word in words)
