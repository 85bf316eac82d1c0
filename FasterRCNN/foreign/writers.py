"""Arrays by name as a file that PyTorch's programs read: .safetensors, or a pickle of NumPy arrays (.pkl).

The pickle is put together here, instruction by instruction, and holds nothing but names, shapes and numbers.
"""

from __future__ import annotations

import json
import os
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]

_CODES = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}


def write_arrays(path: str | os.PathLike, arrays: Arrays, texts: Mapping[str, str] | None = None) -> None:
    """Write float32 arrays; an interrupted write leaves no half file. ValueError for another ending than the two.

    texts: with them a .pkl holds {"model": arrays, **texts}, as detectron2's do; without, the arrays alone.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"{path}: weights of another program are written as {' or '.join(WRITERS)}")
    arrays = {name: np.ascontiguousarray(value, "<f4") for name, value in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            for part in WRITERS[path.suffix](arrays, texts or {}):
                file.write(part)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors(arrays: Arrays, texts: Mapping[str, str]) -> Iterator[bytes]:
    header: dict = {"__metadata__": {"format": "pt", **texts}}
    start = 0
    for name, value in arrays.items():
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [start, start + value.nbytes]}
        start += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers start at a multiple of 8 bytes
    yield struct.pack("<Q", len(text)) + text
    yield from (value.tobytes() for value in arrays.values())


def _pickle(arrays: Arrays, texts: Mapping[str, str]) -> Iterator[bytes]:
    yield _CODES["PROTO"] + b"\x05" + _CODES["EMPTY_DICT"] + _CODES["MARK"]
    if texts:
        for name, value in texts.items():
            yield _text(name) + _text(value)
        yield _text("model") + _CODES["EMPTY_DICT"] + _CODES["MARK"]
    for name, value in arrays.items():
        yield _text(name) + _CODES["GLOBAL"] + b"numpy\nndarray\n"
        yield _CODES["MARK"] + b"".join(_CODES["BININT"] + struct.pack("<i", n) for n in value.shape) + _CODES["TUPLE"]
        # Of all that unpickles as bytes only a bytearray may be written to, as PyTorch wants it.
        yield _text("<f4") + _CODES["BYTEARRAY8"] + struct.pack("<Q", value.nbytes)
        yield value.tobytes()
        yield _CODES["TUPLE3"] + _CODES["REDUCE"]
    yield _CODES["SETITEMS"] * (2 if texts else 1) + _CODES["STOP"]


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _CODES["BINUNICODE"] + struct.pack("<I", len(encoded)) + encoded


WRITERS: dict[str, Callable[[Arrays, Mapping[str, str]], Iterator[bytes]]] = {
    ".safetensors": _safetensors, ".pkl": _pickle}
