"""Files under a checkpoint's name that are none, each really made. `BAD` maps a label to (maker, words of the refusal).

A maker gets a path and makes the file there, or returns another path.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import socket
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Maker = Callable[[Path], Path | None]


class Evil:
    """Pickles as a call that creates a file: opening it as a pickle is noticed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def healthy(path: Path) -> None:
    torch.save({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3)}, path)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive at `path` again, each member changed; checksums are right."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in members.items():
            new.writestr(name, change(name, data))


def with_pickle(path: Path, change: Callable[[bytes], bytes]) -> None:
    """A healthy checkpoint whose data.pkl is changed."""

    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        changed = change(data)
        assert changed != data, "the edit did not apply"
        return changed

    torch.save({"w": torch.arange(4.0)}, path)
    rewrite(path, edit)


def with_member(path: Path, name: str, data: bytes = b"x") -> None:
    healthy(path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, data)


def flip_bit_in_weights(path: Path) -> None:
    """The sign-and-exponent byte of one weight, in a stored member: 1.0 becomes 1.8e38."""
    torch.save({"w": torch.full((64,), 0.53)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 0.53)) + 3] ^= 0x40
    path.write_bytes(data)


def zip_bomb(path: Path) -> None:
    zeros = bytes(2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, protocol=2))
        with archive.open("m/data/0", "w") as member:
            for _ in range(300):
                member.write(zeros)


def safetensors_file(
    path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None
) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def lying(data: bytes = bytes(16), **entries: Any) -> Maker:
    return lambda path: safetensors_file(path, entries, data)


def content(data: bytes) -> Maker:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def saved(value: Any, **options: Any) -> Maker:
    return lambda path: torch.save(value, path, **options)


def evil_archive(path: Path) -> None:
    torch.save({"w": Evil(path.with_name("ran-1"))}, path)


def evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.with_name("ran-2")), protocol=4))


def evil_protocol(path: Path) -> None:
    torch.save({"w": Evil(path.with_name("ran-3"))}, path, pickle_protocol=4)


def evil_legacy(path: Path) -> None:
    torch.save({"w": Evil(path.with_name("ran-4"))}, path, _use_new_zipfile_serialization=False)


def truncated(path: Path) -> None:
    healthy(path)
    path.write_bytes(path.read_bytes()[:-200])


def unreadable(path: Path) -> None:
    healthy(path)
    path.chmod(0)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> Path:
    short = Path(f"/tmp/statecheck-{os.getpid()}.pt")  # a socket's path may have 107 characters
    short.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short))
    return short


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("tensors", "storages", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"\x80\x02N."))


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def exported(path: Path) -> Path:
    target = path.with_suffix(".pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), target)
    return target


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, inputs=np.ones((2, 3)))


def plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday/photo.jpg", b"...")


def encrypted(path: Path) -> None:
    """The encryption flag set in both headers of every member."""
    healthy(path)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 4)
    path.write_bytes(data)


