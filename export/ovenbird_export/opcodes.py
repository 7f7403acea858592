"""The program in a pickle, followed without being run.

A pickle names functions anywhere in Python and calls them.  The machine here knows two functions that make tensors,
``OrderedDict`` and the types of storages, and imports none of them.  Every other name is a placeholder that swallows
calls, state and items, and is listed.  There is no fallback to ``pickle``.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ovenbird_export.weights import LONGEST_NAME, LazyTensor

LARGEST_NUMBER = 1 << 48
"""Above every size and offset that a file can have; products of them stay small."""
MOST_DIMENSIONS = 8
MOST_IGNORED = 1000
STORAGES = {
    "torch DoubleStorage": ("float64", 8),
    "torch FloatStorage": ("float32", 4),
    "torch HalfStorage": ("float16", 2),
    "torch BFloat16Storage": ("bfloat16", 2),
    "torch LongStorage": ("int64", 8),
    "torch IntStorage": ("int32", 4),
    "torch ShortStorage": ("int16", 2),
    "torch CharStorage": ("int8", 1),
    "torch ByteStorage": ("uint8", 1),
}
"""What a pickle calls a storage -> the type of its elements in torch, and their bytes."""


class Malformed(ValueError):
    """This is not what torch writes."""


@dataclass(frozen=True)
class StorageType:
    """What its elements are."""

    dtype: str
    size: int


@dataclass(frozen=True)
class Storage:
    """A run of elements somewhere in the file."""

    key: str
    type: StorageType
    count: int

    @property
    def nbytes(self) -> int:
        """How long it is."""
        return self.count * self.type.size


@dataclass(frozen=True)
class View:
    """A tensor: which elements of a storage, in which order."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a view that leaves its storage, or shows more than is in it: a stride of 0 makes much of little."""
        if len(self.shape) != len(self.stride):
            raise Malformed("a tensor has more sizes than strides, or fewer")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        if 0 not in self.shape and (last >= self.storage.count or math.prod(self.shape) > self.storage.count):
            raise Malformed(f"a tensor of shape {self.shape} does not lie in its storage of {self.storage.count}")

    def place(self, pages: mmap.mmap, start: int) -> LazyTensor:
        """The tensor in a file in which its storage begins at ``start``."""
        kind = self.storage.type
        return LazyTensor(pages, start + self.offset * kind.size, kind.dtype, self.shape, self.stride)


PLACEHOLDER = object()
"""Whatever the pickle names, calls or builds that is not known here."""
MARK = object()


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, extra: Any = None) -> Any:
    if storage is PLACEHOLDER:  # of an unknown type, which is listed
        return PLACEHOLDER
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise Malformed("a tensor is not made of a storage, a shape and strides")
    if extra:
        raise Malformed("a tensor is marked as negated or conjugate")
    if max(len(shape), len(stride)) > MOST_DIMENSIONS:
        raise Malformed(f"a tensor has {len(shape)} dimensions")
    return View(storage, _natural(offset), tuple(map(_natural, shape)), tuple(map(_natural, stride)))


def _parameter(data: Any, grad: Any, hooks: Any) -> Any:
    return data


def _ordered_dict() -> dict[str, Any]:
    return {}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered_dict,
}
TYPES = {name: StorageType(*facts) for name, facts in STORAGES.items()}


