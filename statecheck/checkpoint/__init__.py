"""Triage and safe loading of checkpoints: bytes -> tensors, without running anything that a file says.

`files` opens them, `recognition` tells what they are, `archives`, `pickles` and `headers` check them before torch sees
them, `weights` loads and saves, `folders` reads config.json, `fitting` puts tensors into a module.
"""

from statecheck.checkpoint.files import open_regular, read_json
from statecheck.checkpoint.fitting import fit
from statecheck.checkpoint.folders import FolderConfig, read_config
from statecheck.checkpoint.weights import Weights, load_weights, nonfinite_tensors, save_weights, tensors_digest

__all__ = [
    "FolderConfig",
    "Weights",
    "fit",
    "load_weights",
    "nonfinite_tensors",
    "open_regular",
    "read_config",
    "read_json",
    "save_weights",
    "tensors_digest",
]
