"""Packages of compact models: what lies in the folder, what is promised and kept, what a failed proof leaves."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import CompressorError, FileError, ModelError, UsageError
from compressor.exporting import proof as judging
from compressor.exporting.forms import cost_of, form_of
from compressor.exporting.graphs import PackageSettings
from compressor.exporting.onnx_profile import profile_onnx
from compressor.exporting.package import export_package
from compressor.exporting.proof import Evidence
from compressor.exporting.runtime import OnnxModel, onnx_at
from compressor.exporting.tune import tune_package
from compressor.exporting.verify import verify_package
from compressor.report.card import Card, input_facts
from compressor.report.manifest import Manifest, manifest_from, read_manifest
from compressor.vision.preparation import Preparation
from tests.exporting.nets import small_net

SHAPE = (3, 8, 8)
CARD = Card(
    ("ant", "bee", "cow", "dog"), Preparation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), frame=2), ("compressor prune net.pt",)
)
QUICK = PackageSettings(latency=False)


def example() -> Tensor:
    return torch.zeros(1, *SHAPE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("packages") / "deep" / "net"
    images = torch.rand(70, *SHAPE)
    return folder, export_package(
        small_net(), example(), folder, card=CARD, evidence=Evidence(images, score=lambda run: 0.5)
    )


def test_the_folder_holds_eight_files_and_nothing_else_was_left(made: tuple[Path, Manifest]) -> None:
    folder, _ = made
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "engines.py",
        "manifest.json",
        "model.onnx",
        "preparation.py",
        "run.py",
        "sample.npz",
        "watch.py",
        "weights.bin",
    ]
    assert [entry.name for entry in folder.parent.iterdir()] == ["net"]
    assert (folder / "model.onnx").stat().st_size < 10_000


def test_the_manifest_says_what_the_model_is(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    assert manifest == read_manifest(folder) == verify_package(folder)
    (leaving,) = manifest.exits
    cost = cost_of(form_of(small_net(), example()).exits[0].module, example())
    assert (leaving.macs, leaving.params, leaving.convolutions) == (cost.macs, cost.params, 2)
    assert leaving.top1 == 0.5 and leaving.latency_ms["median"] > 0 and leaving.max_rel < 1e-5
    assert manifest.checked_on == "70 real images" and manifest.classes == CARD.classes
    assert manifest.input["shape"] == SHAPE and manifest.card == CARD
    code = {"run.py", "preparation.py", "engines.py", "watch.py"}
    assert set(manifest.files) == {"model.onnx", "weights.bin", "sample.npz", *code}


def test_the_graph_brings_the_manifest_along(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    held = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    inside = manifest_from(json.loads(held["compressor.manifest"]), "inside")
    assert inside == replace(manifest, files={"weights.bin": manifest.files["weights.bin"]})


def test_it_gives_torchs_outputs_wherever_it_lies(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "moved")
    images = torch.randn(7, *SHAPE)
    with torch.no_grad():
        expected = small_net()(images).numpy()
    np.testing.assert_allclose(OnnxModel(tmp_path / "moved" / "model.onnx")(images.numpy()), expected, atol=1e-5)


def test_the_script_needs_numpy_and_onnxruntime_alone(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'onnx', 'PIL', 'compressor'): sys.modules[name] = None\n"
        f"sys.argv = ['run.py', {str(tmp_path / 'image.npy')!r}]; sys.path.insert(0, {str(made[0])!r})\n"
        f"runpy.run_path({str(made[0] / 'run.py')!r}, run_name='__main__')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    x = (
        torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor(CARD.preparation.mean).view(3, 1, 1)
    ) / torch.tensor(CARD.preparation.std).view(3, 1, 1)
    with torch.no_grad():
        shares = small_net()(x[None]).softmax(1)[0]
    likeliest = ran.stdout.splitlines()[0].split()
    assert likeliest == [f"{shares.max():.1%}", CARD.classes[int(shares.argmax())]]


def test_a_second_package_needs_leave_and_keeps_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    export_package(small_net(), example(), folder, settings=replace(QUICK, separate=True))
    assert (folder / "exit_0.onnx").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="`overwrite`"):
        export_package(small_net(), example(), folder, settings=QUICK)
    export_package(small_net(6), example(), folder, settings=replace(QUICK, overwrite=True))
    assert OnnxModel(folder / "model.onnx")(np.zeros((1, *SHAPE))).shape == (1, 6)
    assert not (folder / "exit_0.onnx").exists() and (folder / "notes.txt").read_text() == "mine"
    verify_package(folder)


def test_a_folder_that_is_no_package_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UsageError, match=str(place)):
            export_package(small_net(), example(), place, settings=replace(QUICK, overwrite=True))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.randn_like(x[:, :, 0, 0])


def test_a_failed_proof_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompressorError, match="differs from torch"):
        export_package(Noisy(), example(), tmp_path / "net", settings=QUICK)
    truth = judging.cost_of
    monkeypatch.setattr(judging, "cost_of", lambda *a: replace(truth(*a), convolutions=1))
    with pytest.raises(CompressorError, match="executes 2 convolutions and not the 1"):
        export_package(small_net(), example(), tmp_path / "net", settings=QUICK)
    assert not list(tmp_path.iterdir())


class Several(nn.Module):
    """Images, a vector, and whole numbers that choose; two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.table = small_net(), nn.Embedding(4, 4)

    def forward(self, image: Tensor, scale: Tensor, token: Tensor) -> dict[str, Any]:
        scores = self.net(image) * scale + self.table(token)
        return {"scores": scores, "more": [scores.sum(1), None]}


