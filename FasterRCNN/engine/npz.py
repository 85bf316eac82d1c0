"""Weights as an .npz file, with the config that they belong to. No TensorFlow."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

CONFIG_NAME = "config_json"

# What no model comes near, however well it packs: bytes, and times the size of its file.
_MOST_BYTES, _MOST_TIMES = 1 << 30, 100


def read_npz(path: Path, *, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The arrays of the names that are wanted; ValueError in one line for a damaged file or one of another kind."""
    try:
        # np.load would also open a lone array or a pickle; this is what it opens an .npz with.
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            size = sum(member.file_size for member in arrays.zip.infolist())
            if size > max(_MOST_BYTES, _MOST_TIMES * os.path.getsize(path)):
                raise ValueError(f"it would unpack to {size / 1e9:.1f} GB")
            return {name: arrays[name] for name in arrays.files if wanted(name)}
    # RuntimeError: an encrypted file, or packed in a way that zipfile has not.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or no .npz file of plain arrays ({error}): "
                         "copy or download it again") from None


def read_npz_config(path: str | os.PathLike) -> dict | None:
    """The config that a file carries, or None when it carries none; ValueError as `read_npz`."""
    stored = read_npz(Path(path), wanted=lambda name: name == CONFIG_NAME)
    return parse_config(stored[CONFIG_NAME].tobytes(), path) if stored else None


def parse_config(text: str | bytes, source: str | os.PathLike) -> dict:
    """The config that is stored as JSON in the file `source`; ValueError when it is none."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: its {CONFIG_NAME} is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{source}: its {CONFIG_NAME} is a {type(config).__name__}, not keys and values")
    return config


def save_npz(path: str | os.PathLike, weights: Mapping[str, np.ndarray], config: Mapping | None = None) -> None:
    """Write weights, and the config they belong to, as tensorpack's .npz; an interrupted write leaves no half file."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: weights are written as .npz, give a name that ends so")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = dict(weights)
    if config is not None:
        arrays[CONFIG_NAME] = np.frombuffer(json.dumps(config).encode(), np.uint8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
