"""Whatever a pickle names, in whatever spelling: nothing is imported, opened, compiled or run while it is read."""

import ast
import contextlib
import functools
import io
import pickle
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import CompressorError
from compressor.loading.pickles import is_tensor, read_pickle, tensor_of
from compressor.loading.stand_ins import Names, StandIn, unpickle
from tests.faults import assembler as asm

# What the advisories on picklescan, fickling and modelscan name, beyond the standard library's own functions.
_ADVISED = """
pkgutil.resolve_name uuid._get_command_stdout imaplib.IMAP4_stream logging.FileHandler _pyrepl.pager.pipe_pager
runpy.run_path torch.package.PackageImporter torch.hub.load torch.load torch.jit.load
torch.utils.data.datapipes.utils.decoder.basichandlers torch._dynamo.guards.GuardBuilder.get
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression torch.utils.collect_env.run
torch.utils._config_module.load_config torch.utils.bottleneck.__main__.run_cprofile torch.serialization.load
torch.storage._load_from_bytes torch.distributed.rpc.internal._run_function torch._inductor.codecache.compile_file
torch.utils.cpp_extension.load_inline numpy.testing._private.utils.runstring numpy.f2py.crackfortran.getlincoef
numpy.load joblib.load cloudpickle.loads dill.loads pandas.read_pickle pip.main setuptools.sandbox.run_setup
pydoc.pipepager pydoc.locate idlelib.run.Executive.runcode idlelib.autocomplete.AutoComplete.get_entity
lib2to3.pgen2.grammar.Grammar.loads ensurepip._run_pip asyncio.unix_events._UnixSubprocessTransport._start
code.InteractiveInterpreter.runcode bdb.Bdb.run cProfile.run profile.run doctest.debug_script trace.Trace.run
timeit.timeit ctypes.CDLL smtplib.SMTP ftplib.FTP socket.create_connection webbrowser.open urllib.request.urlopen
http.client.HTTPSConnection aiohttp.client.ClientSession functools.partial operator.methodcaller builtins.eval
builtins.exec builtins.getattr __builtin__.eval posix.system nt.system os.system sys.modules subprocess.Popen
commands.getoutput types.FunctionType marshal.loads
"""
ADVISED = _ADVISED.split()


@functools.cache
def names() -> list[str]:
    """Every function and class of the standard library, by its source or in the interpreter, and the advised ones."""
    found = set(ADVISED)
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        place = root / name
        for path in (place.with_suffix(".py"), *sorted(place.glob("*.py"))):
            if path.is_file():
                module = name if path.parent == root or path.stem == "__init__" else f"{name}.{path.stem}"
                tree = ast.parse(path.read_bytes())
                defined = (each for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef))
                found |= {f"{module}.{each.name}" for each in defined}
        if name in sys.builtin_module_names and name in sys.modules:
            found |= {f"{name}.{key}" for key, value in vars(sys.modules[name]).items() if callable(value)}
    return sorted(found)


def spellings(name: str, argument: bytes) -> dict[str, bytes]:
    """A call of `name` in every way that pickle has."""
    module, _, attribute = name.rpartition(".")
    named, arguments = asm.name(module, attribute), asm.tup(argument)
    return {
        "GLOBAL": asm.program(asm.call(named, argument)),
        "STACK_GLOBAL": asm.program(asm.call(asm.stacked_name(module, attribute), argument), 4),
        "INST": asm.program(b"(" + argument + f"i{module}\n{attribute}\n".encode()),
        "OBJ": asm.program(b"(" + named + argument + b"o"),
        "NEWOBJ": asm.program(asm.new(named, argument)),
        "NEWOBJ_EX": asm.program(named + arguments + b"}\x92", 4),
        "EXT1": asm.program(b"\x82\x01" + arguments + b"R"),
        "BUILD": asm.program(asm.build(asm.new(named), asm.dic(argument, argument))),
        "SETITEM": asm.program(asm.call(named) + argument + argument + b"s"),
        "rebuild": asm.program(
            asm.call(asm.name("torch._tensor", "_rebuild_from_type_v2"), named, named, arguments, b"}")
        ),
    }


_EVENTS = frozenset(["import", "open", "exec", "compile", "os", "subprocess", "socket", "ctypes"])


class Watch:
    """Counts what the interpreter reports while it is on: imports, files, code, processes, sockets."""

    on = False
    seen: list[str]

    def __call__(self, event: str, arguments: Any) -> None:
        if self.on and event.partition(".")[0] in _EVENTS:
            self.seen.append(f"{event} {arguments}"[:200])

    @contextlib.contextmanager
    def ing(self) -> Iterator[list[str]]:
        """Watch for a while."""
        self.seen, self.on = [], True
        try:
            yield self.seen
        finally:
            self.on = False


WATCH = Watch()


@pytest.fixture(scope="module", autouse=True)
def _watched() -> None:
    sys.addaudithook(WATCH)  # for the rest of the process: it cannot be taken away


def read(pickled: bytes) -> Any:
    """What the reader makes of a pickle; None where it refuses it."""
    with contextlib.suppress(
        pickle.UnpicklingError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError
    ):
        return unpickle(io.BytesIO(pickled), Names(), lambda place: place)
    return None


def check_names(canary: Path, step: int) -> None:
    """Read every name, in each of so many of the spellings that follow one another."""
    argument = asm.text(f"touch {canary}")
    assert len(names()) > 4000
    read(spellings("warm.up", argument)["STACK_GLOBAL"])
    with WATCH.ing() as seen:
        for place, name in enumerate(names()):
            for pickled in list(spellings(name, argument).values())[place % step :: step]:
                assert isinstance(read(pickled), StandIn | dict | set | frozenset | None)
    assert not seen
    assert not canary.exists()


def test_thousands_of_names_in_all_spellings_do_nothing(tmp_path: Path) -> None:
    check_names(tmp_path / "canary", 15)


@pytest.mark.slow
def test_thousands_of_names_in_every_spelling_do_nothing(tmp_path: Path) -> None:
    check_names(tmp_path / "canary", 1)


@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "runpy.run_path", "io.open"])
def test_the_watch_sees_what_python_does_with_them(tmp_path: Path, name: str) -> None:
    """The control: the same bytes, read by Python's own unpickler, do something."""
    pickled = spellings(name, asm.text("true"))["GLOBAL"]
    with WATCH.ing() as seen, contextlib.suppress(Exception):
        pickle.loads(pickled)
    assert seen


def test_files_that_name_them_are_refused_or_hold_stand_ins(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "m.pt"
    for name in ADVISED:
        for spelling, pickled in spellings(name, asm.text(f"touch {canary}")).items():
            asm.zip_of(path, pickled)
            try:
                found = read_pickle(path)
                assert isinstance(found, StandIn | dict), (name, spelling)
                if is_tensor(found):
                    tensor_of(found)
                    pytest.fail(f"{name}, {spelling}: a tensor was made of it")
            except CompressorError as error:
                assert str(error).isprintable()
    assert not canary.exists()
