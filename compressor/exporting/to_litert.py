"""For LiteRT: a .tflite file, in INT8 by ai-edge-quantizer."""

import re
from pathlib import Path

from torch import Tensor, nn


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
    work = quantizer.Quantizer(str(file), chosen.get_quantization_recipe())
    work.quantize(ranges.get_model_qsvs()).export_model(str(file), overwrite=True)
