"""A user's file of code is run as it would be where it lies: in its package, beside its neighbours, by any name."""

import sys
import textwrap
from pathlib import Path

import pytest
from torch import nn

import compressor
from compressor.errors import CompressorError, FileError, UsageError
from compressor.loading.arch import SAMPLE_FOLDER, SAMPLES, find, parse_arch
from compressor.loading.opening import open_model

MODEL = "{imports}\ndef build(num_classes=5): return made(num_classes)\n"
BLOCKS = "from torch import nn\ndef made(classes=5): return nn.Linear(3, classes)\n"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder as the current one; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(here: Path, **files: str) -> None:
    """Files by their paths, with __ for a slash and no ending."""
    for name, text in files.items():
        path = here / f"{name.replace('__', '/').replace('_init', '__init__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def model(imports: str) -> str:
    return MODEL.format(imports=imports)


def built(arch: str) -> nn.Module:
    return find(parse_arch(arch), named=True).build()


INNER = model("from .blocks import made")

LAYOUTS = {
    "package": ({"pkg___init": "", "pkg__model": INNER, "pkg__blocks": BLOCKS}, "pkg/model.py"),
    "package without __init__": ({"pkg__model": INNER, "pkg__blocks": BLOCKS}, "pkg/model.py"),
    "absolute import of its own package": (
        {"pkg___init": "", "pkg__model": model("from pkg.blocks import made"), "pkg__blocks": BLOCKS}, "pkg/model.py"
    ),
    "absolute import without __init__": (
        {"pkg__model": model("from pkg.blocks import made"), "pkg__blocks": BLOCKS}, "pkg/model.py"
    ),
    "sibling": ({"pkg__model": model("from blocks import made"), "pkg__blocks": BLOCKS}, "pkg/model.py"),
    "sibling in a package": (
        {"pkg___init": "", "pkg__model": model("from blocks import made"), "pkg__blocks": BLOCKS}, "pkg/model.py"
    ),
    "nested packages": (
        {
            "a___init": "", "a__b___init": "", "a__b__model": model("from ..c.blocks import made"),
            "a__c___init": "", "a__c__blocks": "from ..d import made", "a__d": BLOCKS,
        },
        "a/b/model.py",
    ),
    "nested without __init__": (
        {"a__b__model": model("from .inner import made"), "a__b__inner": "from ..c import made", "a__c": BLOCKS},
        "a/b/model.py",
    ),
    "parent": ({"a___init": BLOCKS, "a__b___init": "", "a__b__model": model("from .. import made")}, "a/b/model.py"),
    "src layout": (
        {"src__pkg___init": "", "src__pkg__model": model("from pkg.blocks import made"), "src__pkg__blocks": BLOCKS},
        "src/pkg/model.py",
    ),
    "package that imports the model": (
        {"pkg___init": "from .model import build", "pkg__model": INNER, "pkg__blocks": BLOCKS},
        "pkg/model.py",
    ),
    "package whose file is the model": (
        {"pkg___init": INNER, "pkg__blocks": BLOCKS}, "pkg/__init__.py"
    ),
    "import in a circle": (
        {
            "pkg___init": "", "pkg__model": INNER + "class Own: pass\n",
            "pkg__blocks": BLOCKS.replace(": return", ":\n    from .model import Own\n    return"),
        },
        "pkg/model.py",
    ),
    "import when it is called": (
        {"pkg___init": "", "pkg__model": "def build(num_classes=5):\n    from .blocks import made\n    return made()\n",
         "pkg__blocks": BLOCKS}, "pkg/model.py",
    ),
    "sibling imported when it is called": (
        {"nets__model": "def build():\n    import blocks\n    return blocks.made()\n", "nets__blocks": BLOCKS},
        "nets/model.py",
    ),
    "named like a module of Python": (
        {"types": model("from random_ import made"), "random_": BLOCKS}, "types.py"
    ),
    "package named like a module of Python": (
        {"code___init": "", "code__queue": model("from .random import made"), "code__random": BLOCKS}, "code/queue.py"
    ),
    "package named like an installed one": (
        {"timm__model": INNER, "timm__blocks": BLOCKS}, "timm/model.py"
    ),
    "folder whose name is not a word": (
        {"my-nets__model": INNER, "my-nets__blocks": BLOCKS}, "my-nets/model.py"
    ),
    "from the current folder": (
        {"nets__deep__model": model("from blocks import made"), "blocks": BLOCKS}, "nets/deep/model.py"
    ),
    "dataclass with annotations": (
        {"pkg___init": "", "pkg__model": """
            from __future__ import annotations
            from dataclasses import dataclass
            from .blocks import made
            @dataclass
            class Sizes:
                classes: int = 5
            def build(num_classes=5): return made(Sizes(num_classes).classes)
            """, "pkg__blocks": BLOCKS}, "pkg/model.py",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "arch"), LAYOUTS.values(), ids=LAYOUTS)
def test_files_are_found_as_where_they_lie(here, files, arch):
    import code
    import queue
    import random
    import types

    write(here, **files)
    assert built(f"{arch}:build").out_features == 5
    assert built(f"{here / arch}:build").out_features == 5
    for module in (code, queue, random, types):
        assert sys.modules[module.__name__] is module