def several(count: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    drawn = torch.randn(count, *SHAPE, generator=source), torch.randn(count, 4, generator=source)
    return {"scale": drawn[1], "token": torch.arange(count) % 4, "image": drawn[0]}


@pytest.mark.parametrize("int8", [False, True])
def test_a_network_of_several_inputs_is_packaged_under_their_names(int8: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, given = Several().eval(), several(64)
    scored = list[float]()

    def score(predict: Any) -> float:
        by_place = predict(*(given[name].numpy() for name in ("image", "scale", "token")))
        by_keyword = predict(**{name: each.numpy() for name, each in given.items()})
        assert (by_place.scores == by_keyword["scores"]).all() and by_place["more"][1] is None
        assert np.allclose(by_place[0].sum(1), by_place.more[0], atol=0.2 if int8 else 1e-4)
        scored.append(float(np.abs(by_place["scores"] - net(**given)["scores"].detach().numpy()).max()))
        return scored[-1]

    settings = replace(QUICK, int8="x86" if int8 else None)
    evidence = Evidence(given, given if int8 else None, score)
    manifest = export_package(net, several(1), tmp_path / "net", evidence=evidence, settings=settings)
    assert scored[-1] < (0.2 if int8 else 1e-5) and manifest.checked_on == "64 real examples"
    assert list(manifest.takes) == ["image", "scale", "token"] and manifest.takes["token"] == ((), "int64")
    assert manifest.gives == {"scores": 0, "more": [1, None]}
    assert verify_package(tmp_path / "net").takes == manifest.takes
    assert tune_package(tmp_path / "net", latency=False).tuned is not None
    assert profile_onnx(tmp_path / "net" / "model.onnx").macs == manifest.exits[0].macs or int8
    opened = OnnxModel(tmp_path / "net" / "model.onnx", several=True)
    one = {name: each[:3].numpy() for name, each in given.items()}
    assert np.allclose(opened(one)["scores"], net(**given)["scores"][:3].detach(), atol=0.2 if int8 else 1e-5)
    np.savez(tmp_path / "one.npz", **{name: each[0].numpy() for name, each in given.items()})
    ran = subprocess.run(
        [sys.executable, tmp_path / "net" / "run.py", tmp_path / "one.npz"], capture_output=True, text=True
    )
    assert len(ran.stdout.splitlines()) == 4 and not ran.stderr
    np.savez(tmp_path / "none.npz", image=one["image"][0])
    for name, said in [("none.npz", "has no scale of shape"), ("one.npy", "give a .npz file of them")]:
        ran = subprocess.run(
            [sys.executable, tmp_path / "net" / "run.py", tmp_path / name], capture_output=True, text=True
        )
        assert said in ran.stderr and "Traceback" not in ran.stderr


def test_what_a_package_of_several_inputs_does_not_take_is_refused(tmp_path: Path) -> None:
    class Lists(nn.Module):
        def forward(self, x: Tensor, others: list[Tensor]) -> Tensor:
            return x + others[0]

    with pytest.raises(ModelError, match="tensors with the batch first, and others is a list"):
        export_package(Lists(), (example(), [example()]), tmp_path / "net", settings=QUICK)
    with pytest.raises(ModelError, match="for OpenVINO take one tensor of images: export this model with `to` onnx"):
        export_package(Several(), several(1), tmp_path / "net", settings=replace(QUICK, runtime="openvino"))


def _cut(folder: Path) -> None:
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:-1])


def _flip(folder: Path) -> None:
    data = bytearray((folder / "weights.bin").read_bytes())
    data[5] ^= 1
    (folder / "weights.bin").write_bytes(data)


