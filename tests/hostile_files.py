"""Files that try to run code, to fill the memory or never to end, as bytes put together by hand."""

import io
import pickle
import struct
import zipfile

MODULE = '''
from pathlib import Path
CANARY = Path(__file__).with_name("it-ran")
CANARY.write_text("imported")

def touch(*args, **kwargs):
    CANARY.write_text("called")

class Trap:
    """Whatever is done with it is seen."""
    def __new__(cls, *args, **kwargs):
        touch()
        return object.__new__(cls)
    append = extend = add = update = __setitem__ = __setstate__ = __call__ = __getattr__ = touch
    def __hash__(self):
        touch()
        return 0

class FloatStorage(Trap):
    dtype = "float32"
'''


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    return b"J" + struct.pack("<i", value)


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def row(*items):
    return b"(" + b"".join(items) + b"t"


def called(function, *arguments):
    return function + row(*arguments) + b"R"


def tensor(size=(4,), stride=(1,), offset=0, numel=4, kind=None, key="0", rebuild=None, view=()):
    storage = (
        row(text("storage"), kind or named("torch", "FloatStorage"), text(key), text("cpu"), number(numel), *view) + b"Q"
    )
    layout = (number(offset), row(*map(number, size)), row(*map(number, stride)))
    rest = (b"\x89", called(named("collections", "OrderedDict")))
    return called(rebuild or named("torch._utils", "_rebuild_tensor_v2"), storage, *layout, *rest)


SYSTEM, OURS = named("posix", "system"), named("hostile_module", "touch")
TRAP = named("hostile_module", "Trap")
OBJECT = TRAP + b")\x81"  # NEWOBJ
PATH = "it-ran-too"  # in the folder that it is read in
NESTED = pickle.dumps(1, 2)[:-1] + b"0" + called(OURS) + b"."
# t = (); t = (t, t); … forty times: 2 ** 40 leaves
EXPONENTIAL = b")" + b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(40))
DEEP = b")" + b"\x85" * 20_000
# What lies beside the weights, each of them of one kind: opcodes that leave one object on the stack.
BESIDE = {
    "reduce": called(SYSTEM, text(f"touch {PATH}")),
    "reduce of a module of its own": called(OURS),
    "an import": OURS,
    "stack global": text("hostile_module") + text("touch") + b"\x93)R",
    "stack global with dots": text("hostile_module") + text("Trap.append") + b"\x93)R",
    "stack global of no text": EXPONENTIAL + text("touch") + b"\x93)R",
    "inst": b"(" + text("x") + b"ihostile_module\nTrap\n",
    "obj": b"(" + TRAP + text("x") + b"o",
    "newobj": OBJECT,
    "newobj with keywords": TRAP + b")}\x92",
    "build": OBJECT + b"}b",
    "build with slots": OBJECT + row(b"N", b"}" + text("a") + number(1) + b"s") + b"b",
    "build of a function": OURS + b"}" + text("__doc__") + text("x") + b"sb",
    "build of a function's slots": OURS + row(b"N", b"}" + text("__defaults__") + b")s") + b"b",
    "build of an ordered dict": called(named("collections", "OrderedDict")) + b"}" + text("items") + OURS + b"sb",
    "append": OBJECT + number(1) + b"a",
    "appends": OBJECT + b"(" + number(1) + b"e",
    "setitem": OBJECT + number(1) + number(2) + b"s",
    "setitems": OBJECT + b"(" + number(1) + number(2) + b"u",
    "additems": OBJECT + b"(" + number(1) + b"\x90",
    "set of traps": b"\x8f(" + OBJECT + b"\x90",
    "frozen set of traps": b"(" + OBJECT + b"\x91",
    "a trap as a key": b"}" + OBJECT + number(1) + b"s",
    "extension registry": b"\x82\xf0)R",
    "persistent id": OBJECT + b"Q",
    "persistent id in text": b"Phostile_module\n",
    "persistent id of a module": row(text("module"), TRAP, text("a.py"), text("source")) + b"Q",
    "a storage of its own": tensor(kind=named("hostile_module", "FloatStorage")),
    "a tensor of its own": tensor(rebuild=OURS),
    "a tensor's subclass": called(named("torch._tensor", "_rebuild_from_type_v2"), OURS, TRAP, b")", b"}"),
    "a tensor's subclass without end": named("torch._tensor", "_rebuild_from_type_v2")
    + b"]q\x00("
    + named("torch._tensor", "_rebuild_from_type_v2")
    + b"Nh\x00eR",
    "parameter": called(named("torch._utils", "_rebuild_parameter"), OBJECT, b"\x88", b"N"),
    "nested pickle": called(named("pickle", "loads"), b"U" + bytes([len(NESTED)]) + NESTED),
    "nested checkpoint": called(named("torch.storage", "_load_from_bytes"), b"U" + bytes([len(NESTED)]) + NESTED),
    "numpy objects": called(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"), row(), text("b"))
    + row(number(1), row(number(1)), called(named("numpy", "dtype"), text("O8")), b"\x89", b"](" + OBJECT + b"e")
    + b"b",
    "eval": called(named("builtins", "eval"), text("__import__('hostile_module').touch()")),
    "exec of Python 2": called(named("__builtin__", "eval"), text("__import__('hostile_module').touch()")),
    "getattr": called(named("builtins", "getattr"), OBJECT, text("x")),
    "an encoding": called(named("_codecs", "encode"), text("x"), text("hostile_module")),
    "a socket": called(named("socket", "create_connection"), row(text("127.0.0.1"), number(9))),
    "a process": called(named("subprocess", "Popen"), text("true")),
    "a file": called(named("io", "open"), text(PATH), text("w")),
    "defaultdict": called(named("collections", "defaultdict"), OURS) + text("a") + number(1) + b"s",
    "a function of dill": called(
        named("dill._dill", "_create_function"), called(named("dill._dill", "_create_code")), b"}"
    ),
    "buffer outside of the file": b"\x97\x98",
    "ordered dict of traps": called(named("collections", "OrderedDict"), b"](" + row(OBJECT, OBJECT) + b"e"),
    "an exponential key": b"}" + EXPONENTIAL + number(1) + b"s",
    "a deep key": b"}" + DEEP + number(1) + b"s",
    "something deep": DEEP,
    "gigabytes of zeros": called(named("builtins", "bytearray"), b"\x8a\x05" + (10**11).to_bytes(5, "little")),
    "a tensor of terabytes": called(named("torch", "Tensor"), b"\x8a\x06" + (10**12).to_bytes(6, "little")),
}
# Weights that are not as they should be. Nothing of these files may come out.
WEIGHTS = {
    "outside of its storage": tensor(stride=(2,)),
    "before its storage": tensor(offset=-1),
    "behind its storage": tensor(offset=4),
    "repeated to terabytes": tensor(size=(10**6, 10**6), stride=(0, 0)),
    "of negative sizes": tensor(size=(-2,)),
    "of other numbers of sizes and strides": tensor(size=(2, 2), stride=(2,)),
    "of a thousand dimensions": tensor(size=(1,) * 1000, stride=(1,) * 1000),
    "of another type than its storage": tensor() + b"0" + tensor(kind=named("torch", "DoubleStorage")),
    "in a storage that is not there": tensor(key="1"),
    "in a part of its storage that is not there": tensor(view=(row(text("1"), number(3), number(4)),)),
    "in a part of its storage that is no part": tensor(view=(row(text("1"), text("0"), b"N"),)),
    "in a storage elsewhere": tensor(key="../data.pkl"),
}
WHOLE = {
    "empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x00.",
    "no end": b"\x80\x02" + called(OURS),
    "a text of exabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b".",
    "a number of gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
    "a second pickle": b"\x80\x02}." + b"\x80\x02" + called(OURS) + b".",
}


def alone(beside):
    return b"\x80\x02" + beside + b"."


def content(beside=b"", weight=None):
    entries = b"}" + text("state_dict") + b"}" + text("weight") + (weight or tensor()) + b"ss"
    return b"\x80\x02" + entries + (text("beside") + beside + b"s" if beside else b"") + b"."


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)
SYSTEM_INFO = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def legacy(body, magic=None, keys=None):
    first = magic or pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    parts = [first, pickle.dumps(1001, 2), pickle.dumps(SYSTEM_INFO, 2), body, keys or pickle.dumps(["0"], 2)]
    return b"".join(parts) + struct.pack("<q", 4) + NUMBERS


