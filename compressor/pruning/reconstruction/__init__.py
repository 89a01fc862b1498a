"""Refit a pruned network to the dense one."""

from compressor.pruning.reconstruction.calibration import enough_images, first_batches, inputs_of
from compressor.pruning.reconstruction.solve import Progress, Reconstruction, no_progress, reconstruct_

__all__ = ["Progress", "Reconstruction", "enough_images", "first_batches", "inputs_of", "no_progress", "reconstruct_"]