def _link(folder: Path) -> None:
    (folder / "weights.bin").rename(folder.parent / "weights.bin")
    (folder / "weights.bin").symlink_to(folder.parent / "weights.bin")


def _rewrite(folder: Path, **changes: object) -> None:
    held = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**held, **changes}))


def _outside(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    onnx.save(model, folder / "model.onnx")
    held = json.loads((folder / "manifest.json").read_text())
    from compressor.report.manifest import file_facts

    _rewrite(folder, files={**held["files"], "model.onnx": file_facts(folder / "model.onnx")})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "weights.bin has"),
        (_flip, "was changed since"),
        (_link, "is a link"),
        (lambda folder: (folder / "model.onnx").unlink(), "is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a package"),
        (lambda folder: _rewrite(folder, version=99), "version 99"),
        (lambda folder: _rewrite(folder, format="x"), "not the manifest"),
        (lambda folder: _rewrite(folder, exits=[{}]), "is damaged"),
        (lambda folder: _rewrite(folder, input=3), "is damaged"),
        (lambda folder: _rewrite(folder, files={"../x": {"bytes": 1, "sha256": ""}}), "outside the folder"),
        (lambda folder: _rewrite(folder, files={}), "names no model.onnx"),
        (_outside, "reads weights from '../weights.bin'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tampering_is_found(damage, message: str, made: tuple[Path, Manifest], tmp_path: Path) -> None:
    shutil.copytree(made[0], tmp_path / "net")
    damage(tmp_path / "net")
    with pytest.raises(FileError, match=message) as caught:
        verify_package(tmp_path / "net")
    assert "\n" not in str(caught.value)


def test_keys_that_a_newer_compressor_writes_are_left_out(made: tuple[Path, Manifest]) -> None:
    held = json.loads((made[0] / "manifest.json").read_text())
    newer = {**held, "carbon": 1, "exits": [{**each, "joules": [0.1]} for each in held["exits"]]}
    assert manifest_from(newer, "newer") == manifest_from(held, "held") == made[1]


def test_a_signed_package_is_known_by_its_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="cryptography is missing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for name in ("own", "other"):
        key = Ed25519PrivateKey.generate()
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (tmp_path / f"{name}.pub").write_bytes(public)
    made = tmp_path / "net"
    signed = replace(QUICK, sign=str(tmp_path / "own.pem"))
    manifest = export_package(small_net(), example(), made, settings=signed)
    assert verify_package(made, str(tmp_path / "own.pub")) == manifest
    for key, message in (("other.pub", "was not signed with this key"), ("own.pem", "is no public key")):
        with pytest.raises(FileError, match=message):
            verify_package(made, str(tmp_path / key))
    _rewrite(made, classes=["changed"])
    with pytest.raises(FileError, match="its manifest was changed since"):
        verify_package(made, str(tmp_path / "own.pub"))
    (made / "manifest.sig").unlink()
    with pytest.raises(FileError, match="is not signed"):
        verify_package(made, str(tmp_path / "own.pub"))


def test_a_package_is_verified_on_a_machine_without_torch(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    hide = "import runpy, sys\nfor name in ('torch', 'torchvision', 'onnxscript'): sys.modules[name] = None\n"
    ours = f"import compressor; assert compressor.verify_package({str(made[0])!r}).sample\n"
    script = (
        "sys.modules['compressor'] = None; sys.argv = ['run.py', '--verify']\n"
        f"sys.path.insert(0, {str(made[0])!r})\n"
        f"runpy.run_path({str(made[0] / 'run.py')!r}, run_name='__main__')\n"
    )
    ran = subprocess.run([sys.executable, "-c", hide + ours + script], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout.split(";")[0]) == (0, "unchanged"), ran.stderr
    shutil.copytree(made[0], tmp_path / "net")
    (tmp_path / "net" / "weights.bin").write_bytes(bytes((tmp_path / "net" / "weights.bin").stat().st_size))
    ran = subprocess.run([sys.executable, "run.py", "--verify"], capture_output=True, text=True, cwd=tmp_path / "net")
    assert ran.returncode == 1 and "weights.bin was changed since it was exported" in ran.stderr


def test_a_package_for_another_runtime_is_not_taken_for_onnx(tmp_path: Path) -> None:
    manifest = Manifest("compact", input_facts(SHAPE, CARD), ("logits",), (), runtime="torch", title="plain PyTorch")
    (tmp_path / "manifest.json").write_text(manifest.text())
    with pytest.raises(FileError, match="is a package for plain PyTorch: only those of ONNX Runtime are tuned"):
        tune_package(tmp_path)
    with pytest.raises(FileError, match=r"has no model\.onnx: a package for another runtime"):
        onnx_at(str(tmp_path))
