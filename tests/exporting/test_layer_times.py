"""The price in milliseconds, with a clock and times of our own: what is timed, kept, added up, and cut."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressor.errors import FileError
from compressor.exporting import layer_times as times
from compressor.exporting import onnx_layers
from compressor.exporting.layer_times import Timed, cache_file, here, layer_times, price, timed, write_kit
from compressor.exporting.onnx import export_onnx
from compressor.exporting.onnx_layers import placed, samples, single, without
from compressor.exporting.onnx_profile import with_one_image
from compressor.exporting.runtime import open_session
from compressor.exporting.runtimes import ENGINES
from compressor.graph import capture
from compressor.profiling.timetable import Layer, Timetable
from compressor.report.progress import listening
from compressor.surgery import operate_
from tests.equivalence import half_plan, outputs, randomise_
from tests.networks import NETWORKS


class Net(nn.Module):
    """Dense, depthwise, grouped and transposed convolutions, a sum, a concatenation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(32, 8, 2, 2)
        self.side = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(40, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.point(torch.relu(self.depthwise(x)))
        y = torch.relu(self.grouped(x))
        z = self.up(y).mean((2, 3))
        return self.head(torch.cat([y.mean((2, 3)), z + self.side(x).mean((2, 3))], 1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = randomise_(Net()).float().eval()
    example = torch.randn(1, 3, 8, 8)
    file = tmp_path_factory.mktemp("net") / "net.onnx"
    export_onnx(model, example, file)
    channels = capture(model, example)
    return model, example, file, channels, with_one_image(onnx.load(file))


def cost(layer, widths, _machine=None):
    """A time that knows everything of a layer, linear in either width."""
    taken, made = widths
    kernel = np.prod(dict(layer.settings).get("kernel_shape", (1,)))
    groups = taken if layer.groups == 0 else layer.groups
    return 1e-6 * taken * made / groups * kernel * np.prod(layer.size)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_layer_with_weights_is_found_with_its_channels(exported):
    *_, channels, proto = exported
    found = placed(proto, channels, 4)
    shapes = {(each.layer.operator, each.dense, each.layer.groups) for each in found}
    assert shapes == {
        ("Conv", (3, 16), 1), ("Conv", (16, 16), 0), ("Conv", (16, 16), 1), ("Conv", (16, 32), 2),
        ("ConvTranspose", (32, 8), 1), ("Conv", (16, 8), 1), ("Gemm", (40, 5), 1),
    }  # fmt: skip
    assert all(each.ins == (3,) for each in found if each.dense == (3, 16))  # the input's channels stay
    assert next(each for each in found if each.dense == (16, 16) and each.layer.groups).outs == (4, 8, 12, 16)


def test_the_price_is_the_sum_of_its_layers_at_every_width(exported):
    *_, channels, proto = exported
    layers = placed(proto, channels, 4)
    table = Timetable(here(1))
    for layer, widths in samples(layers):
        table.add(layer, widths, cost(layer, widths))
    alone = sum(cost(each.layer, each.dense) for each in layers)
    removed = half_plan(channels).removed
    gone = np.fromiter(removed, int)

    def width(side):
        return side if isinstance(side, int) else int((~np.isin(side, gone)).sum())

    after = sum(cost(each.layer, (width(each.taken), width(each.made))) for each in layers)
    found = price(proto, layers, channels, table, Timed(3 * alone, 0.0))  # in the graph all take three times as long
    assert found.whole() == pytest.approx(3 * alone) and found.without(removed) == pytest.approx(3 * after)


def test_what_is_no_layer_costs_in_proportion_to_what_it_makes(exported):
    *_, channels, proto = exported
    layers = placed(proto, channels, 4)
    table = Timetable(here(1))
    for layer, widths in samples(layers):
        table.add(layer, widths, 1.0)
    found = price(proto, layers, channels, table, Timed(0.0, 5.0))
    assert found.whole() == pytest.approx(5.0) and found.fixed == 0.0
    every = [identity for group in channels.free for identity in group.ids.tolist()]
    assert 0 <= found.without(every) < 0.2


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (at % 3 > 0)) for at, name in enumerate(sorted(NETWORKS)[::4])],
)
def test_a_graph_with_its_weights_cut_is_that_of_the_pruned_network(name: str, tmp_path: Path) -> None:
    model = randomise_(NETWORKS[name]()).float().eval()
    example = model.example()
    if not isinstance(example, torch.Tensor) or example.ndim != 4:
        pytest.skip("one tensor of images")
    channels = capture(model, example)
    try:
        export_onnx(model, example, tmp_path / "a.onnx")
    except Exception as error:
        pytest.skip(f"not exported: {error}")
    plan = half_plan(channels)
    onnx.save(without(with_one_image(onnx.load(tmp_path / "a.onnx")), channels, plan.removed), tmp_path / "b.onnx")
    operate_(model, plan, channels)
    try:
        found = open_session(tmp_path / "b.onnx").run(None, {"input": example[:1].numpy()})
    except Exception:
        return  # it counts channels as numbers: the caller exports it anew
    for got, wanted in zip(found, outputs(model, example[:1]), strict=True):
        assert got.shape == wanted.shape
        if "norm" not in name.lower():
            torch.testing.assert_close(torch.from_numpy(got), wanted.float(), rtol=1e-3, atol=1e-3)


def test_a_graph_of_one_layer_runs_at_any_widths(exported):
    *_, channels, proto = exported
    for layer, widths in samples(placed(proto, channels, 4)):
        model, shape = single(layer, widths)
        assert len(model) < 1000 and shape[1 if layer.operator != "Gemm" else -1] == widths[0]
        ms = ENGINES["onnxruntime"].layer_ms(model, shape, 1) if widths[0] == widths[1] else 1.0
        assert ms > 0


