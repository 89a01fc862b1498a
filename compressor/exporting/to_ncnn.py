"""For ncnn: a .param and a .bin file, converted by pnnx from what torch traces, said in words that both know."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from compressor.errors import ModelError


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """A .param and a .bin file for one image, converted by pnnx. Raises ModelError for an operator that ncnn lacks."""
    import ncnn
    import pnnx

    assert not int8, "ncnn's quantizer is a program that its Python package lacks"
    image = samples[:1].contiguous()
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), _InNcnnsWords():
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
        np.save(file.with_suffix(".npy"), image.numpy())
        tried = subprocess.run(
            [sys.executable, "-c", _TRIED, str(made[0]), str(file.with_suffix(".npy"))], capture_output=True
        )
        if tried.returncode < 0:
            raise ModelError(f"ncnn crashes on this model ({signal.Signals(-tried.returncode).name})")
        for each, suffix in zip(made, (".param", ".bin")):
            target.with_suffix(suffix).write_bytes(each.read_bytes())


# In a process of its own, since ncnn does not check what pnnx writes for it.
_TRIED = """
import sys
from pathlib import Path
import numpy as np
from compressor.exporting.engines import ncnn
ncnn(Path(sys.argv[1]), 1)({"input": np.load(sys.argv[2])})
"""


class _InNcnnsWords(TorchFunctionMode):
    """Calls that pnnx has no word for, or takes for others, as equal ones that it knows.

    Every second pixel is a pooling of one pixel; so is a mean over height and width, which tells it where the batch is.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """See torch's class."""
        name, options, equal = getattr(function, "__name__", ""), options or {}, None
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].dim() == 4:
            if name == "__getitem__":
                equal = _strided(*arguments)
            elif name in ("mean", "mean.dim"):
                equal = _pooled(*arguments, **options)
        return function(*arguments, **options) if equal is None else equal


def _strided(images: Tensor, index: Any) -> Tensor | None:
    """Every so many rows and columns of whole images, if that is what the index says."""
    whole = isinstance(index, tuple) and len(index) == 4 and all(isinstance(each, slice) for each in index)
    if not whole or any(each.start or each.stop is not None for each in index):
        return None
    *outer, rows, columns = (each.step or 1 for each in index)
    return functional.max_pool2d(images, 1, stride=(rows, columns)) if outer == [1, 1] else None


def _pooled(images: Tensor, dim: Any = None, keepdim: bool = False, **more: Any) -> Tensor | None:
    """The mean over height and width, if it is over them."""
    if more or not isinstance(dim, (tuple, list)) or {each % 4 for each in dim} != {2, 3}:
        return None
    means = functional.adaptive_avg_pool2d(images, 1)
    return means if keepdim else means.flatten(1)
