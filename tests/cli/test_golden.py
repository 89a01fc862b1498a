"""The whole text of commands that need a run or a package to begin with, or that look at the machine."""

from pathlib import Path

import pytest

from compressor.runs import doctor
from tests.cli.command import check_golden

DIGITS = "sample_models/digits_cnn.safetensors"
SLIM = ["--arch", "sample_models/digits_cnn.py:build", "--arch-arg", "width=0.25"]
QUICK = ["--data", "digits", "--epochs", "1", "--no-latency", "--no-onnx", "--device", "cpu"]
# What comes of training hangs on the last bits of sums, which are others on another processor.
TRAINED = (
    (r"\d+(\.\d+)? ?%", "P%"),
    (r"[+-]\d+\.\d+ pp", "P pp"),
    (r"\d+\.\d+ [kM]?MAC", "N MAC"),
    (r"\d+\.\d\dx", "Rx"),
    (r"\d+\.\d+ k\b", "N k"),
    (r" +(?=N MAC|N k|P%|P pp|Rx|SIZE)", " "),
    (r"─+", "─"),
    (r"^note: (It does not beat|Early exit by|Routing saves).*\n", ""),
    (r"kept for inference: \dx\d", "kept for inference: KxK"),
    (r" \*", ""),  # on the Pareto front
    (r"^(next: compressor export).*", r"\1 ..."),  # the best run's
)


def test_doctor(compressor, monkeypatch):
    """On a machine that lacks one package; devices and versions are this test's own."""
    monkeypatch.setattr(doctor.environment, "version", lambda name: None if name in ("thop", "timm") else "1.2.3")
    monkeypatch.setattr(doctor, "_devices", lambda: iter([doctor.Finding("device", None, "CPU: of a test")]))
    monkeypatch.setattr("platform.python_version", lambda: "3.11.0")
    monkeypatch.setattr("compressor.loading.code.state_folder", lambda: Path("state"))
    check_golden("doctor", compressor("doctor", "--data", "digits"), compressor.folder)
    monkeypatch.setattr(doctor.environment, "version", lambda name: "1.2.3")
    check_golden("doctor-well", compressor("doctor"), compressor.folder)


def test_export_verify_tune(compressor):
    out = compressor.folder / "deploy"
    ran = compressor("export", DIGITS, "--data", "digits", "--out", out, "--no-latency")
    check_golden("export", ran, compressor.folder)
    check_golden("verify", compressor("verify", out), compressor.folder)
    check_golden("tune", compressor("tune", out, "--no-latency"), compressor.folder)
    (out / "weights.bin").write_bytes(bytes(8))
    size = ((r"had [\d,]+", "had SIZE"),)
    check_golden("error-verify-tampered", compressor("verify", out), compressor.folder, size)
    check_golden("error-tune-tampered", compressor("tune", out), compressor.folder, size)


def test_export_of_one_file(compressor):
    out = compressor.folder / "digits.onnx"
    check_golden("export-file", compressor("export", DIGITS, "--out", out), compressor.folder)
    check_golden("error-export-exists", compressor("export", DIGITS, "--out", out), compressor.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("detach", ["--exits", "1"]),
        ("route", ["--router-epochs", "2"]),
        ("replace", ["--until", "5", "--fit", "stride", "--retrain-epochs", "1"]),
    ],
    ids=["detach", "route", "replace"],
)
def test_what_trains(compressor, command, flags):
    ran = compressor(command, *SLIM, *QUICK, *flags, "--out", compressor.folder / "run")
    check_golden(command, ran, compressor.folder, TRAINED)


@pytest.mark.slow
def test_sweep_and_resume(compressor):
    out = compressor.folder / "sweep"
    arguments = ["sweep", DIGITS, "--methods", "l1,taylor", "--targets", "0.5", *QUICK, "--out", out]
    check_golden("sweep", compressor(*arguments), compressor.folder, TRAINED)
    for done in (out / "l1-0.5" / "report.json", out / "comparison.html"):  # as if it had been broken off
        done.unlink()
    check_golden("resume-sweep", compressor("resume", out), compressor.folder, TRAINED)
    (out / "l1-0.5" / "report.json").unlink()
    check_golden("resume", compressor("resume", out / "l1-0.5"), compressor.folder, TRAINED)
    check_golden("error-resume-done", compressor("resume", out / "l1-0.5"), compressor.folder)
