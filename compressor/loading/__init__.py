"""Open a model safely, whatever file it comes in, and write compressor's own checkpoint."""

from compressor.loading.arch import Arch, data_arguments, parse_arch
from compressor.loading.opening import OpenedModel, load, open_model
from compressor.loading.saving import save, save_model, transformed

__all__ = [
    "Arch",
    "OpenedModel",
    "data_arguments",
    "load",
    "open_model",
    "parse_arch",
    "save",
    "save_model",
    "transformed",
]
