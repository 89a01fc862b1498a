"""Random damage to good files, and random pickles: the loader opens them or says in one line why not."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_of
from torch import nn

from compressor.errors import CompressorError
from compressor.loading.pickles import is_tensor, read_pickle, tensor_of
from compressor.runs.models import open_model
from tests.faults import assembler as asm
from tests.loading.checkpoints import change

QUICK, LONG = 120, 5000  # files; the second in the slow suite
_OWN = Path(__file__).parents[2] / "sample_models" / "digits_cnn.safetensors"
_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def fuzz(count: int) -> Any:
    """So many examples, and no limit on the time of one: the machine may be busy."""
    return settings(max_examples=count, suppress_health_check=_CHECKS)


def _saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


_WEIGHTS = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()
SEEDS = (
    _saved(_WEIGHTS),
    _saved({"state_dict": _WEIGHTS, "epoch": 3, "args": {"lr": 0.1}}),
    _saved(_WEIGHTS, _use_new_zipfile_serialization=False),
    _saved(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())),
    safetensors_of(_WEIGHTS),
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A good file after some cuts, flips and copies."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(start + draw(st.integers(1, 40)), len(content))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"])):
            case "flip":
                content[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
            case "cut":
                del content[start:end]
            case "insert":
                content[start:start] = draw(st.binary(max_size=20))
            case "repeat":
                content[start:start] = content[start:end]
            case "end":
                del content[start:]
    return bytes(content)


_VALUES = st.one_of(
    st.integers(-(2**70), 2**70).map(asm.number),
    st.text(max_size=5).map(asm.text),
    st.sampled_from([asm.NONE, asm.TRUE, asm.FALSE, asm.EMPTY]),
    st.sampled_from(
        [
            asm.name("collections", "OrderedDict"),
            asm.name("torch", "FloatStorage"),
            asm.name("torch", "Size"),
            asm.name("torch", "float32"),
            asm.name("torch._utils", "_rebuild_tensor_v2"),
            asm.name("torch._utils", "_rebuild_parameter"),
            asm.name("torch._tensor", "_rebuild_from_type_v2"),
            asm.name("torch.nn.modules.linear", "Linear"),
            asm.name("torch.nn.parameter", "Parameter"),
            asm.name("builtins", "bytearray"),
            asm.name("argparse", "Namespace"),
        ]
    ),
    st.builds(asm.storage, st.sampled_from("01"), st.sampled_from([0, 3, 4, 5, 2**62])),
    st.builds(
        asm.tensor,
        st.builds(asm.storage, st.sampled_from("01"), st.sampled_from([0, 3, 4, 5, 2**62])),
        st.tuples(st.sampled_from([-1, 0, 1, 4, 2**62])),
        st.tuples(st.sampled_from([-1, 0, 1, 4, 2**62])),
        st.sampled_from([0, 1, -1, 2**62]),
    ),
)


def _larger(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    some = st.lists(inner, max_size=3)
    return st.one_of(
        some.map(lambda items: asm.tup(*items)),
        some.map(lambda items: asm.lst(*items)),
        some.map(lambda items: asm.dic(*(part for item in items for part in (asm.text("w"), item)))),
        st.builds(lambda f, items: asm.call(f, *items), inner, some),
        st.builds(lambda f, items: asm.new(f, *items), inner, some),
        st.builds(asm.build, inner, inner),
    )


pickled_bodies = st.recursive(_VALUES, _larger, max_leaves=12)

_PLACES = (
    "arch",
    "structure",
    "steps",
    "input_shape",
    "classes",
    "preparation",
    "state",
    "history",
    "measurements",
    "version",
)
plain_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**66), 2**66),
        st.floats(allow_nan=False, allow_infinity=False),  # which JSON does not have
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["structure", "shapes", "attributes", "0.weight", "0", "stride", "kind", "name", "arguments"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["$tuple", "$set", "$dict", "$float", "$tensor"]), inner, max_size=1),
        st.dictionaries(st.sampled_from(["0", "0.weight", "shapes", "attributes", "stride", "name", "kind"]), inner),
    ),
    max_leaves=8,
)


def opens_or_says_why(path: Path) -> None:
    """The property: a model, or one line for the user; anything else is a bug."""
    try:
        open_model(path)
    except CompressorError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2000


def check_damaged(folder: Path, content: bytes) -> None:
    (folder / "m.pt").write_bytes(content)
    opens_or_says_why(folder / "m.pt")


def check_pickle(folder: Path, body: bytes) -> None:
    asm.zip_of(folder / "m.pt", asm.program(body), {"data/0": bytes(16)})
    opens_or_says_why(folder / "m.pt")
    try:
        found = read_pickle(folder / "m.pt")
        for each in found.values() if isinstance(found, dict) else [found]:
            if is_tensor(each):
                assert tensor_of(each).numel() < 1 << 25
    except CompressorError as error:
        assert str(error).isprintable()


def check_checkpoint(folder: Path, place: str, value: Any, inside: bool) -> None:
    def edit(header: dict[str, Any], _: dict[str, Any]) -> None:
        before = header.get(place)
        merged = inside and isinstance(before, dict) and isinstance(value, dict)
        header[place] = {**before, **value} if merged else value

    opens_or_says_why(change(_OWN, edit, folder / "m.safetensors"))


@fuzz(QUICK)
@given(content=damaged_files())
def test_damaged_file_opens_or_is_refused_in_one_line(tmp_path, content):
    check_damaged(tmp_path, content)


@fuzz(QUICK)
@given(body=pickled_bodies)
def test_any_pickle_is_read_or_refused_in_one_line(tmp_path, body):
    check_pickle(tmp_path, body)


@fuzz(QUICK)
@given(place=st.sampled_from(_PLACES), value=plain_values, inside=st.booleans())
def test_any_checkpoint_opens_or_is_refused_in_one_line(tmp_path, place, value, inside):
    check_checkpoint(tmp_path, place, value, inside)


@pytest.mark.slow
@fuzz(LONG)
@given(content=damaged_files(), body=pickled_bodies)
def test_many_damaged_files_and_pickles(tmp_path, content, body):
    check_damaged(tmp_path, content)
    check_pickle(tmp_path, body)


@pytest.mark.slow
@fuzz(LONG)
@given(place=st.sampled_from(_PLACES), value=plain_values, inside=st.booleans())
def test_many_checkpoints(tmp_path, place, value, inside):
    check_checkpoint(tmp_path, place, value, inside)