def test_module_is_named_with_dots(here, monkeypatch):
    for name in ("package", "src layout", "nested packages"):
        write(here, **LAYOUTS[name][0])
    for name, file in {
        "pkg.model": "pkg/model.py", "a.b.model": "a/b/model.py", "types_": "types_.py"
    }.items():  # fmt: skip
        write(here, types_=BLOCKS.replace("made", "build"))
        arch = parse_arch(f"{name}:build:num_classes=4")
        assert arch.name == f"{file}:build" and arch.arguments == {"num_classes": 4}
    assert built("pkg.model:build").out_features == 5
    (here / "pkg").rename(here / "away")
    assert parse_arch("pkg.model:build").name == "src/pkg/model.py:build"
    with pytest.raises(UsageError, match="no module pkg2.model here or installed"):
        parse_arch("pkg2.model:build")
    assert built("torchvision.models.squeezenet:squeezenet1_1").num_classes == 1000


def test_checkpoint_of_a_module_opens_from_elsewhere(here, monkeypatch):
    write(here, **LAYOUTS["package"][0])
    (here / "runs").mkdir()
    compressor.save(built("pkg.model:build"), "runs/m.safetensors", arch="pkg.model:build", input_shape=(3,))
    monkeypatch.chdir("/")
    opened = open_model(here / "runs" / "m.safetensors")
    assert opened.module.out_features == 5 and opened.arch.name == f"{here / 'pkg' / 'model.py'}:build"
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "nobody"))
    with pytest.raises(UsageError, match="never named"):
        open_model(here / "runs" / "m.safetensors")


def test_projects_do_not_take_each_others_modules(here):
    for name, classes in (("one", 3), ("two", 4)):
        blocks = BLOCKS.replace("classes)", f"{classes})")
        write(here, **{f"{name}__pkg___init": "", f"{name}__pkg__model": INNER})
        write(here, **{f"{name}__pkg__blocks": blocks, f"{name}__blocks": blocks})
        write(here, **{f"{name}__model": "def build():\n    from blocks import made\n    return made(0)\n"})
        write(here, **{f"{name}__plain": model("from blocks import made")})
    for kind in ("pkg/model", "model", "plain"):
        one, two = (find(parse_arch(f"{name}/{kind}.py:build"), named=True) for name in ("one", "two"))
        assert [each.build().out_features for each in (one, two, one)] == [3, 4, 3]


def test_neighbour_that_changed_is_read_again(here):
    write(here, **LAYOUTS["package"][0])
    assert built("pkg/model.py:build").out_features == 5
    write(here, pkg__blocks=BLOCKS.replace("classes)", "8)  # another"))
    assert built("pkg/model.py:build").out_features == 8


def test_same_file_is_the_same_module(here):
    write(here, pkg___init="from .model import Own", pkg__model="class Own: pass\ndef build(): return Own\n")
    first, second = (find(parse_arch("pkg/model.py:build"), named=True) for _ in range(2))
    own = first.call.__closure__ and sys.modules["pkg.model"].Own
    assert own is sys.modules["pkg"].Own
    assert sys.modules["pkg.model"].build is not None and second.accepts == frozenset()


def test_functions_are_listed_where_none_is_named(here):
    source = "from torch import nn\nclass Net(nn.Module): pass\ndef build(): ...\ndef _own(): ...\nx = 3\n1 / 0\n"
    write(here, resnet56=source, pkg__model=source)
    for text in ("resnet56.py", "resnet56.py:", "resnet56", "pkg/model.py", "pkg.model"):
        with pytest.raises(UsageError, match="which function builds the network.*it defines: Net, build$"):
            parse_arch(text)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("from .missing import x\n", r"No module named 'pkg\.missing' \(line 1\)"),
        ("from .....far import x\n", "cannot be imported"),
        ("from . import missing\n", "cannot import name 'missing'"),
        ("import no_such_neighbour\n", "no_such_neighbour"),
    ],
)
def test_imports_that_fail_are_one_line_and_leave_nothing(here, source, says):
    write(here, pkg___init="", pkg__model=source + "def build(): ...\n")
    for _ in range(2):
        with pytest.raises(FileError, match=says) as caught:
            built("pkg/model.py:build")
        assert "\n" not in str(caught.value)
        assert "pkg.model" not in sys.modules


def test_package_that_fails_is_one_line(here):
    write(here, pkg___init="1 / 0", pkg__model=INNER, pkg__blocks=BLOCKS)
    with pytest.raises(CompressorError, match="ZeroDivisionError"):
        built("pkg/model.py:build")
    assert "pkg" not in sys.modules


def test_sample_models_have_names_and_nothing_else_of_ours_has():
    files = {path.stem for path in SAMPLE_FOLDER.glob("*.py")}
    assert files - {"train_digits"} == set(SAMPLES)
    for name in SAMPLES:
        assert find(parse_arch(f"sample:{name}"), named=False).accepts
    for name in ("train_digits", "../tests/conftest", "/etc/passwd"):
        with pytest.raises(UsageError, match="there is no sample model"):
            find(parse_arch(f"sample:{name}"), named=True)