def commented(path: Path) -> None:
    healthy(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"another directory could hide here"


def overlapping(path: Path) -> None:
    """Two members that share their bytes: the directory claims more than the file has."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("m/data/0", bytes(4096))
        info = archive.getinfo("m/data/0")
        for number in range(1, 4):
            twin = zipfile.ZipInfo(f"m/data/{number}")
            twin.header_offset, twin.CRC = info.header_offset, info.CRC
            twin.file_size = twin.compress_size = 4096
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin


def shadowing(data: bytes) -> bytes:
    """An OrderedDict whose `items` is replaced by a string, which weights_only would build."""
    return b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsX\x01\x00\x00\x00xsb."


COUNT = (b"K\x04tq\x07Q", b"J\x00\x00\x10\x00tq\x07Q")  # the storage's number of elements: 4 -> 1,048,576
SHAPE = (b"K\x00K\x04\x85", b"K\x00J\x00\x00\x10\x00\x85")  # the tensor's shape: (4,) -> (1048576,)
# The tensor's shape and strides: (4,), (1,) -> (2**31 - 1,), (0,).
HUGE = (b"K\x00K\x04\x85q\x08K\x01\x85", b"K\x00J\xff\xff\xff\x7f\x85q\x08K\x00\x85")

PICKLED = "statecheck runs no code from files"

BAD: dict[str, tuple[Maker, tuple[str, ...]]] = {
    "missing": (lambda path: None, ("no such file", "check the path")),
    "empty": (content(b""), ("empty (0 bytes)", "write it again")),
    "unreadable": (unreadable, ("permission denied", "change its mode")),
    "FIFO": (fifo, ("named pipe (FIFO)", "give the path of a file")),
    "socket": (unix_socket, ("can't be opened", "give the path of a file")),
    "device": (lambda path: Path("/dev/zero"), ("device", "give the path of a file")),
    "dangling link": (lambda path: path.symlink_to("gone.pt"), ("link to gone.pt", "mend the link")),
    "link to itself": (lambda path: path.symlink_to(path), ("can't be opened", "symbolic links")),
    "NUL in name": (lambda path: Path(f"{path}\0.pt"), ("not a path", "check the path")),
    "empty folder": (lambda path: path.mkdir(), ("neither model.safetensors", "give the weights file")),
    "random bytes": (content(b"\xf5" + random.Random(0).randbytes(4000)), ("not a known format", "safetensors")),
    "short text": (content(b"hello"), ("not a known format", "safetensors")),
    "web page": (content(b"\n<!DOCTYPE html><html><body>404"), ("a web page", "download")),
    "LFS pointer": (
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        ("Git LFS pointer", "git lfs pull"),
    ),
    "truncated zip": (truncated, ("cut off", "download it again")),
    "half a zip header": (content(b"PK\x03\x04\x14\x00"), ("cut off", "download it again")),
    "empty zip": (content(b"PK\x05\x06" + bytes(18)), ("empty zip archive", "save the checkpoint again")),
    "zip bomb": (zip_bomb, ("zip bomb", "without compression")),
    "overlapping members": (overlapping, ("claim", "save the checkpoint again")),
    "duplicate member": (lambda p: with_member(p, f"{p.stem}/data/0"), ("stands 2 times", "save the checkpoint")),
    "member in other case": (lambda p: with_member(p, f"{p.stem}/DATA.PKL"), ("stands 2 times", "save")),
    "absolute member": (lambda p: with_member(p, "/etc/cron.d/x"), ("points outside the archive", "save the")),
    "parent member": (lambda p: with_member(p, f"{p.stem}/../../x"), ("points outside the archive", "save the")),
    "backslash member": (lambda p: with_member(p, "..\\..\\x"), ("points outside the archive", "save the")),
    "drive member": (lambda p: with_member(p, "C:/x"), ("points outside the archive", "save the checkpoint")),
    "encrypted": (encrypted, ("encrypted", "without a password")),
    "zip comment": (commented, ("carries a comment", "save the checkpoint again")),
    "CRC mismatch": (flip_bit_in_weights, ("Bad CRC-32", "download the file again")),
    "second archive inside": (lambda p: with_member(p, "other/data.pkl"), ("torch.save did not write", "give the")),
    "plain zip": (plain_zip, ("torch.save did not write", "photo.jpg", "give the .pt")),
    "npz": (npz, ("NumPy archive", "--data")),
    "npy": (content(b"\x93NUMPY\x01\x00"), ("NumPy array", "--data")),
    "TorchScript": (torchscript, ("TorchScript", PICKLED, "--loader")),
    "pt2": (exported, ("torch.export", PICKLED, "--loader")),
    "code in archive": (evil_archive, ("posix.system", PICKLED, "--loader")),
    "code in protocol 4": (evil_protocol, ("opcode", "pickle_protocol")),
    "code in bare pickle": (evil_pickle, ("bare pickle", "safetensors")),
    "code in legacy file": (evil_legacy, ("before 1.6", "save it again")),
    "whole module": (saved(nn.Linear(2, 2)), ("torch.nn.modules.linear.Linear", "state_dict")),
    "legacy pickle": (saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False), ("before 1.6", "save it")),
    "legacy tar": (tar, ("tar archive", "unpack it")),
    "gzip": (content(gzip.compress(b"weights")), ("compressed", "unpack it first")),
    "GGUF": (content(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)), ("GGUF", "convert it to safetensors")),
    "ONNX": (content(b"\x08\x08\x12\x07pytorch\x3a\x04\x12\x02ab"), ("ONNX", "safetensors")),
    "HDF5": (content(b"\x89HDF\r\n\x1a\n" + bytes(88)), ("HDF5", "safetensors")),
    "JSON": (content(b'{"vocab_size": 256}'), ("JSON", "folder that holds both")),
    "storage too short": (lambda p: with_pickle(p, lambda d: d.replace(*COUNT)), ("claims 4,194,304 bytes", "save")),
    "tensor beyond storage": (lambda p: with_pickle(p, lambda d: d.replace(*SHAPE)), ("beyond its storage", "save")),
    "tensor without end": (lambda p: with_pickle(p, lambda d: d.replace(*HUGE)), ("repeats a storage", "save")),
    "storage not there": (
        lambda p: with_pickle(p, lambda d: d.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x007")),
        ("is not in the archive", "save the checkpoint again"),
    ),
    "shadowed method": (lambda p: with_pickle(p, shadowing), ("carries attributes", "save the checkpoint again")),
    "cut pickle": (lambda p: with_pickle(p, lambda d: d[:-20]), ("pickle is damaged", "save the checkpoint again")),
    "huge memo": (
        lambda p: with_pickle(p, lambda d: d.replace(b"}q\x00", b"}r\xff\xff\xff\x7f")),
        ("claims 2,147,483,647 objects", "save the checkpoint again"),
    ),
    "a list": (saved([torch.ones(2)]), ("holds a list", "model.state_dict()")),
    "a tensor": (saved(torch.ones(2)), ("holds a Tensor", "model.state_dict()")),
    "no tensors": (saved({}), ("no tensors", "model.state_dict()")),
    "a number among tensors": (saved({"w": torch.ones(2), "step": 7}), ("'step' is a int", "state_dict")),
    "a nested dict": (saved({"encoder": {"w": torch.ones(2)}}), ("'encoder' is a dict", "state_dict")),
    "a numbered entry": (saved({3: torch.ones(2)}), ("the key 3", "model.state_dict()")),
    "sparse tensor": (saved({"w": torch.eye(3).to_sparse()}), ("_rebuild_sparse_tensor", "safetensors")),
    "two wrappers": (
        saved({"model": {"w": torch.ones(1)}, "state_dict": {"w": torch.zeros(1)}}),
        ("both 'state_dict' and 'model'", "save one of them"),
    ),
    "label that imports": (
        saved({"model": {"w": torch.ones(1)}, "statecheck": {"model": "reference", "factory": "os:system"}}),
        ("'statecheck' entry", "--model"),
    ),
    "safetensors, cut in the header": (
        lambda p: safetensors_file(p, b'{"a":', length=4000),
        ("claims 4,000 bytes", "download"),
    ),
    "safetensors, endless header": (
        lambda p: safetensors_file(p, b"{", length=2**63),
        ("claims 9,223,372,036,854,775,808 bytes", "download"),
    ),
    "safetensors, header not JSON": (lambda p: safetensors_file(p, b"{not json}  "), ("not valid JSON", "again")),
    "safetensors, deep header": (
        lambda p: safetensors_file(p, b'{"a":' * 100_000),
        ("nested too deep", "write it again"),
    ),
    "safetensors, key twice": (
        lambda p: safetensors_file(p, b'{"a":' + json.dumps(entry([4], 0, 16)).encode() + b',"a":{}}', bytes(16)),
        ("'a' stands twice", "write it again"),
    ),
    "safetensors, cut in the data": (lying(bytes(8), a=entry([4], 0, 16)), ("cut off", "again")),
    "safetensors, bytes left over": (lying(bytes(24), a=entry([4], 0, 16)), ("belong to none", "again")),
    "safetensors, shape lies": (lying(a=entry([5], 0, 16)), ("needs 20 bytes and is given 16", "again")),
    "safetensors, negative shape": (lying(a=entry([-2, -2], 0, 16)), ("shape [-2, -2]", "again")),
    "safetensors, shape overflows": (lying(a=entry([2**62, 4], 0, 0)), ("needs", "again")),
    "safetensors, true is no size": (lying(a=entry([True, 4], 0, 16)), ("shape [True, 4]", "again")),
    "safetensors, offsets reversed": (lying(a=entry([4], 16, 0)), ("data_offsets [16, 0]", "again")),
    "safetensors, overlap": (lying(a=entry([4], 0, 16), b=entry([2], 8, 16)), ("overlaps", "again")),
    "safetensors, hole": (lying(a=entry([1], 0, 4), b=entry([2], 8, 16)), ("leaves 4 bytes unused", "again")),
    "safetensors, unknown dtype": (lying(a=entry([4], 0, 16, "F33")), ("dtype F33", "F32")),
    "safetensors, entry not an object": (lying(a=[4]), ("is not {dtype, shape, data_offsets}", "again")),
    "safetensors, metadata not strings": (lying(__metadata__={"a": 1}, a=entry([4], 0, 16)), ("__metadata__", "again")),
    "safetensors, no tensors": (lying(b""), ("no tensors", "state_dict")),
    "safetensors, too many tensors": (
        lambda p: safetensors_file(p, {f"t{number}": entry([0], 0, 0) for number in range(100_001)}),
        ("names 100,001 tensors", "is it a checkpoint?"),
    ),
    "safetensors, header of 17 MB": (
        lambda p: safetensors_file(p, b"{" + b" " * (17 * 2**20)),
        ("header has 17,825,793 bytes", "again"),
    ),
}
