"""PyTorch checkpoints read without unpickling them: tensors and plain containers come out, and nothing in a file can run.

A pickle is a program. `torch.load(weights_only=True)` calls what its list allows with arguments of the file's choice, and
refuses every file that holds anything beside weights, as old ones do. Here no name that a file gives is looked up at all,
so nothing can be called: `pickletools` splits the program into its steps, and a stack machine makes Python's own containers
of them, notes where the numbers of each tensor lie, and puts an `Inert` in the place of everything else.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError

_MOST_STEPS = 10**7  # checkpoints of the largest classifiers, with all that lies beside their weights, take some 10**5
_MOST_DIMENSIONS = 64  # as many as a tensor can have
_ZIP = b"PK\x03\x04"
_LEGACY = 0x1950A86A20F9469CFC6C  # what `torch.save` begins with that does not write a zip file, by default before 1.6
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONSTANTS = {  # steps that put their argument on the stack
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_LISTS = {"EMPTY_LIST", "LIST", "EMPTY_SET", "FROZENSET"}  # nothing in a set is looked for
_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


@dataclass(frozen=True)
class Inert:
    """What stands for a function or a class in a file, or for what it makes: the name alone; nothing was looked up."""

    name: str


class _Storage(NamedTuple):
    """Where the numbers of tensors lie: ``numel`` of the storage ``key``, from the number ``start`` on."""

    key: str
    dtype: torch.dtype
    start: int
    numel: int


@dataclass(frozen=True)
class Stored:
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, numbers: Tensor) -> Tensor:
        """The tensor, a view of its storage's numbers.

        Raises:
            ValueError: it lies outside of them, or has more elements than they are.
        """
        layout = (self.offset, *self.size, *self.stride)
        known = all(type(each) is int and 0 <= each < 2**63 for each in layout)
        if not known or not len(self.size) == len(self.stride) <= _MOST_DIMENSIONS:
            raise ValueError("a tensor's layout is none")
        last = self.offset + sum((length - 1) * step for length, step in zip(self.size, self.stride, strict=True))
        if math.prod(self.size) > len(numbers) or (all(self.size) and last >= len(numbers)):
            raise ValueError("a tensor lies outside of its storage")
        within = self.offset if all(self.size) else 0
        return numbers.as_strided(self.size, self.stride, numbers.storage_offset() + within)


def read_tensors(file: Path, choose: Callable[[Any, list[str]], Mapping[str, Stored]]) -> dict[str, Tensor]:
    """Read tensors from what `torch.save` wrote: a zip file, or in the format before PyTorch 1.6.

    Args:
        file: written by any version of PyTorch, with any ``pickle_module`` and protocol.
        choose: from the file's content, where a `Stored` is a tensor and an `Inert` something that is not made, and from
            the names of all such things, to the tensors to read, by name. Nothing else is read from the disk.

    Raises:
        UsageError: what the file describes is larger than the file, or takes too many steps.
        Exception: of any kind, where the file is damaged or something else.

    Example:
        >>> read_tensors(Path("a.pt"), lambda content, others: content["state_dict"])  # doctest: +SKIP
    """
    with file.open("rb") as stream:
        content, others, places = (_zipped if stream.peek(4).startswith(_ZIP) else _legacy)(stream)
        tensors: dict[str, Tensor] = {}
        storages: dict[str, Tensor] = {}
        for name, stored in choose(content, others).items():
            storage = stored.storage
            if storage.key not in storages:
                storages[storage.key] = _numbers(stream, *places[storage.key], storage.dtype)
            whole = storages[storage.key]
            if whole.dtype != storage.dtype or not 0 <= storage.start <= storage.start + storage.numel <= len(whole):
                raise ValueError("two tensors disagree about their storage")
            tensors[name] = stored.of(whole[storage.start : storage.start + storage.numel])
        return tensors


def _numbers(stream: BinaryIO, start: int, size: int, dtype: torch.dtype) -> Tensor:
    """All numbers of a storage."""
    if not size:
        return torch.empty(0, dtype=dtype)
    buffer = bytearray(size)
    stream.seek(start)
    if stream.readinto(buffer) != size:  # type: ignore[attr-defined]
        raise EOFError("a storage is cut off")
    return torch.frombuffer(buffer, dtype=dtype)


def _zipped(stream: BinaryIO) -> tuple[Any, list[str], dict[str, tuple[int, int]]]:
    """The content of a zip file, what in it is not made, and from where to where each of its storages goes."""
    length = stream.seek(0, io.SEEK_END)
    records = {entry.filename: entry for entry in zipfile.ZipFile(stream).infolist()}
    if sum(entry.file_size for entry in records.values()) > length:
        raise UsageError(f"unpacks to more than its own {length:,} bytes, which no checkpoint of PyTorch does")
    (pickled,) = [name for name in records if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")

    def place(name: str) -> tuple[int, int]:
        entry = records[name]
        stream.seek(entry.header_offset + 26)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))
        if entry.compress_type != zipfile.ZIP_STORED or start + entry.file_size > length:
            raise ValueError(f"{name} is packed, or cut off")
        return start, entry.file_size

    def text(name: str) -> bytes:
        start, size = place(name)
        stream.seek(start)
        return stream.read(size)

    if folder + "byteorder" in records and text(folder + "byteorder") != b"little":
        raise UsageError("is of a machine with another order of bytes: save it anew on one like this")
    content, others = _described(io.BytesIO(text(pickled)))
    prefix = folder + "data/"
    return content, others, {name.removeprefix(prefix): place(name) for name in records if name.startswith(prefix)}


def _legacy(stream: BinaryIO) -> tuple[Any, list[str], dict[str, tuple[int, int]]]:
    """The same of a file that is no zip file: pickles, one after the other, and then the numbers. Of one pickle, that."""
    first, others = _described(stream)
    if first != _LEGACY:
        return first, others, {}
    _, system = _described(stream)[0], _described(stream)[0]
    if not system["little_endian"]:
        raise UsageError("is of a machine with another order of bytes: save it anew on one like this")
    storages: dict[str, torch.dtype] = {}
    content, others = _described(stream, storages)
    keys, _ = _described(stream)
    start = stream.tell()
    length = stream.seek(0, io.SEEK_END)
    places = {}
    for key in keys:
        if type(key) is not str:  # hashing a nested tuple can take for ever
            raise ValueError("a storage has no name")
        stream.seek(start)
        size = struct.unpack("<q", stream.read(8))[0] * storages[key].itemsize
        if not 0 <= size <= length - start - 8:
            raise EOFError("a storage is cut off")
        places[key] = (start + 8, size)
        start += 8 + size
    return content, others, places


def _described(stream: BinaryIO, storages: dict[str, torch.dtype] | None = None) -> tuple[Any, list[str]]:
    """What the next pickle describes, and the names of all that is not made of it.

    Args:
        stream: stands behind the pickle afterwards.
        storages: takes up the type of each storage that is mentioned.
    """
    storages = {} if storages is None else storages
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    others: dict[str, None] = {}
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step >= _MOST_STEPS:
            raise UsageError(f"takes more than {_MOST_STEPS:,} steps to describe, which no checkpoint does")
        name = opcode.name
        operands = _operands(opcode, stack, marks)
        if name == "STOP":
            return operands[0], list(others)
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("MEMOIZE", "DUP"):
            if name == "MEMOIZE":
                memo[len(memo)] = operands[0]
            stack += operands * (2 if name == "DUP" else 1)
        elif name not in ("PROTO", "FRAME", "POP", "POP_MARK"):
            result = _result(name, argument, operands)
            if isinstance(result, _Storage):
                storages[result.key] = result.dtype
            elif isinstance(result, Inert) and name not in ("GLOBAL", "STACK_GLOBAL"):
                others[result.name] = None
            stack.append(result)
    raise EOFError("a pickle is cut off")


def _operands(opcode: pickletools.OpcodeInfo, stack: list[Any], marks: list[int]) -> list[Any]:
    """Take from the stack what a step consumes: what lies below the last mark, if it reaches there, and all above it."""
    needs = opcode.stack_before
    above: list[Any] = []
    if pickletools.markobject in needs:
        mark = marks.pop()
        above = stack[mark:]
        del stack[mark:]
        needs = needs[: needs.index(pickletools.markobject)]
    if len(stack) - len(needs) < (marks[-1] if marks else 0):
        raise ValueError("a pickle takes more than there is")
    below = stack[len(stack) - len(needs) :]
    del stack[len(stack) - len(needs) :]
    return below + above


def _result(name: str, argument: Any, operands: list[Any]) -> Any:
    """What a step puts on the stack."""
    if name in _CONSTANTS:
        return argument
    if name in _VALUES:
        return _VALUES[name]
    if name in _LISTS:
        return operands
    if name in _TUPLES:
        return tuple(operands)
    if name in ("EMPTY_DICT", "DICT"):
        return _filled({}, operands)
    if name in ("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "BUILD"):
        container, *items = operands
        if type(container) is list and name != "BUILD":
            container += items
        elif type(container) is dict and name.startswith("SETITEM"):
            _filled(container, items)
        return container
    if name == "GLOBAL":
        return Inert(argument.replace(" ", "."))
    if name == "STACK_GLOBAL":
        return Inert(".".join(each for each in operands if type(each) is str))
    if name == "BINPERSID":
        return _storage(operands[0])
    if name in ("REDUCE", "NEWOBJ"):
        return _made(*operands)
    # Objects made in other ways (INST, OBJ, NEWOBJ_EX), and what lies outside of the pickle (EXT, PERSID, buffers).
    of = operands[0].name if operands and isinstance(operands[0], Inert) else ""
    return Inert(of or f"{name} {argument or ''}".strip())


def _filled(mapping: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """Put pairs into a dict, but for those whose key is no plain value and may take for ever to hash."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if key is None or isinstance(key, str | int | float | bytes):
            mapping[key] = value
    return mapping


