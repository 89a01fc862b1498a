"""ONNX files from outside: only real files in their own folder, each read once, and none that takes the machine."""

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import FileError
from compressor.exporting.onnx_profile import profile_onnx
from compressor.exporting.outside import take_in
from compressor.exporting.runtime import OnnxModel
from compressor.files import limits
from compressor.files.limits import apart

SECRET = np.full((3, 3), 7, np.float32)
OURS = np.eye(3, dtype=np.float32)


def node(*arguments: Any, **attributes: Any) -> Any:
    return helper.make_node(*arguments, **attributes)


def value(name: str, shape: Any = (1, 3), kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, values: Any, kind: Any) -> Any:
    return numpy_helper.from_array(np.array(values, kind), name)


def model_of(nodes: Any, initializers: Any = (), functions: Any = (), sparse: Any = ()) -> Any:
    """A model from x (1, 3) to y of these nodes."""
    graph = helper.make_graph(
        nodes, "g", [value("x")], [value("y")], list(initializers), sparse_initializer=list(sparse)
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    return helper.make_model(graph, opset_imports=sets, functions=list(functions), ir_version=9)


def external(place: str, **more: str) -> Any:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    for key, held in (("location", place), *more.items()):
        weight.external_data.add(key=key, value=held)
    return weight


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a model whose weight lies in w.bin beside it, and a secret outside."""
    folder = tmp_path / "package"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    (folder / "w.bin").write_bytes(OURS.tobytes())
    return folder


def written(folder: Path, *weights: Any, model: Any = None) -> Path:
    model = model or model_of([node("MatMul", ["x", weights[0].name], ["y"])], weights)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_weights_beside_a_model_and_below_it_are_read(package: Path, tmp_path: Path) -> None:
    (package / "sub").mkdir()
    (package / "w.bin").rename(package / "sub" / "w.bin")
    path = written(package, external("./sub//w.bin"))
    assert OnnxModel(path)(np.ones((1, 3), np.float32)).tolist() == [[1, 1, 1]]
    assert profile_onnx(path).file_bytes == path.stat().st_size + 36
    (tmp_path / "latest").symlink_to(package)  # a person may name a folder by a link
    assert profile_onnx(tmp_path / "latest" / "m.onnx").params == 9


def _hard_link(folder: Path) -> None:
    (folder / "w.bin").unlink()
    os.link(folder.parent / "secret.bin", folder / "w.bin")


def _link(folder: Path) -> None:
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("../secret.bin")


def _inner_link(folder: Path) -> None:
    (folder / "w.bin").rename(folder / "v.bin")
    (folder / "w.bin").symlink_to("v.bin")


def _linked_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent)


def _deeper_link(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "b").symlink_to(folder.parent)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


PLACES = {
    "hard link": (_hard_link, "w.bin", "hard link"),
    "link": (_link, "w.bin", "is a link"),
    "link within": (_inner_link, "w.bin", "is a link"),
    "linked folder": (_linked_folder, "sub/secret.bin", "reached through one"),
    "deeper link": (_deeper_link, "a/b/secret.bin", "reached through one"),
    "above": (None, "../secret.bin", "outside of its folder"),
    "above by a detour": (None, "sub/../../secret.bin", "outside of its folder"),
    "absolute": (None, "/etc/passwd", "outside of its folder"),
    "absolute, doubled": (None, "//etc/passwd", "outside of its folder"),
    "another system's": (None, "..\\secret.bin", "outside of its folder"),
    "a drive": (None, "C:\\secret.bin", "outside of its folder"),
    "nothing": (None, "", "outside of its folder"),
    "itself by a dot": (None, ".", "outside of its folder"),
    "null": (None, "w.bin\0.txt", "outside of its folder"),
    "missing": (None, "v.bin", "is missing"),
    "the folder": (lambda folder: (folder / "sub").mkdir(), "sub", "no regular file"),
    "pipe": (_pipe, "pipe", "no regular file"),
    "the model": (None, "m.onnx", "names itself"),
    "control characters": (None, "\x1b[2J\n.bin", r"\\x1b\[2J\\n.bin is missing"),
    "a very long name": (None, "n" * 100_000, "cannot be read"),
}


@pytest.mark.parametrize("case", PLACES)
def test_weights_from_elsewhere_are_refused(case: str, package: Path, tmp_path: Path) -> None:
    prepare, place, says = PLACES[case]
    if prepare is not None:
        prepare(package)
    path = written(package, external(place))
    copies = tmp_path / "copies"
    copies.mkdir()
    with pytest.raises(FileError, match=says) as caught:
        take_in(path, copies)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    assert not [
        each for each in copies.rglob("*") if SECRET.tobytes() in (each.read_bytes() if each.is_file() else b"")
    ]


def _in_a_branch(weight: Any) -> Any:
    graph = helper.make_graph([node("MatMul", ["x", "w"], ["z"])], "b", [], [value("z")], [weight])
    choice = node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    return model_of([choice], [constant("c", True, bool)])


def _as_a_constant(weight: Any) -> Any:
    return model_of([node("Constant", [], ["w"], value=weight), node("MatMul", ["x", "w"], ["y"])])


def _in_a_function(weight: Any) -> Any:
    nodes = [node("Constant", [], ["w"], value=weight), node("MatMul", ["a", "w"], ["b"])]
    function = helper.make_function("d", "f", ["a"], ["b"], nodes, [helper.make_opsetid("", 20)])
    return model_of([node("f", ["x"], ["y"], domain="d")], functions=[function])


def _as_a_functions_default(weight: Any) -> Any:
    model = _in_a_function(constant("w", OURS, np.float32))
    model.functions[0].attribute_proto.append(helper.make_attribute("given", weight))
    return model


def _for_training(weight: Any) -> Any:
    model = model_of([node("Relu", ["x"], ["y"])])
    model.training_info.add().initialization.initializer.append(weight)
    return model


def _sparse(weight: Any) -> Any:
    held = onnx.SparseTensorProto(values=weight, dims=[9])
    held.indices.CopyFrom(constant("i", list(range(9)), np.int64))
    return model_of([node("Relu", ["x"], ["y"])], sparse=[held])


@pytest.mark.parametrize(
    "hidden", [_in_a_branch, _as_a_constant, _in_a_function, _as_a_functions_default, _for_training, _sparse]
)
def test_weights_are_found_wherever_a_model_holds_tensors(hidden: Any, package: Path, tmp_path: Path) -> None:
    (package / "m.onnx").write_bytes(hidden(external("../secret.bin")).SerializeToString())
    with pytest.raises(FileError, match="outside of its folder"):
        take_in(package / "m.onnx", tmp_path)


@pytest.mark.parametrize("key", ["location", "offset", "length"])
def test_a_place_that_is_told_twice_is_refused(key: str, package: Path, tmp_path: Path) -> None:
    weight = external("w.bin", offset="0", length="36")
    weight.external_data.add(key=key, value="../secret.bin" if key == "location" else "1")
    with pytest.raises(FileError, match="twice or not at all where the values of w lie"):
        take_in(written(package, weight), tmp_path)
    nowhere = external("w.bin")
    del nowhere.external_data[:]
    with pytest.raises(FileError, match="twice or not at all"):
        take_in(written(package, nowhere), tmp_path)


def test_the_model_itself_is_a_real_file(package: Path, tmp_path: Path) -> None:
    path = written(package, external("w.bin"))
    (tmp_path / "m.onnx").symlink_to(path)
    with pytest.raises(FileError, match="is a link"):
        take_in(tmp_path / "m.onnx", tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("pipe.onnx", "package"):
        with pytest.raises(FileError, match="no regular file"):
            take_in(tmp_path / name, tmp_path)


@pytest.mark.parametrize("swapped", ["w.bin", "m.onnx"])
def test_what_was_checked_is_what_is_used_while_files_are_swapped(swapped: str, package: Path, tmp_path: Path) -> None:
    """A thread swaps a file with links to a secret, 1,000 times, while the model is read again and again."""
    written(package, external("w.bin"))
    secret = tmp_path / "secret.bin"
    if swapped == "m.onnx":
        hidden = model_of([node("Relu", ["x"], ["y"])], [constant("secret", SECRET, np.float32)])
        secret.write_bytes(hidden.SerializeToString())
    ours, place, swaps = (package / swapped).read_bytes(), package / swapped, 1_000
    done = threading.Event()

    def swap() -> None:
        spare = package / "spare"
        for number in range(swaps):
            (spare.write_bytes(ours), spare) if number % 2 else (spare.symlink_to(secret), spare)
            spare.replace(place)
            if number % 50 == 0:
                time.sleep(0.001)
        done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes, number = {"taken": 0, "refused": 0}, 0
    while not done.is_set():
        copies = tmp_path / f"copies{(number := number + 1)}"
        copies.mkdir()
        try:
            take_in(package / "m.onnx", copies)
        except FileError:
            outcomes["refused"] += 1
        else:
            outcomes["taken"] += 1
            assert (copies / "w.bin").read_bytes() == OURS.tobytes()
        assert not any(SECRET.tobytes() in each.read_bytes() for each in copies.iterdir())
    thread.join()
    assert outcomes["taken"] and outcomes["refused"], outcomes


# Bombs.

SETS = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]


def summed(name: str, *nodes: Any) -> list[Any]:
    """Nodes that make the tensor `name`, which is then added up so that it has to be computed."""
    return [*nodes, node("ReduceSum", [name], ["s"], keepdims=0), node("Add", ["x", "s"], ["y"])]


def from_factors(count: int) -> Any:
    """A size of 2 ** count that shape inference does not follow."""
    return constant("b", [2] * count, np.int64)


def from_values(factor: float) -> tuple[list[Any], list[Any]]:
    """A size that depends on the image."""
    nodes = [
        node("Abs", ["x"], ["a"]),
        node("ReduceSum", ["a"], ["r"], keepdims=0),
        node("Mul", ["r", "m"], ["p"]),
        node("Cast", ["p"], ["i"], to=TensorProto.INT64),
        node("Reshape", ["i", "one"], ["n"]),
    ]
    return nodes, [constant("m", factor, np.float32), constant("one", [1], np.int64)]


def looping(state: str, step: Any, turns: int) -> list[Any]:
    inputs = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("t", [1, None])]
    outputs = [value("co", [], TensorProto.BOOL), value("to", [1, None])]
    body = helper.make_graph([node("Identity", ["c"], ["co"]), step], "b", inputs, outputs)
    return [node("Loop", ["n", "true", state], ["z"], body=body), *summed("z")]


def _functions(depth: int, calls: int) -> Any:
    made = [helper.make_function("d", "f0", ["a"], ["b"], [node("Relu", ["a"], ["b"])], SETS)]
    for number in range(1, depth):
        names = ["a", *(f"m{k}" for k in range(1, calls)), "b"]
        inside = [node(f"f{number - 1}", [names[k]], [names[k + 1]], domain="d") for k in range(calls)]
        made.append(helper.make_function("d", f"f{number}", ["a"], ["b"], inside, SETS))
    return model_of([node(f"f{depth - 1}", ["x"], ["y"], domain="d")], functions=made)


def _calling_itself() -> Any:
    function = helper.make_function("d", "f", ["a"], ["b"], [node("f", ["a"], ["b"], domain="d")], SETS)
    return model_of([node("f", ["x"], ["y"], domain="d")], functions=[function])


def _chain(count: int) -> Any:
    nodes = [node("Relu", [f"a{k}" if k else "x"], [f"a{k + 1}"]) for k in range(count)]
    return model_of([*nodes, node("Relu", [f"a{count}"], ["y"])])


def _branches(depth: int) -> Any:
    graph = helper.make_graph([node("Relu", ["x"], ["y"])], "g", [], [value("y")])
    for _ in range(depth):
        both = node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([both], "g", [], [value("y")])
    return model_of(list(graph.node), [constant("c", True, bool)])


def _size(operator: str, *inputs: str, **attributes: Any) -> list[Any]:
    return summed(
        "big", node("ReduceProd", ["b"], ["n"], keepdims=1), node(operator, [*inputs, "n"], ["big"], **attributes)
    )


QUICK = {
    "functions that call each other": lambda: _functions(30, 2),
    "a function that calls itself": _calling_itself,
    "functions in functions": lambda: _functions(2000, 1),
    "a shape from factors": lambda: model_of(_size("ConstantOfShape"), [from_factors(38)]),
    "eight gigabytes from factors": lambda: model_of(_size("ConstantOfShape"), [from_factors(31)]),
    "a shape from the image": lambda: model_of(
        summed("big", *from_values(3e8)[0], node("ConstantOfShape", ["n"], ["big"])), from_values(3e8)[1]
    ),
    "doubled in a loop": lambda: model_of(
        looping("x", node("Concat", ["t", "t"], ["to"], axis=1), 60),
        [constant("n", 60, np.int64), constant("true", True, bool)],
    ),
    "a known shape": lambda: model_of(
        summed("big", node("Tile", ["x", "n"], ["big"])), [constant("n", [2**20, 2**18], np.int64)]
    ),
    "random numbers": lambda: model_of(summed("big", node("RandomNormal", [], ["big"], shape=[1000, 1000, 1000]))),
    "padding": lambda: model_of(
        summed("big", node("Pad", ["x", "n"], ["big"])), [constant("n", [0, 0, 0, 2**40], np.int64)]
    ),
}
SLOW = {
    "many operators": lambda: _chain(200_000),
    "a loop without end": lambda: model_of(
        looping("x", node("Relu", ["t"], ["to"]), 2**62),
        [constant("n", 2**62, np.int64), constant("true", True, bool)],
    ),
    "a loop without end over constants": lambda: model_of(
        looping("k", node("Relu", ["t"], ["to"]), 2**62),
        [constant("n", 2**62, np.int64), constant("true", True, bool), constant("k", [[1, 2, 3]], np.float32)],
    ),
    "branches in branches": lambda: _branches(14),
    "a million weights": lambda: model_of(
        [node("Relu", ["x"], ["y"])],
        [TensorProto(name=f"w{k}", data_type=1, dims=[1], raw_data=b"abcd") for k in range(1_000_000)],
    ),
    "a range of whole numbers": lambda: model_of(
        summed("big", node("Range", ["zero", "m", "one"], ["r"]), node("Cast", ["r"], ["big"], to=TensorProto.FLOAT)),
        [constant(name, held, np.int64) for name, held in (("zero", 0), ("m", 2**40), ("one", 1))],
    ),
}
BOMBS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def spent() -> tuple[float, int]:
    """Processor seconds of the child processes that have ended, and the most memory that one had."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_in_little_time_and_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes({**QUICK, **SLOW}[name]().SerializeToString())
    began = time.monotonic()
    with pytest.raises(FileError, match="made to (run without end|fill the memory)") as caught:
        OnnxModel(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def test_the_bombs_together_took_little() -> None:
    limits.stop()  # its children count when it has ended
    seconds, memory = spent()
    assert seconds < 10 * len(BOMBS) and memory < 2 << 30


def test_a_crash_is_one_line_and_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    """The control of the process that looks at files."""
    with pytest.raises(FileError, match=r"crash \(SIGABRT\)"):
        apart(tmp_path, "os:abort")
    with pytest.raises(FileError, match="fill the memory"):
        apart(tmp_path, "builtins:bytearray", 1 << 34)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        apart(tmp_path, "operator:truediv", 1, 0)
    assert apart(tmp_path, "operator:add", 1, 2) == 3


def test_a_server_that_was_killed_is_started_again_and_forked_processes_share_it(tmp_path: Path) -> None:
    assert apart(tmp_path, "os:getppid") != apart(tmp_path, "os:getppid")  # a process for each
    assert limits._process is not None
    limits._process.kill()
    limits._process.wait()
    assert apart(tmp_path, "operator:add", 1, 2) == 3
    server = limits._process.pid
    child = os.fork()
    if child == 0:
        os._exit(apart(tmp_path, "operator:add", 1, 2) != 3)
    assert os.waitpid(child, 0)[1] == 0 and limits._process.pid == server and limits._process.poll() is None


def test_a_file_is_named_by_its_place_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(folder)
        assert apart(tmp_path, "os:getcwd") == str(folder)


def test_what_a_library_prints_is_no_answer(tmp_path: Path) -> None:
    assert apart(tmp_path, "builtins:print", "a line") is None


def test_names_with_control_characters_are_shown_as_text(tmp_path: Path) -> None:
    nodes = [node("Run\x1b[2J\nmore", ["x"], ["y"], name="\x1b]0;title\x07", domain="d")]
    (tmp_path / "m.onnx").write_bytes(model_of(nodes).SerializeToString())
    with pytest.raises(FileError) as caught:
        profile_onnx(tmp_path / "m.onnx")
    assert str(caught.value).isprintable()
    product = node("MatMul", ["x", "w\x1b[31m"], ["y"], name="\x1b[2J\nname")
    (tmp_path / "m.onnx").write_bytes(
        model_of([product], [constant("w\x1b[31m", OURS, np.float32)]).SerializeToString()
    )
    [layer] = profile_onnx(tmp_path / "m.onnx").layers
    assert layer.macs == 9 and layer.name.isprintable()


def test_damaged_files_are_never_a_crash(tmp_path: Path) -> None:
    """Bytes changed at random: taken in or refused in one line."""
    draw = random.Random(0)
    content = bytearray(_functions(4, 2).SerializeToString())
    for number in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "m.onnx").write_bytes(damaged)
        (folder / "copies").mkdir()
        try:
            take_in(folder / "m.onnx", folder / "copies")
        except FileError as error:
            assert str(error).isprintable()
