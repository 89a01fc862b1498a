"""Prune whole blocks of a model in one shot, or blocks and channels: `compressor prune --method blocks|mixed`."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.errors import ModelError
from compressor.exits.detachable import Detaching
from compressor.exporting.latency import profile
from compressor.graph.skeleton import skeleton
from compressor.pruning.settings import PruneSettings
from compressor.report import units
from compressor.report.measurements import LayerSize, Measurements
from compressor.report.report import Report
from compressor.runs.blocks import Chosen, choose_blocks, chosen_before, replace_
from compressor.runs.mixed import decide
from compressor.runs.models import transformed
from compressor.runs.plans import structure_of
from compressor.runs.prune import PruneRun
from compressor.runs.results import filters, filters_after
from compressor.runs.run import UNMEASURED
from compressor.runs.stages import Stage
from compressor.runs.subject import Subject, calibration_inputs, refuse_routed
from compressor.surgery.blocks import replace_blocks_, step_of
from compressor.surgery.edits import rows_of
from compressor.training import distributed


class BlocksRun(PruneRun):
    """Blocks in place of channels: choose, replace, fit; with data also fine-tune."""

    chosen: Chosen

    def plan(self) -> None:
        """Choose what becomes of the blocks."""
        self.choose_blocks(self.job.choice, self.decided)

    def choose_blocks(self, choice: PruneSettings, decided: Mapping[str, Any]) -> None:
        """Choose it, unless it was decided before."""
        subject = self.subject
        refuse_routed(subject, "prune")
        if isinstance(subject.module, Detaching):
            raise ModelError("the network has sub-models, which share its blocks: prune them before detach")
        self.inputs = calibration_inputs(subject, choice.seed)
        self.chosen = distributed.from_first(lambda: self._chosen(choice, decided))
        self.note(*self.chosen.notes)
        self.facts = {"edits": tuple(rows_of(self.chosen.edits)), "refused": dict(self.chosen.refused)}

    def _chosen(self, choice: PruneSettings, decided: Mapping[str, Any]) -> Chosen:
        subject = self.subject
        if decided:
            return chosen_before(subject.module, subject.example, self.inputs, choice, decided)
        return choose_blocks(subject.module, subject.example, self.inputs, choice, self.tell)

    def structure(self) -> dict[str, Any]:
        """The blocks and what came in their places; the convolutions are fitted again."""
        return structure_of(self.chosen.edits, self.chosen.refused, self.chosen.notes)

    def predicted(self) -> tuple[Measurements, Measurements]:
        """Of a copy, edited."""
        edited, example = skeleton(self.subject.module, real=True), self.subject.example
        replace_blocks_(edited, self.chosen.edits, example)
        self.facts["layers"] = self.layers(self.widths(), filters(edited))
        cost = profile(edited, example, layers=False)
        return self.size, Measurements(macs=cost.macs, params=cost.params, reasons=UNMEASURED)

    def leave_plan(self, report: Report) -> None:
        """None: the same command makes the same choice."""

    def shorten(self) -> None:
        """Where replacing was given up in its least squares, it is done without."""
        if not self.cut:
            module = copy.deepcopy(self.subject.module)
            replace_blocks_(module, self.chosen.edits, self.subject.example)
            self.subject, self.cut = self._with(module), True

    def change(self) -> None:
        """Put what was chosen in the blocks' places, and refit what lies behind them to the network as it was."""
        self._remember()
        self.subject, self.cut = self._replaced(), True

    def _replaced(self) -> Subject:
        """A copy of the network with other blocks, and what lies behind them refitted."""
        subject, edits = self.subject, self.chosen.edits
        self.tell(Stage(f"replacing {units.counted(len(edits), 'block')}"))
        module = copy.deepcopy(subject.module)
        _, found = replace_(module, edits, subject.example, self.inputs, tell=self.tell)
        self.note(*found.words())
        distributed.alike_(module)
        return self._with(module)

    def _with(self, module: nn.Module) -> Subject:
        subject, step = self.subject, step_of(self.chosen.edits, self.subject.example)
        return replace(subject, opened=transformed(subject.opened, module, step))

    def layers(self, before: dict[str, int], after: dict[str, int]) -> tuple[LayerSize, ...]:
        """With the convolutions that took the places of blocks."""
        new = (LayerSize(name, 0, count) for name, count in after.items() if name not in before)
        return (*super().layers(before, after), *new)


class MixedRun(BlocksRun):
    """Blocks for some of the way to the target, then channels of what they leave."""

    halfway: Subject

    def plan(self) -> None:
        """Choose how far blocks go, replace them in a copy, and choose its channels; the network stays as it came."""
        whole, choice = self.subject, self.job.choice
        decided = self.decided or distributed.from_first(
            lambda: decide(whole.module, whole.example, choice, calibration_inputs(whole, choice.seed), self.tell)
        )
        self.choose_blocks(choice, decided["blocks"])
        blocks = self.facts
        self.halfway = self._replaced() if self.chosen.edits else whole
        self.choose_channels(self.halfway, choice, decided)
        self.facts["edits"] = (*blocks["edits"], *self.facts["edits"])
        self.facts["refused"] = {**blocks["refused"], **self.facts["refused"]}

    def structure(self) -> dict[str, Any]:
        """Both, each as by itself."""
        return {**PruneRun.structure(self), "blocks": super().structure()}

    def predicted(self) -> tuple[Measurements, Measurements]:
        """By the map of channels of what the blocks leave."""
        selection, left = self.selection, filters(self.halfway.module)
        self.facts["layers"] = self.layers(self.widths(), filters_after(left, self.channels, selection.plan.removed))
        return self.size, Measurements(macs=selection.macs, params=selection.params, reasons=UNMEASURED)

    def shorten(self) -> None:
        """Where the least squares were given up, the network is cut without."""
        if not self.cut:
            self.subject = self.halfway
            PruneRun.shorten(self)

    def change(self) -> None:
        """Go on with the other blocks, and cut the channels."""
        self._remember()
        self.subject = self.halfway
        if self.selection.plan.edits:
            self._cut()
        self.cut = True
