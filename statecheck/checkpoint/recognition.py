"""What a file is, told from its first bytes and never from its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from statecheck.checkpoint.files import refusal
from statecheck.errors import InputRefused

HEAD_BYTES = 512

RUNS_CODE = "statecheck runs no code from files: save `model.state_dict()` as safetensors"
OWN_CODE = "or open it in your own code with --loader package.module:function"

#: (pattern of the first bytes, what it is, what to do about it); the first match counts.
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` in its repository",
    ),
    (
        rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)",
        "a web page, not weights: the download gave an error or a login page",
        "download the file itself",
    ),
    (
        rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
        "a checkpoint in the format of PyTorch before 1.6, a bare pickle",
        "save it again with today's torch.save, or as safetensors",
    ),
    (
        rb"\x80[\x00-\x05]",
        "a bare pickle, which can run any code when it is opened",
        "save the state_dict with torch.save or as safetensors",
    ),
    (rb"GGUF|lmgg|tjgg|fmgg", "a GGUF or GGML file for llama.cpp", f"convert it to safetensors {OWN_CODE}"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", f"convert its weights to safetensors {OWN_CODE}"),
    (rb"\x93NUMPY", "a NumPy array", "data goes to --data as an .npz; weights need names, so save them as safetensors"),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c", "a compressed file", "unpack it first"),
    (rb"PK\x05\x06", "an empty zip archive", "copy or save the checkpoint again"),
    (
        # ModelProto: ir_version, then producer_name, a domain, the graph or the operator sets.
        rb"\x08[\x01-\x20][\x12\x1a\x22\x32\x3a\x42]",
        "an ONNX graph",
        f"save the weights of the PyTorch model as safetensors {OWN_CODE}",
    ),
)


def recognise(path: Path, file: BinaryIO) -> str:
    """ "zip" or "safetensors"; everything else is refused by the name of what it is.

    Raises :class:`statecheck.errors.CheckpointRefused`.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if len(head) > 8 and head[8:9] == b"{":
        return "safetensors"
    raise _foreign(path, head)


def _foreign(path: Path, head: bytes) -> InputRefused:
    for pattern, what, remedy in FOREIGN:
        if re.match(pattern, head, re.IGNORECASE if b"html" in pattern else 0):
            return refusal(path, what, remedy)
    if head[257:262] == b"ustar":
        remedy = "unpack it, or save the checkpoint again with today's torch.save"
        return refusal(path, "a tar archive, perhaps a checkpoint of PyTorch before 0.4", remedy)
    if head.lstrip()[:1] in (b"{", b"["):
        return refusal(path, "a JSON file, not weights", "give the weights, or the folder that holds both")
    expected = "expected a PyTorch .pt (a zip archive) or a .safetensors file"
    found = f"not a known format: it begins with {head[:8].hex(' ')}"
    return refusal(path, found, f"{expected}; copy or download it again if it was one")
