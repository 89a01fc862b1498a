"""Prune a model's channels in one shot, and with data fine-tune it: `compressor prune`."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from compressor.errors import CompressorError
from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.pruning.scores import Given
from compressor.pruning.selection import Selection
from compressor.pruning.settings import PruneSettings, check, in_time, looks_at_inputs, resolved
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.runs.apply import apply_plan_
from compressor.runs.exits import exit_parts
from compressor.runs.jobs import PruneJob
from compressor.runs.latency_goal import plan_latency, selected
from compressor.runs.own import criterion
from compressor.runs.plans import read_plan, selection_of, structure_of, write_plan
from compressor.runs.results import filters_after, layer_sizes
from compressor.runs.run import UNMEASURED, Run
from compressor.runs.second_look import ranked
from compressor.runs.stages import Stage
from compressor.runs.subject import Subject, calibration_inputs, refuse_routed, score_batches
from compressor.runs.tuning import finetune_, on_validation, said, step_for
from compressor.training import distributed
from compressor.training.batch_norm import recalibrate_
from compressor.training.events import NoteEvent


class PruneRun(Run[PruneJob]):
    """One-shot pruning: score, select, cut, refit; with data also fine-tune."""

    NEEDS_DATA: ClassVar[bool] = False

    channels: Channels
    selection: Selection
    cut = False  # whether the plan was carried out
    inputs: Sequence[Tensor] = ()  # images to calibrate on, without labels
    before: float | None = None  # its validation figure as the network came
    teacher: nn.Module | None = None  # a copy of it, to distill from

    def __init__(self, job: PruneJob, *rest: Any, **more: Any) -> None:
        has_data = job.data is not None
        check(job.choice, has_data=has_data)
        super().__init__(replace(job, choice=resolved(job.choice, has_inputs=has_data)), *rest, **more)
        self.own = criterion(job.choice.method)

    def plan(self) -> None:
        """Choose the channels that go, or read them from the plan that was given."""
        refuse_routed(self.subject, "prune")
        self.choose_channels(self.subject, self.job.choice, self.decided)

    def choose_channels(self, subject: Subject, choice: PruneSettings, decided: Mapping[str, Any]) -> None:
        """Choose what goes of a network, unless it was decided before."""
        self.tell(Stage("finding which channels belong together"))
        self.channels = channels = capture(subject.module, subject.example, keep=choice.keep, also=choice.also)
        self.note(*channels.notes)
        if decided:
            self.selection = selection_of(decided, channels)
        elif self.job.plan is not None:
            self.selection = read_plan(self.job.plan, channels)
        else:
            self.selection = self._selected(subject, choice, channels)
        self.note(*self.selection.notes)
        edits = tuple(self.selection.plan.rows())
        self.facts = {"edits": edits, "frozen": channels.frozen, "refused": dict(self.selection.refused)}

    def _selected(self, subject: Subject, choice: PruneSettings, channels: Channels) -> Selection:
        batches = score_batches(subject, choice.score_images, choice.seed)
        if looks_at_inputs(choice):
            self.inputs = calibration_inputs(subject, choice.seed)
            self.tell(Stage("measuring what every channel is worth"))
        loss = Given.loss if subject.data is None else subject.data.loss
        given = Given(batches, self.inputs, loss=loss)
        found = distributed.from_first(lambda: ranked(subject.module, channels, choice, given, self.own, self.tell))
        return distributed.from_first(
            lambda: selected(subject.module, subject.example, channels, found, choice, self.tell)
        )

    def predicted(self) -> tuple[Measurements, Measurements]:
        """By the map of channels."""
        channels, selection = self.channels, self.selection
        widths = self.widths()
        self.facts["layers"] = layer_sizes(widths, filters_after(widths, channels, selection.plan.removed))
        if self.job.output.latency and not in_time(self.job.choice) and isinstance(self.subject.example, Tensor):
            self._timed_as_planned(self.subject.example)
        before = Measurements(macs=channels.macs(), params=channels.params(), reasons=UNMEASURED)
        return before, Measurements(macs=selection.macs, params=selection.params, reasons=UNMEASURED)

    def _timed_as_planned(self, example: Tensor) -> None:
        self.tell(Stage("timing the network beside what the plan leaves of it"))
        module, plan = self.subject.module, self.selection.plan
        try:
            found = plan_latency(module, example, self.channels, plan, torch.get_num_threads())
        except CompressorError as error:
            self.note(f"not timed: {error}")
            return
        self.facts["details"] = {"latency": asdict(found)}

    def leave_plan(self, report: Report) -> None:
        """The plan, where the job names a folder."""
        output = self.job.output
        if output.out is not None:
            expected = report.details.get("estimate", {})
            folder = Path(output.out).expanduser()
            write_plan(folder, self.selection, self.channels, expected, overwrite=output.overwrite)

    def shorten(self) -> None:
        """Where cutting was given up in its least squares, the network is cut without."""
        if not self.cut:
            apply_plan_(self.subject.module, self.selection.plan, self.channels, self.subject.example)

    def change(self) -> None:
        """Carry out the plan and fit what is left to the network as it was.

        By least squares, without data on images made up; where that is switched off or impossible and there are data,
        by recalibrating batch norm.
        """
        self._remember()
        self._cut()

    def _remember(self) -> None:
        """What is asked of the network as it came, once it has changed."""
        self.before = None if self.subject.data is None else on_validation(self.subject)
        self.teacher = copy.deepcopy(self.subject.module) if self.job.distilling.distill else None

    def _cut(self) -> None:
        subject, plan, seed = self.subject, self.selection.plan, self.job.choice.seed
        self.tell(Stage(f"pruning {len(plan.removed)} channels in {len(plan.edits)} groups"))
        inputs: Sequence[Any] | Literal["synthetic"] = ()
        if self.job.choice.reconstruct:
            inputs = "synthetic" if subject.data is None else self.inputs or calibration_inputs(subject, seed)
        _, found = apply_plan_(subject.module, plan, self.channels, subject.example, inputs=inputs, tell=self.tell)
        self.cut = True
        self.note(*found.words())
        if subject.data is not None and not found.layers:
            self.tell(Stage("recalibrating batch norm"))
            recalibrate_(subject.module, subject.data.train, subject.data, seed=self.job.loading.seed)
        distributed.alike_(subject.module)

    def train(self) -> None:
        """Fine-tune, where there are data."""
        job, subject = self.job, self.subject
        if self.before is None:
            self.tell(NoteEvent("no `data`: nothing is trained and no accuracy measured; fine-tune before use"))
            return
        now, figure = on_validation(subject), self.data.figure
        before, after = said(figure, self.before), said(figure, now)
        figures = f"validation {figure.label}: {before} before, {after} right after pruning"
        self.tell(NoteEvent(f"{figures}{self._seen()}"))
        if job.training.epochs == 0:
            return
        step = step_for(subject.module, self.teacher, job.distilling, job.training, self.data)
        # The validation figure of the base alone says little of sub-models.
        candidate = now if step is None or self.teacher is not None else None
        saving = self.saving(phase="finetune", structure=self.structure)
        self.learned(finetune_(subject, job.training, step, saving, self.record, candidate))

    def structure(self) -> dict[str, Any]:
        """As in `Run`: times, and chips, may differ where a run goes on."""
        found = self.selection
        return structure_of(found.plan.edits, found.refused, found.notes)

    def _seen(self) -> str:
        """A remark on validation figures of a network that was trained elsewhere: on all training images, as a rule."""
        seen = "; it has probably been trained on these images, so only the test figures tell what pruning costs"
        return "" if self.subject.opened.history or self.job.model.model is None else seen

    def measured_after(self, before: Measurements) -> tuple[Measurements, Measurements]:
        """With a row for every sub-model of a detachable network."""
        both = super().measured_after(before)
        self.facts |= exit_parts(self.subject, latency=self.job.output.latency)
        return both
