"""What a pickle says, without running it.

A pickle is a program for a stack machine, and some of its instructions call functions that it names. Here the standard
library's `pickletools` takes the program apart, and of its instructions only those are followed that put plain data
together. A function that it names is looked up in the table that the caller gives and never imported; a name that is
not in the table ends the reading, and the message says what the file asked for.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

_MARK = object()
_LONGEST_TEXT = 1 << 16
_KEYS = (str, bytes, int, float, type(None))


class RefusedError(ValueError):
    """The file asks for something that is not read here; the message names it."""


class Ignored:
    """In the place of an object that no weight depends on, such as the options of a training run."""

    def __init__(self, *_: Any) -> None:
        pass


class Stateful:
    """An object that a pickle makes first and then sets the state of."""

    def set_state(self, state: Any) -> None:
        """Take what the pickle gives as the object's state."""
        raise NotImplementedError


def shown(value: Any) -> str:
    """A value of a pickle for a message: short, as tuples of tuples of the same tuple have no end when written out."""
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"


def mapping(items: Iterable = ()) -> dict:
    """A dict of the pairs whose keys are plain; hashing any others could take for ever, and no weight is named so."""
    return {key: value for key, value in items if isinstance(key, _KEYS)}


def read_pickle(stream: BinaryIO, functions: Mapping[str, Any], persistent: Callable | None = None) -> Any:
    """The object that the pickle at the stream's position describes; the stream stands behind it afterwards.

    functions: "module.name" -> what stands in its place, called with the arguments that the pickle gives.
    persistent(id): the object that a file's container holds under an id. Raises RefusedError, and whatever comes of
    a damaged program: EOFError, ValueError, IndexError, KeyError, TypeError.
    """
    return _Machine(functions, persistent).run(pickletools.genops(stream))


class _Machine:
    """The stack, the memory and the instructions that are followed."""

    def __init__(self, functions: Mapping[str, Any], persistent: Callable | None) -> None:
        self._functions, self._persistent = functions, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, instructions: Iterator) -> Any:
        for opcode, argument, _ in instructions:
            name = opcode.name
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name](argument))
            elif name == "STOP":
                return self._stack.pop()
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            else:
                raise RefusedError(f"the file asks for the pickle instruction {name}")
        raise EOFError("the pickle ends before its last instruction")

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _put(self, index: int) -> None:
        value = self._stack[-1]
        # An array's bytes, written as text where the pickle's version has no bytes: nothing refers to them again, and
        # remembering them would keep every array twice.
        self._memo[index] = None if isinstance(value, str) and len(value) > _LONGEST_TEXT else value

    def _global(self, name: str) -> None:
        if name not in self._functions:
            raise RefusedError(f"the file asks for {name}")
        self._stack.append(self._functions[name])

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise RefusedError(f"the file asks for a function called {shown(name)} of {shown(module)}")
        self._global(f"{module}.{name}")

    def _call(self, _: Any) -> None:
        arguments = self._stack.pop()
        function = self._stack.pop()
        if not any(function is known for known in self._functions.values()):
            raise RefusedError(f"the file asks for a call of {shown(function)}")
        self._stack.append(function(*arguments))

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        subject = self._stack[-1]
        # An OrderedDict's state is what was set on it, such as PyTorch's versions of modules.
        if isinstance(subject, (dict, Ignored)):
            return
        if not isinstance(subject, Stateful):
            raise RefusedError(f"the file asks for setting the state of a {type(subject).__name__}")
        subject.set_state(state)

    def _dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set_items(items)

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Ignored):
            self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], Ignored):
            self._stack[-1].update(mapping(zip(items[::2], items[1::2], strict=True)))

    def _persistent_id(self, _: Any) -> None:
        if self._persistent is None:
            raise RefusedError("the file asks for an object outside its pickle")
        self._stack.append(self._persistent(self._stack.pop()))

    def _tuple(self, size: int) -> None:
        items = self._stack[-size:]
        if len(items) < size:
            raise IndexError("the stack is too short")
        self._stack[-size:] = [tuple(items)]


def _fixed(value: Any) -> Callable:
    return lambda _: value


def _same(argument: Any) -> Any:
    return argument


# What puts a constant onto the stack. Python 2's long strings are the bytes of arrays; pickletools gives them as text.
_CONSTANTS: dict[str, Callable] = {
    **dict.fromkeys((
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
        "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
        "SHORT_BINUNICODE", "BINUNICODE8"), _same),
    "BINSTRING": lambda text: text.encode("latin-1"),
    "NONE": _fixed(None), "NEWTRUE": _fixed(True), "NEWFALSE": _fixed(False), "MARK": _fixed(_MARK),
    "EMPTY_TUPLE": _fixed(()), "EMPTY_LIST": lambda _: [], "EMPTY_DICT": lambda _: {}, "EMPTY_SET": lambda _: Ignored(),
}

_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "POP": lambda m, _: m._stack.pop(),
    "POP_MARK": lambda m, _: m._pop_to_mark(),
    "DUP": lambda m, _: m._stack.append(m._stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._put),
    "MEMOIZE": lambda m, _: m._put(len(m._memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m._stack.append(m._memo[index])),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._pop_to_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "LIST": lambda m, _: m._stack.append(m._pop_to_mark()),
    "DICT": _Machine._dict,
    "APPEND": lambda m, _: m._append([m._stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_to_mark()),
    "SETITEM": lambda m, _: m._set_items([m._stack.pop(-2), m._stack.pop()]),
    "SETITEMS": lambda m, _: m._set_items(m._pop_to_mark()),
    "ADDITEMS": lambda m, _: m._append(m._pop_to_mark()),
    "FROZENSET": lambda m, _: m._stack.append(Ignored(m._pop_to_mark())),
    "GLOBAL": lambda m, names: m._global(names.replace(" ", ".")),
    "STACK_GLOBAL": _Machine._stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine._call),
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
