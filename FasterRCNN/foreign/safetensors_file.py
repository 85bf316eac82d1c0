"""The .safetensors container: the length of a header, the header as JSON, and the tensors' bytes one after the other.

Read here and not by the package of that name, whose NumPy part has no bfloat16 (0.8).
"""

from __future__ import annotations

import json
import mmap

import numpy as np

from FasterRCNN.foreign.bfloat16 import widen

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}


def read_safetensors(content: mmap.mmap) -> dict[str, np.ndarray]:
    """Every tensor by name, a read-only view of the file where NumPy has the type. Raises ValueError or KeyError."""
    size = int.from_bytes(content[:8], "little")
    if 8 + size > len(content):
        raise ValueError(f"its header should have {size} bytes")
    entries = {name: entry for name, entry in json.loads(content[8:8 + size]).items() if name != "__metadata__"}
    # As its own package demands; tensors that overlap would let a small file ask for much memory.
    spans = sorted(entry["data_offsets"] for entry in entries.values())
    if any(first != last for (first, _), (_, last) in zip(spans, [[0, 0], *spans], strict=False)):
        raise ValueError("its tensors overlap, or leave bytes between them")
    return {name: _tensor(content, 8 + size, entry) for name, entry in entries.items()}


def _tensor(content: mmap.mmap, start: int, entry: dict) -> np.ndarray:
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"its type {entry['dtype']} is not known")
    dtype, shape = np.dtype(_TYPES[entry["dtype"]]), entry["shape"]
    first, last = entry["data_offsets"]
    count = int(np.prod(shape, dtype=object))
    if first < 0 or last - first != count * dtype.itemsize or start + last > len(content):
        raise ValueError(f"a tensor of shape {shape} should stand in the bytes {first} to {last}")
    if not count:
        return np.zeros(shape, dtype)
    values = np.frombuffer(content, dtype, count, start + first).reshape(shape)
    return widen(values) if entry["dtype"] == "BF16" else values