def test_a_grouped_convolution_is_timed_at_widths_that_it_may_have(tmp_path):
    model, example = nn.Sequential(nn.Conv2d(3, 30, 1), nn.Conv2d(30, 60, 3, groups=10)).eval(), torch.zeros(1, 3, 8, 8)
    export_onnx(model, example, tmp_path / "net.onnx")
    found = placed(with_one_image(onnx.load(tmp_path / "net.onnx")), capture(model, example), 4)
    for layer, widths in samples(found):
        assert all(width % layer.groups == 0 for width in widths)
        assert ENGINES["onnxruntime"].layer_ms(*single(layer, widths), 1) > 0
    (grouped,) = (each for each in found if each.layer.groups == 10)
    assert grouped.ins == (10, 20, 30)


def test_a_layer_is_timed_once_and_then_known(exported, tmp_path):
    _, _, file, channels, _ = exported
    asked = []

    def timer(layer, widths, machine):
        asked.append((layer, widths))
        return cost(layer, widths)

    first = layer_times(file, channels, threads=1, time_layer=timer)
    assert first.complete and first.measured == len(set(asked)) == len(asked) / 2  # two passes
    asked.clear()
    second = layer_times(file, channels, threads=1, time_layer=timer)
    assert not asked and second.measured == 0 and second.table.samples == first.table.samples
    layer_times(file, channels, threads=2, time_layer=timer)
    assert asked and cache_file(here(1)) != cache_file(here(2))
    assert len(list((tmp_path / "cache" / "compressor" / "times").iterdir())) == 2


def test_of_two_passes_the_least_counts(exported):
    *_, channels, proto = exported
    layers = placed(proto, channels, 4)
    jobs = samples(layers)
    numbers = iter(range(len(jobs), -len(jobs), -1))
    table = Timetable(here(1))
    assert timed(layers, table, lambda *_: float(next(numbers)), lambda: 0.0)
    assert [table.samples[layer][widths] for layer, widths in jobs] == [float(-n) for n in range(len(jobs))]


def test_after_a_minute_every_layer_has_a_time_and_the_rest_waits(exported):
    *_, channels, proto = exported
    layers = placed(proto, channels, 4)
    jobs, table, clock = samples(layers), Timetable(here(1)), [0.0]

    def timer(layer, widths, machine):
        clock[0] += 25.0
        return cost(layer, widths)

    told: list[tuple[int, int]] = []
    with listening(lambda what, done, total: told.append((done, total))):
        assert not timed(layers, table, timer, lambda: clock[0])
    assert all(each.dense in table.samples[each.layer] for each in layers)
    assert sum(map(len, table.samples.values())) < len(jobs)
    assert price(proto, layers, channels, table, Timed(1.0, 0.0)).whole() == pytest.approx(1.0)
    assert timed(layers, table, lambda *each: cost(*each), lambda: 0.0)
    assert told[0][1] == 2 * len(jobs)


def test_a_table_of_another_network_is_refused(exported):
    _, _, file, channels, _ = exported
    other = Timetable(here(1), whole={"Conv": 1.0})
    other.add(Layer("Conv", (3, 3)), (1, 1), 1.0)
    with pytest.raises(FileError, match=r"of another network: it lacks \d+ layers.*tune --kit"):
        layer_times(file, channels, threads=1, given=other)


def test_a_kit_says_all_that_the_other_machine_has_to_time(exported, tmp_path, monkeypatch):
    """`measure.py` runs in this process here: it needs nothing of this project."""
    _, _, file, channels, _ = exported
    count = write_kit(file, channels, tmp_path)
    source = (tmp_path / "measure.py").read_text()
    assert "compressor" not in [
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))
    ]
    script: dict = {"__name__": "measure", "__file__": str(tmp_path / "measure.py")}
    exec(compile(source, "measure.py", "exec"), script)
    script["layer_ms"] = lambda model, shape, threads: float(np.prod(shape))
    monkeypatch.setattr("sys.argv", ["measure.py", "1"])
    script["main"]()
    table = Timetable.read(tmp_path / "table.json")
    assert sum(map(len, table.samples.values())) == count and table.whole
    found = layer_times(file, channels, threads=1, given=table)
    assert found.measured == 0 and found.price(channels).whole() == pytest.approx(sum(table.whole.values()))


@pytest.mark.parametrize(
    ("operator", "attributes", "dim"),
    [
        ("Conv", {}, 0),
        ("ConvTranspose", {}, 1),
        ("Gemm", {"transB": 1}, 0),
        ("Gemm", {"transB": 0}, 1),
        ("Gemm", {}, 1),
    ],
)
def test_a_layers_output_channels_stand_where_the_operator_says(operator, attributes, dim):
    node = onnx.helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    assert onnx_layers._makes(node) == ("w", dim)


def test_the_operators_of_openvino_have_the_names_of_onnx(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32 * 14 * 14, 10)
    )
    export_onnx(net, torch.zeros(1, 3, 16, 16), tmp_path / "net.onnx")
    engine, feeds = ENGINES["openvino"], {"input": np.zeros((1, 3, 16, 16), np.float32)}
    found = engine.operators(str(tmp_path / "net.onnx"), feeds, 1, 0.02)
    assert {"Conv", "Gemm"} <= set(found) and all(ms > 0 for ms in found.values())
    whole = times.sorted_times(found)
    assert whole.layers == pytest.approx(found["Conv"] + found["Gemm"])
    engine.calling(tmp_path / "net.onnx", (1, 3, 16, 16), 1)()
    assert times.here(1, "openvino").runtime.startswith("openvino 20")
