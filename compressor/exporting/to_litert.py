"""For LiteRT: a .tflite file, in INT8 by ai-edge-quantizer."""

import re
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from compressor.exporting.ranges import BINS, least_error
from compressor.report.manifest import Array


def write(module: nn.Module, samples: Tensor, target: Path, int8: bool) -> None:
    """A .tflite file for one image; in INT8 its input may be of 8 bits, too."""
    import litert_torch

    litert_torch.convert(module, (samples[:1],)).export(str(target))
    if int8:
        _quantize(target, samples)


def _quantize(file: Path, samples: Tensor) -> None:
    """Static INT8, but for the scores of a last linear layer, which multiplies in 8 bits all the same."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    network, operators = Interpreter(str(file)), qtyping.TFLOperationName
    [(signature, names)] = network.get_signature_list().items()
    chosen = recipe_manager.RecipeManager()
    chosen.load_quantization_recipe(recipe.static_wi8_ai8())
    for output in network.get_output_details():
        chosen.add_dynamic_config(re.escape(output["name"]), operators.FULLY_CONNECTED, 8)
    free = algorithm_manager.AlgorithmName.NO_QUANTIZE
    chosen.add_quantization_config(".*", operators.OUTPUT, algorithm_key=free)
    # Its own default are moving averages of the smallest and largest values, which cut off half of the images'.
    ranges = calibrator.Calibrator(str(file), qsv_update_func=qsv_utils.min_max_update)
    ranges.calibrate({signature: [{names["inputs"][0]: image[None].numpy()} for image in samples]}, chosen)
    found = ranges.get_model_qsvs()
    _cut_(found, file, samples)
    work = quantizer.Quantizer(str(file), chosen.get_quantization_recipe())
    work.quantize(found).export_model(str(file), overwrite=True)


def _cut_(ranges: dict[str, dict[str, Array]], file: Path, samples: Tensor) -> None:
    """Change ranges from the smallest and the largest value to those of `least_error`."""
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(file), experimental_preserve_all_tensors=True)
    network.allocate_tensors()
    [given] = network.get_input_details()
    tensors = {each["name"]: each["index"] for each in network.get_tensor_details()}
    kept = {name: (float(each["min"].min()), float(each["max"].max())) for name, each in ranges.items()}
    counts = {name: np.zeros(BINS) for name in kept}
    for image in samples:
        network.set_tensor(given["index"], image[None].numpy())
        network.invoke()
        for name, whole in kept.items():
            counts[name] += np.histogram(network.get_tensor(tensors[name]), BINS, whole)[0]
    for name, (least, most) in kept.items():
        low, high = least_error(counts[name], np.linspace(least, most, BINS + 1), least, most)
        ranges[name] |= {"min": np.full_like(ranges[name]["min"], low), "max": np.full_like(ranges[name]["max"], high)}
