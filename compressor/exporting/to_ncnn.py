"""ncnn: a .param and a .bin file for one image, converted by pnnx from TorchScript."""

import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.errors import ModelError


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """Write a module in float32. Raises ModelError for an operator that ncnn lacks."""
    import ncnn
    import pnnx

    assert not int8, "ncnn's quantizer is a program that its Python package lacks"
    image = samples[:1].contiguous()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        file = Path(scratch) / "network.pt"
        torch.jit.save(torch.jit.trace(module, image, check_trace=False), file)
        shape = ",".join(map(str, image.shape))
        command = [str(Path(pnnx.__file__).with_name("pnnx")), str(file), f"inputshape=[{shape}]f32", "fp16=0"]
        ran = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        made = [file.with_suffix(f".ncnn{suffix}") for suffix in (".param", ".bin")]
        if ran.returncode or not all(each.exists() for each in made):
            raise ModelError(
                f"pnnx cannot convert this model ({(ran.stderr.strip().splitlines() or ['no reason'])[-1]})"
            )
        layers = {line.split()[0] for line in made[0].read_text().splitlines()[2:]}
        unknown = sorted(layer for layer in layers if ncnn.layer_to_index(layer) < 0)
        if unknown:
            raise ModelError(f"ncnn has no operator {', '.join(unknown)}, which this model needs")
        for each, suffix in zip(made, (".param", ".bin")):
            target.with_suffix(suffix).write_bytes(each.read_bytes())