def zipped(body, method=zipfile.ZIP_STORED, numbers=NUMBERS):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", numbers)
        archive.writestr("archive/version", "3\n")
    return written.getvalue()


CONTAINERS = {"legacy": legacy, "zip": zipped, "pickle": bytes}
GOOD = {f"{kind}: good": wrap(content()) for kind, wrap in CONTAINERS.items()}
HARMLESS_WITHIN = {  # these have weights that can be read, and something else that must stay what it is
    f"{kind}: {name}": wrap(content(beside)) for kind, wrap in CONTAINERS.items() for name, beside in BESIDE.items()
}
BAD = {
    **{
        f"{kind}: {name}": wrap(content(weight=each)) for kind, wrap in CONTAINERS.items() for name, each in WEIGHTS.items()
    },
    **{f"{kind}: {name}": wrap(body) for kind, wrap in CONTAINERS.items() for name, body in WHOLE.items()},
    **{f"{kind}: {name}, alone": wrap(alone(each)) for kind, wrap in CONTAINERS.items() for name, each in BESIDE.items()},
    "legacy: a trap as magic number": legacy(content(), magic=alone(called(OURS))),
    "legacy: a trap as keys": legacy(content(), keys=alone(called(OURS))),
    "legacy: an exponential key of a storage": legacy(content(), keys=alone(b"](" + EXPONENTIAL + b"e")),
    "zip: packed": zipped(content(), zipfile.ZIP_DEFLATED),
    "zip: unpacks to gigabytes": zipped(content(), zipfile.ZIP_DEFLATED, bytes(10**7)),
}
