"""Files of weights of any program as NumPy arrays, without PyTorch and without running what they hold.

Read are PyTorch's .pth (today's zip archive and the older stream), pickles of NumPy arrays (.pkl of Detectron and
detectron2), .safetensors, and .npz. The kind is told from the content, not from the name.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from FasterRCNN.engine.npz import read_npz
from FasterRCNN.foreign import torch_files
from FasterRCNN.foreign.arrays import PLAIN_FUNCTIONS
from FasterRCNN.foreign.pickles import RefusedError, read_pickle
from FasterRCNN.foreign.safetensors_file import read_safetensors

# Where programs put the weights among what else they save, the likeliest first.
_PLACES = ("model", "state_dict", "blobs", "model_state", "model_state_dict", "params", "net", "weights", "ema")
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, KeyError, IndexError, TypeError,
           AttributeError, OverflowError, MemoryError, RuntimeError)
_LONGEST_REASON = _LONGEST_NAME = 200


@dataclass(frozen=True)
class Contents:
    """arrays: name -> array as the file holds it; texts: what stands beside them as text, such as `__author__`."""

    arrays: dict[str, np.ndarray]
    texts: dict[str, str] = field(default_factory=dict)


def read_contents(path: str | os.PathLike) -> Contents:
    """The arrays of a file of weights; integers stay integers, bfloat16 becomes float32.

    Raises FileNotFoundError, or ValueError with one line: the file is damaged, holds no weights, or asks for something
    that plain weights do not need, which the message names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a .pth, .pkl, .safetensors or .npz file")
    try:
        contents = None if _is_npz(path) else _read(path)
    except RefusedError as refused:
        raise ValueError(f"{path} is not read: {_line(refused)}. Nothing of it was run; weights need only arrays, as "
                         "`torch.save(model.state_dict(), path)` writes them") from None
    except _DAMAGE as damage:
        raise ValueError(f"{path} is damaged, truncated or no file of weights ({_line(damage)}): "
                         "copy or download it again") from None
    contents = contents or Contents(read_npz(path, wanted=lambda name: True))
    for name in contents.arrays:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(f"{path} is not read: {name[:60]!r} is no name of a variable")
    return contents


def _line(error: Exception) -> str:
    """What an error says as one line that can be shown, though it may quote what a hostile file holds."""
    text = (str(error).splitlines() or [""])[0][:_LONGEST_REASON]
    return "".join(sign if sign.isprintable() else "?" for sign in text) or type(error).__name__


def _is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _read(path: Path) -> Contents:
    if not path.stat().st_size:
        raise ValueError("it is empty")
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(b"PK"):
        return _weights(torch_files.read_zip(path))
    with open(path, "rb") as file:
        # Not closed here: the arrays are views of it, and it goes with the last of them.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if start[8:9] == b"{":
        return Contents(read_safetensors(content))
    if torch_files.is_stream(content):
        return _weights(torch_files.read_stream(content))
    return _weights(read_pickle(content, PLAIN_FUNCTIONS))


def _weights(saved: Any) -> Contents:
    """The weights in what a program saved: themselves, or under one of the keys in use, module after module."""
    holder = _holder(saved)
    arrays = {str(name): value.to_array() for name, value in holder.items() if hasattr(value, "to_array")}
    # Python 2's longer texts are told from bytes by nothing; Detectron's config is one.
    texts = {key: value.decode("latin-1") if isinstance(value, bytes) else value
             for key, value in saved.items() if isinstance(value, (str, bytes))}
    # A model that was trained on several devices is called `module` of what spreads it over them.
    prefix = min((re.match(r"(module\.)*", name)[0] for name in arrays), key=len)
    return Contents({name.removeprefix(prefix): value for name, value in arrays.items()}, texts)


def _holder(saved: Any) -> Mapping:
    if not isinstance(saved, Mapping):
        raise ValueError(f"it holds a {type(saved).__name__}, not weights by name")
    def arrays_in(place: Any) -> int:
        return sum(hasattr(value, "to_array") for value in place.values()) if isinstance(place, Mapping) else 0

    # Some tensors may stand beside the model's.
    fullest = max((saved, *(saved.get(key) for key in _PLACES)), key=arrays_in)
    if arrays_in(fullest):
        return fullest
    raise ValueError(f"it holds no weights: its keys are {', '.join(map(str, list(saved)[:5])) or 'none'}")
