"""LiteRT: a .tflite file for one image, quantized by LiteRT's own quantizer."""

from pathlib import Path

from torch import Tensor, nn


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """Write a module; in INT8 its input and outputs are numbers of 8 bits, too."""
    import litert_torch

    litert_torch.convert(module, (samples[:1],)).export(str(target))
    if int8:
        _quantize(target, samples)


def _quantize(file: Path, samples: Tensor) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    [(signature, names)] = Interpreter(str(file)).get_signature_list().items()
    work = quantizer.Quantizer(str(file))
    work.load_quantization_recipe(recipe.static_wi8_ai8())
    calls = [{names["inputs"][0]: image[None].numpy()} for image in samples]
    work.quantize(work.calibrate({signature: calls})).export_model(str(file), overwrite=True)
