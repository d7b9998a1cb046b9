"""Every file that is no checkpoint is refused in one line that names the file, what is wrong and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bad_checkpoints import BAD, entry, flip_bit_in_weights, healthy, safetensors_file

from statecheck.checkpoint import load_weights
from statecheck.errors import CheckpointRefused

torch.set_num_threads(1)


@contextmanager
def without_privilege() -> Iterator[None]:
    """Root may read everything; files are opened as nobody while this lasts."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def refusal_of(path: Path) -> str:
    with pytest.raises(CheckpointRefused) as caught:
        load_weights(path)
    assert type(caught.value) is CheckpointRefused
    assert caught.value.exit_code == 4
    line = str(caught.value)
    assert line.isprintable(), "one line, without control characters"
    return line


@pytest.mark.parametrize("label", BAD)
def test_bad_file_is_refused_in_one_line(label: str, tmp_path: Path) -> None:
    make, words = BAD[label]
    path = tmp_path / "model.pt"
    path = make(path) or path
    if label == "unreadable":
        with without_privilege():
            line = refusal_of(path)
    else:
        line = refusal_of(path)
    assert line.startswith(str(path).replace("\0", " ")), "names the file first"
    for word in words:
        assert word in line
    assert not list(tmp_path.glob("ran-*")), "code from the file was run"


def test_torch_itself_loads_a_flipped_bit_silently(tmp_path: Path) -> None:
    """Why checksums are read: without them this is a weight of 1.8e38 among healthy ones."""
    flip_bit_in_weights(tmp_path / "m.pt")
    silently = torch.load(tmp_path / "m.pt", map_location="cpu", weights_only=True)["w"]
    assert silently.max() > 1e38


def test_every_single_truncation_is_refused(tmp_path: Path) -> None:
    """A download that breaks off anywhere."""
    path, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    healthy(path)
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        cut.write_bytes(data[:length])
        refusal_of(cut)


def test_every_flipped_byte_of_a_small_file_is_refused_or_harmless(tmp_path: Path) -> None:
    """Damage is refused, or lies where it changes no weight (padding, dates)."""
    path, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    healthy(path)
    data, expected = path.read_bytes(), load_weights(path).tensors
    for position in range(0, len(data), 5):
        broken.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        try:
            found = load_weights(broken).tensors
        except CheckpointRefused:
            continue
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_escape_codes_in_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "m\x1b[31m\nred.safetensors"
    safetensors_file(path, {"w\x1b[2J\n": entry([5], 0, 16)}, bytes(16))
    line = refusal_of(path)
    assert "\x1b" not in line
    assert "\n" not in line


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run writes over the file between the checks and the load."""
    path = tmp_path / "m.pt"
    healthy(path)
    real = torch.load

    def slow_load(*arguments: object, **options: object) -> object:
        loaded = real(*arguments, **options)  # type: ignore[arg-type]
        torch.save({"other": torch.zeros(99)}, path)
        return loaded

    monkeypatch.setattr(torch, "load", slow_load)
    assert "changed while it was read" in refusal_of(path)
