"""What all arms of `benchmarks/pareto.py` share: a trained network, the data, a number of epochs on one schedule."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.graph import capture
from compressor.graph.tensors import device_of
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.settings import PruneSettings
from compressor.runs.phases import Phases
from compressor.training.data import Data
from compressor.training.loop import distilling, fit
from compressor.training.microbatches import Step
from compressor.training.settings import DistillSettings, TrainSettings


@dataclass(frozen=True)
class Case:
    """One network, data set and seed, trained; every arm starts from a copy of it."""

    start: nn.Module
    data: Data
    settings: AdapNetSettings
    training: TrainSettings
    epochs: int  # of every arm, after the start
    falling: int  # of these the last so many, in which the rate falls to nothing; 0: AdapNet's schedule all along

    def phases(self, finetune_epochs: int) -> Phases:
        """AdapNet's phases after the start-up; their schedule of learning rates is that of all arms."""
        settings = replace(self.settings, startup_epochs=0, finetune_epochs=finetune_epochs)
        return Phases.of(settings, self.training, trained=True)

    @property
    def example(self) -> Tensor:
        """One black image, normalised or not."""
        return torch.zeros(1, *self.data.input_shape, device=device_of(self.start))

    def macs(self, model: nn.Module) -> int:
        """Multiply-adds of the network for one image, on the graph that runs."""
        return capture(model, self.example).macs()

    def train_(
        self,
        model: nn.Module,
        begin: int,
        end: int,
        step: Step | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Epochs `begin` to below `end` of the common schedule."""
        settings = self.phases(self.epochs).of_phase("periods")
        turn = self.epochs - self.falling
        for first, last, schedule in ((begin, min(end, turn), settings.schedule), (max(begin, turn), end, "cosine")):
            if first < last:
                part = replace(
                    settings, first_epoch=settings.first_epoch + first, epochs=last - first, schedule=schedule
                )
                optimizer = fit(model, self.data, part, step=step, optimizer=optimizer).optimizer

    def distilling(self) -> Step:
        """The step of `--distill`, with the start as the teacher."""
        return distilling(copy.deepcopy(self.start), DistillSettings(), self.data)

    def score_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The random training images, not augmented, that both Taylor scores look at."""
        return list(
            self.data.drawn(self.data.train, PruneSettings.score_images, self.training.seed, device_of(self.start))
        )


@dataclass
class Outcome:
    """A compressed and trained network, and what else its row should say."""

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)


Arm = Callable[[Case, float], Outcome]  # the float: the share of the start's multiply-adds that stays
