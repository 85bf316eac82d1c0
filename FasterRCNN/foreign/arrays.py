"""NumPy arrays in pickles: the functions that stand in the place of those which a pickle names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from FasterRCNN.foreign.pickles import Ignored, RefusedError, Stateful, mapping, shown

_PLAIN_TYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|bool|u?int(8|16|32|64)|float(16|32|64))")


class _DType(Stateful):
    """A number type; its byte order comes with its state."""

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not _PLAIN_TYPE.fullmatch(name):
            raise RefusedError(f"the file asks for arrays of the type {shown(name)}: only numbers are read")
        self.dtype = np.dtype(name)

    def set_state(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(Stateful):
    """An array whose bytes stand in the pickle."""

    def __init__(self, *_: Any) -> None:
        self._value: np.ndarray | None = None

    def set_state(self, state: tuple) -> None:
        shape, dtype, is_fortran, data = state[-4:]
        if isinstance(data, str):  # a short string of Python 2
            data = data.encode("latin-1")
        self._value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")

    def to_array(self) -> np.ndarray:
        """The array, read-only."""
        if self._value is None:
            raise ValueError("an array has no content")
        return self._value


def _from_buffer(data: bytes, dtype: _DType, shape: tuple, order: str) -> PickledArray:
    array = PickledArray()
    array.set_state((shape, dtype, order == "F", data))
    return array


def _in_memory(shape: tuple, dtype: str, data: bytes) -> PickledArray:
    return _from_buffer(data, _DType(dtype), shape, "C")


def _scalar(dtype: _DType, data: bytes | str) -> Any:
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.dtype, count=1)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes where the pickle's version has none."""
    if encoding not in ("latin1", "latin-1"):
        raise RefusedError(f"the file asks for the encoding {shown(encoding)}")
    return text.encode("latin-1")


def _under(modules: tuple[str, ...], functions: dict[str, Any]) -> dict[str, Any]:
    return {f"{module}.{name}": function for module in modules for name, function in functions.items()}


# NumPy 2 has renamed its inner modules, and Python 3 that of the built-in types.
PLAIN_FUNCTIONS: dict[str, Any] = {
    **_under(("numpy.core.multiarray", "numpy._core.multiarray"), {"_reconstruct": PickledArray, "scalar": _scalar}),
    **_under(("numpy.core.numeric", "numpy._core.numeric"), {"_frombuffer": _from_buffer}),
    "numpy.ndarray": _in_memory,  # mostly an argument of _reconstruct
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    "collections.OrderedDict": mapping,
    **_under(("builtins", "__builtin__"), dict.fromkeys(("set", "frozenset", "bytearray", "dict"), Ignored)),
    **dict.fromkeys(("argparse.Namespace", "collections.Counter", "collections.defaultdict"), Ignored),
    **_under(("pathlib", "pathlib._local"), dict.fromkeys(("PosixPath", "WindowsPath", "Path"), Ignored)),
}