class Machine:
    """Follows pickles, one after the other.

    On its stack lie numbers, texts, lists, tuples, dictionaries, and what is declared above.  Sets are lists, and
    entries under anything but a short text are left out: what nests or is long is never hashed, compared or shown,
    because a few bytes can make that last for years.
    """

    def __init__(self) -> None:
        self.ignored: dict[str, None] = {}
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """What the pickle at this place of the file makes; the file stands behind it afterwards."""
        self.stack, self.memo = [], {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # texts of protocol 0 may have escapes that Python frowns at
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in CONSTANTS:
                    self.stack.append(argument)
                else:
                    _step(opcode.name)(self, argument)
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def name(self, text: str) -> Any:
        """What stands for ``module name`` of the pickle."""
        if text in FUNCTIONS:
            return FUNCTIONS[text]
        if text in TYPES:
            return TYPES[text]
        self.ignored[ascii(text[:LONGEST_NAME].replace(" ", "."))[1:-1]] = None
        if len(self.ignored) > MOST_IGNORED:
            raise Malformed(f"it names more than {MOST_IGNORED} other things")
        return PLACEHOLDER

    def call(self, function: Any, arguments: Any) -> Any:
        """Only ``FUNCTIONS`` are called; everything else gives a placeholder."""
        if not any(function is known for known in FUNCTIONS.values()):
            return PLACEHOLDER
        if not isinstance(arguments, tuple):
            raise Malformed("arguments are not a tuple")
        return function(*arguments)

    def stored(self, id: Any) -> Any:
        """The storage behind a persistent id: ('storage', type, key, device, number of elements, None if legacy)."""
        if not isinstance(id, tuple) or not id or not _short(id[0]):
            raise Malformed("a persistent id is not torch's")
        if id[0] == "module":
            return PLACEHOLDER
        plain = len(id) == 5 or (len(id) == 6 and id[5] is None)
        if id[0] != "storage" or not plain or not _short(id[2]):
            raise Malformed("a persistent id is not a storage's")
        if not isinstance(id[1], StorageType):
            return PLACEHOLDER
        storage = Storage(id[2], id[1], _natural(id[4]))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise Malformed("one storage has two sizes")
        return storage


def _step(name: str) -> Callable[[Machine, Any], None]:
    if name not in STEPS:
        raise Malformed(f"the pickle has the opcode {name}")
    return STEPS[name]


def _drop(machine: Machine, _: Any) -> None:
    machine.stack.pop()


def _list(machine: Machine, _: Any) -> None:
    machine.stack.append(machine.since_mark())


def _tuple(machine: Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    def step(machine: Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(items[::-1]))

    return step


def _dict(machine: Machine, _: Any) -> None:
    found: dict[str, Any] = {}
    _fill(found, machine.since_mark())
    machine.stack.append(found)


def _append(machine: Machine, _: Any) -> None:
    _extend(machine, [machine.stack.pop()])


def _appends(machine: Machine, _: Any) -> None:
    _extend(machine, machine.since_mark())


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif target is not PLACEHOLDER:
        raise Malformed("items are added to what is not a list")


def _set_item(machine: Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _fill(machine.stack[-1], [key, value])


def _set_items(machine: Machine, _: Any) -> None:
    items = machine.since_mark()
    _fill(machine.stack[-1], items)


def _fill(target: Any, items: list[Any]) -> None:
    if len(items) % 2:
        raise Malformed("a key has no value")
    if isinstance(target, dict):
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if _short(key))
    elif target is not PLACEHOLDER:
        raise Malformed("entries are set in what is not a dictionary")


def _put(machine: Machine, place: Any) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _get(machine: Machine, place: Any) -> None:
    machine.stack.append(machine.memo[place])


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not _short(name) or not _short(module):
        raise Malformed("a name is not a short text")
    machine.stack.append(machine.name(f"{module} {name}"))


def _reduce(machine: Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.call(function, arguments))


def _new_with_keywords(machine: Machine, _: Any) -> None:
    machine.stack.pop()
    _reduce(machine, _)


def _instance(machine: Machine, name: Any) -> None:
    arguments = tuple(machine.since_mark())
    machine.stack.append(machine.call(machine.name(name), arguments))


def _object(machine: Machine, _: Any) -> None:
    function, *arguments = machine.since_mark()
    machine.stack.append(machine.call(function, tuple(arguments)))


CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Opcodes that put their argument on the stack."""
STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": lambda machine, _: machine.stack.append(MARK),
    "POP": _drop,
    "POP_MARK": lambda machine, _: machine.since_mark().clear(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": _list,
    "FROZENSET": _list,
    "DICT": _dict,
    "TUPLE": _tuple,
    **{f"TUPLE{count}": _tuple_of(count) for count in (1, 2, 3)},
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "GLOBAL": lambda machine, name: machine.stack.append(machine.name(name)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _drop,  # state: versions, hooks, attributes
    "BINPERSID": lambda machine, _: machine.stack.append(machine.stored(machine.stack.pop())),
}
"""Opcodes that are followed.  What torch never writes is refused: registered extensions, buffers, textual ids."""


def _short(value: Any) -> bool:
    return type(value) is str and len(value) <= LONGEST_NAME


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST_NUMBER:
        raise Malformed("a size, a stride or an offset is not a natural number")
    return value
