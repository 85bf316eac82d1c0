"""PyTorch's two containers: the zip archive that it writes today, and the stream of pickles of before version 1.6.

In both a pickle describes the tensors, and their numbers stand apart in storages, which several tensors may share.
A storage is read when the first of its tensors is wanted; what is not wanted, such as an optimizer's state, never is.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from FasterRCNN.foreign.arrays import PLAIN_FUNCTIONS
from FasterRCNN.foreign.bfloat16 import widen
from FasterRCNN.foreign.pickles import Ignored, RefusedError, read_pickle, shown

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
BFLOAT16 = "bfloat16"  # NumPy has no such type

_MOST_ELEMENTS = 1 << 22  # of a tensor that repeats its storage, so that no small file becomes a large model
_STORAGE_TYPES = {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": BFLOAT16, "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?"}


@dataclass
class _Storage:
    """Numbers of one type; `fetch()` gives their bytes."""

    kind: str
    length: int
    byte_order: str
    fetch: Callable[[], Any]
    _values: np.ndarray | None = field(default=None, repr=False)

    def values(self) -> np.ndarray:
        """The numbers, one-dimensional and read-only."""
        if self._values is None:
            dtype = np.dtype("u2" if self.kind == BFLOAT16 else self.kind).newbyteorder(self.byte_order)
            data = self.fetch()
            if len(data) < self.length * dtype.itemsize:
                raise ValueError(f"a storage holds {len(data)} bytes of {self.length * dtype.itemsize}")
            values = np.frombuffer(data, dtype, count=self.length)
            # Here, once, and not for each of the tensors that share the storage.
            self._values = widen(values) if self.kind == BFLOAT16 else values
        return self._values


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides are counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def to_array(self) -> np.ndarray:
        """The tensor as a read-only array, a view of the storage."""
        values = self.storage.values()
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides)) < 0:
            raise ValueError(f"a tensor of shape {self.shape} has strides {self.strides} and offset {self.offset}")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        count = int(np.prod(self.shape, dtype=object))
        if count and last >= len(values) or count > max(_MOST_ELEMENTS, len(values)):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage of {len(values)} numbers")
        if not count:
            return np.zeros(self.shape, np.float32)
        return np.lib.stride_tricks.as_strided(
            values[self.offset:], self.shape, [stride * values.itemsize for stride in self.strides], writeable=False)


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    if not all(isinstance(number, int) for number in (offset, *shape, *strides)):
        raise TypeError("a tensor whose shape, strides or offset is no number")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


@dataclass(frozen=True)
class _StorageType:
    kind: str


_TORCH_FUNCTIONS: dict[str, Any] = {
    **PLAIN_FUNCTIONS,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    **{f"torch.{name}Storage": _StorageType(kind) for name, kind in _STORAGE_TYPES.items()},
    **dict.fromkeys(("torch.device", "torch.Size"), Ignored),
    **dict.fromkeys((f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64", "int64")), None),
}


def _described(identity: Any) -> tuple[str, str, int]:
    """(kind, key, length) of a storage, from what a pickle says of it."""
    if not isinstance(identity, tuple) or identity[0] != "storage":
        raise RefusedError(f"the file asks for an outer object of an unknown sort, {shown(identity)}")
    storage_type, key, _, length = identity[1:5]
    if not isinstance(storage_type, _StorageType):
        raise RefusedError(f"the file asks for a storage of an unknown type, {shown(storage_type)}")
    if not isinstance(key, str) or not isinstance(length, int) or length < 0:
        raise ValueError("a storage without a name or a length")
    return storage_type.kind, key, length


# ----------------------------------------------------------------------------------------------------- the zip archive


def read_zip(path: Path) -> Any:
    """What torch.save has put into a zip archive, with a Tensor for each tensor."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError("it is a zip archive without PyTorch's data.pkl")
    folder = names[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.namelist():
        raise RefusedError("the file is a TorchScript program: save the state_dict() of its model instead")
    byte_order = ">" if _text(archive, f"{folder}byteorder") == "big" else "<"
    storages: dict[str, _Storage] = {}

    def storage(identity: Any) -> _Storage:
        kind, key, length = _described(identity)
        if key not in storages:
            fetch = partial(_read_member, archive, f"{folder}data/{key}")
            storages[key] = _Storage(kind, length, byte_order, fetch)
        return storages[key]

    return read_pickle(io.BytesIO(_read_member(archive, names[0])), _TORCH_FUNCTIONS, storage)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    # PyTorch compresses nothing, so that no member can be larger than the file.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, as PyTorch never writes it")
    return archive.read(name)


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return _read_member(archive, name).decode().strip() if name in archive.namelist() else ""


# ---------------------------------------------------------------------------------------------------------- the stream


def is_stream(content: mmap.mmap) -> bool:
    """Whether a file begins with the first pickle of PyTorch's older container, which is a number."""
    return STREAM_MAGIC.to_bytes(10, "little") in content[:20]


def read_stream(content: mmap.mmap) -> Any:
    """What older versions of torch.save have written one after the other: pickles, then the storages' bytes."""
    content.seek(0)
    _, _, system = (read_pickle(content, {}) for _ in range(3))
    byte_order = "<" if system.get("little_endian", True) else ">"
    storages: dict[str, _Storage] = {}

    def storage(identity: Any) -> _Storage:
        kind, key, length = _described(identity)
        if len(identity) > 5 and identity[5] is not None:
            raise RefusedError("the file asks for a view of a storage, as PyTorch before 0.4 wrote it: save it anew")
        return storages.setdefault(key, _Storage(kind, length, byte_order, partial(_absent, key)))

    described = read_pickle(content, _TORCH_FUNCTIONS, storage)
    for key in read_pickle(content, {}):
        if not isinstance(key, str):
            raise ValueError("a storage without a name")
        length = struct.unpack("<q", content.read(8))[0]
        entry = storages[key]
        size = length * np.dtype("u2" if entry.kind == BFLOAT16 else entry.kind).itemsize
        if length != entry.length or content.tell() + size > len(content):
            raise ValueError(f"storage {key} of {entry.length} numbers is not whole")
        entry.fetch = partial(memoryview(content).__getitem__, slice(content.tell(), content.tell() + size))
        content.seek(size, 1)
    return described


def _absent(key: str) -> bytes:
    raise ValueError(f"storage {key} is not in the file")