def _storage(identity: Any) -> Any:
    """The storage with this identity: its kind, key, device, size and, in the older format, which part of it is meant."""
    if type(identity) is not tuple or len(identity) < 5 or identity[0] != "storage" or not isinstance(identity[1], Inert):
        return Inert("a persistent id")
    _, kind, key, _, numel, *view = identity
    dtype = _DTYPES.get(kind.name.rpartition(".")[2].removesuffix("Storage"))
    if dtype is None or not kind.name.startswith("torch.") or type(key) is not str or type(numel) is not int:
        return Inert(kind.name)
    start = 0
    if view and view[0] is not None:
        _, start, numel = view[0]
    return _Storage(key, dtype, start, numel)


def _made(function: Any, arguments: Any) -> Any:
    """A dict or a tensor, where it is one that is asked for, and an `Inert` otherwise."""
    if isinstance(function, Inert) and function.name == _SUBCLASS and type(arguments) is tuple:
        function, _, arguments = arguments[:3]
    if not isinstance(function, Inert) or type(arguments) is not tuple:
        return Inert("an object")
    if function.name in _DICTS:
        pairs = arguments[0] if function.name == "collections.OrderedDict" and arguments else []
        return _filled({}, [each for key, value in pairs for each in (key, value)])
    if function.name in _PARAMETERS and isinstance(arguments[0], Stored):
        return arguments[0]
    if function.name in _TENSORS and isinstance(arguments[0], _Storage):
        return Stored(*arguments[:4])
    return Inert(function.name)
