"""Let each image run only the layers it needs: `compressor route`."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.exporting.forms import AtDepth
from compressor.exporting.onnx import export_onnx
from compressor.exporting.routed import depth_times
from compressor.exporting.runtime import OnnxModel
from compressor.graph.cuts import Chain
from compressor.profiling.costs import params_of
from compressor.profiling.latency import ImageTimes, time_images
from compressor.report.measurements import Certificate, Measurements
from compressor.routing.curve import (
    Costs,
    certified_point,
    check_time,
    choose,
    choose_in_time,
    costs,
    early_exit_at,
    early_exit_points,
    fixed_points,
    point_at,
    routed_points,
    thinned,
    within,
)
from compressor.routing.network import Routed, make_routed, survey
from compressor.routing.observing import observe, share_right
from compressor.routing.phases import Teacher
from compressor.routing.section import Findings, Way, doubts, in_time, planned_section, remarks, section
from compressor.routing.settings import RouteSettings, check, every_unit
from compressor.routing.units import Units
from compressor.runs.jobs import RouteJob
from compressor.runs.models import transformed
from compressor.runs.promise import Promise, differing
from compressor.runs.results import file_bytes, filters
from compressor.runs.run import UNMEASURED, Run
from compressor.runs.stages import Callback, Stage, silent
from compressor.runs.subject import Subject, check_tells, is_routed
from compressor.training import distributed
from compressor.training.data import Data
from compressor.training.evaluate import evaluate, which_right
from compressor.training.own_task import OPTIONAL, OwnTask

_TIMED_IMAGES = 100
_RIGHT = "accuracy"  # what the share of right examples is called, whatever the figure of a task


class RouteRun(Run[RouteJob]):
    """A network with early exits and its router, taught and measured."""

    routed: Routed
    units: Units
    settings: RouteSettings
    costs: Costs
    certificate: Certificate  # where one is asked for
    right_before: float = 0.0  # share of the test examples that the network as it came has right
    judged: int  # validation images that the threshold is chosen on
    depth_ms: tuple[float, ...] = ()  # of an image that leaves at each depth, where milliseconds are asked for

    def plan(self) -> None:
        """Give the network its early exits; refused where no route could meet the target."""
        job = self.job
        check(job.choice)
        chain = self.survey()
        self.settings = every_unit(job.choice, len(self.units.units))
        self._check_task()
        self.routed = make_routed(chain, self.units.units, self.settings)
        self.costs = costs(self.routed)
        if self.settings.target_macs is not None:
            within(self.settings.target_macs, self.costs.routed[0], self.costs.whole)
        if self.settings.target_ms is not None:
            self.tell(Stage("timing every depth on ONNX Runtime"))
            self.depth_ms = distributed.from_first(lambda: depth_times(self.routed, self.subject.example))
            check_time(self.depth_ms, self.settings.target_ms)

    def survey(self) -> Chain:
        """Find what can be skipped."""
        subject = self.subject
        check_tells(subject, "route", *OPTIONAL)
        assert subject.opened.input_shape is not None
        if is_routed(subject.module):
            raise UsageError(
                "this network is routed already: give the one that it was made of, and another `out`; a cheaper "
                "threshold needs no training: set_threshold_"
            )
        self.tell(Stage("finding what can be skipped"))
        chain, self.units = survey(subject.module, subject.opened.input_shape)
        self.facts["frozen"] = self.units.refused
        return chain

    def _check_task(self) -> None:
        """Raise UsageError for what is for labelled images only, where the data are a user's task."""
        task, asked, usual = self.subject.data, self.settings, RouteSettings()
        other = [name for name in ("router", "label_epochs") if getattr(asked, name) != getattr(usual, name)]
        if other and isinstance(task, OwnTask):
            raise UsageError(f"`{other[0]}` of route is for labelled images: leave it out with {task.name}")

    def predicted(self) -> tuple[Measurements, Measurements]:
        """What each depth costs; how many images stop there the training decides."""
        before = Measurements(macs=self.costs.whole, params=params_of(self.subject.module), reasons=UNMEASURED)
        least, most = self.costs.routed[0], self.costs.routed[-1]
        span = f"{least / 1e6:.3g} to {most / 1e6:.3g} MMAC an image, as the router decides"
        places = self.routed.layout.leave_after
        self.facts["sections"] = (planned_section(self.units.units, places, self.costs),)
        self.facts["details"] = {"costs": asdict(self.costs), "leave_after": list(places)}
        return before, Measurements(params=params_of(self.routed), reasons={**UNMEASURED, "macs": span})

    def epochs(self) -> float:
        """Of the network; its router learns from what was observed once."""
        return super().epochs() + self.settings.label_epochs

    def within(self, epochs: int) -> RouteJob:
        """Those of the other phase are as many as before."""
        return super().within(max(1, epochs - self.job.choice.label_epochs))

    def change(self) -> None:
        """The network with its exits takes the place of the network; one that could not be saved is refused."""
        self.base = self.subject.module
        opened = transformed(self.subject.opened, self.routed, self.routed.step())
        self.subject = replace(self.subject, opened=opened)
        self.size_bytes = file_bytes(opened)

    def measured_before(self) -> Measurements:
        """Also which examples are right, by which depths are compared."""
        before = super().measured_before()
        self.right_before = (
            share_right(self.subject.module, self.data.test, self.data) if before.top1 is None else before.top1
        )
        return before

    def train(self) -> None:
        """The network at all its depths, then its router."""
        self.tell(Stage("teaching the network and its router"))
        teacher = Teacher(
            self.base, self.routed, self.data, self.job.training, self.settings, tell=self.record, saving=self.saving()
        )
        self.taught = teacher.teach()
        self.rows += self.taught.rows
        self.notes += self.taught.notes

    def measured_after(self, before: Measurements) -> tuple[Measurements, Measurements]:
        """Means over the test images at the threshold that validation images choose, and single images timed."""
        found = self._chosen()
        if (whole := self.whole) is not None:
            self.tell(Stage("timing single images"))
            found = replace(found, times=_times(self.subject, whole.eval(), self.made()))
            before = before.timed(_timing(found, "whole"))  # on the same images, at the same time
        unsure = () if self.promise is not None else doubts(self.judged, self.settings)
        said = (*unsure, *remarks(found), *in_time(found, self.depth_ms))
        self.note(*said)
        self.facts |= {
            "sections": (section(found, said),),
            "variants": _other_ways(found) if isinstance(self.data, Data) else {},
            "details": found.to_json(),
        }
        after, data = _after(self.subject, found, self.size_bytes), self.data
        if isinstance(data, Data):
            return before, after.scored(data.figure, {data.figure.name: found.routed.top1})
        figures = distributed.from_first(lambda: evaluate(self.routed, data.test, data).figures)
        return before, after.scored(data.figure, figures, data.amount(data.test))

    def promised(self, aside: Any) -> Promise:
        """By single examples, whatever the figure of the data is."""
        return Promise(self.job.promise, aside, which_right(self.subject.module, aside, self.data))

    def certified(self, promise: Promise) -> Certificate:
        """What was found as the threshold was chosen, and of labelled images how often all layers answer otherwise."""
        if not isinstance(self.data, Data):
            return replace(self.certificate, figure=_RIGHT, unit="examples")
        deepest = AtDepth(self.routed, self.routed.depths - 1, router=False)
        return replace(self.certificate, differed=differing(self.routed, deepest, promise.images, self.data))

    def widths(self) -> dict[str, int]:
        """Routing changes none."""
        return filters(getattr(self, "base", self.subject.module))

    def _chosen(self) -> Findings:
        """Choose on validation images, set the thresholds, and look at the test set."""
        routed, counted, settings, data = self.routed, self.costs, self.settings, self.data
        self.tell(Stage("choosing the threshold on validation images, measuring on test images"))
        seen, test = observe(routed, self.taught.calibration, data), observe(routed, data.test, data)
        self.judged, curve = len(seen), routed_points(seen, counted)
        if settings.target_ms is not None:
            chosen = choose_in_time(curve, self.depth_ms, settings.target_ms)
        elif self.promise is not None:
            promise, asked = self.promise, self.job.promise
            assert asked.max_drop is not None
            labels, classes = (promise.images.labels, data.classes) if isinstance(data, Data) else (None, ())
            chosen, self.certificate = certified_point(
                observe(routed, promise.images, data), counted, promise.before, labels, classes,
                drop=asked.max_drop, confidence=asked.confidence,
            )  # fmt: skip
        elif settings.threshold is None:
            chosen = choose(curve, counted, target_macs=settings.target_macs)
        else:
            chosen = point_at(seen, counted, settings.threshold)
        routed.set_threshold_(chosen.setting)
        ways = [Way("the router", point_at(test, counted, chosen.setting))]
        confident = early_exit_points(seen, counted)
        equal = min(confident, key=lambda point: abs(point.macs - chosen.macs))
        ways.append(Way("early exit by confidence", early_exit_at(test, counted, equal.setting)))
        for depth, point in enumerate(fixed_points(test, counted)):
            name = "all layers" if depth == routed.depths - 1 else f"always depth {depth}"
            ways.append(Way(name, point))
        curves = {
            "router": thinned(curve),
            "early exit": thinned(confident),
            "fixed depth": fixed_points(seen, counted),
        }
        units, places = self.units.units, routed.layout.leave_after
        right = data.figure.label if isinstance(data, Data) else _RIGHT
        return Findings(units, places, counted.whole, self.right_before, tuple(ways), curves, self.taught, {}, right)


def list_units(job: RouteJob, tell: Callback = silent) -> Units:
    """What of a network can be skipped, for `--list`; nothing is changed."""
    run = RouteRun(job, tell)
    run.open()
    run.survey()
    return run.units


@distributed.by_first
def _times(subject: Subject, whole: nn.Module, made: Path | CompressorError | None) -> dict[str, dict[str, ImageTimes]]:
    """Both networks on single test images, on torch and on ONNX Runtime where both export; `made`: the routed one's."""
    assert subject.data is not None
    data, routed = subject.data, subject.module
    images = data.examples(data.test, _TIMED_IMAGES, subject.device)
    threads = torch.get_num_threads()
    wait = torch.cuda.synchronize if subject.device.type == "cuda" else None

    def calling(module: nn.Module) -> Callable[[int], object]:
        def call(number: int) -> object:
            scores = module(images[number : number + 1])
            return scores if wait is None else wait()

        return call

    with torch.inference_mode():
        both = {"whole": calling(whole), "routed": calling(routed)}
        times = {"torch": time_images(both, len(images), threads=threads)}
    with TemporaryDirectory() as folder:
        try:
            if isinstance(made, CompressorError):
                raise made
            files = {"whole": Path(folder) / "whole.onnx", "routed": made or Path(folder) / "routed.onnx"}
            export_onnx(whole, images[:2], files["whole"], check_inputs=images)
            if made is None:
                export_onnx(routed, images[:2], files["routed"], check_inputs=images)
        except CompressorError:  # the export of the result is tried again, and its failure told
            return times
        models = {name: OnnxModel(path, threads=threads, own=True) for name, path in files.items()}
        batches = [image[None].cpu().numpy() for image in images]
        asked = {name: lambda number, m=model: m(batches[number]) for name, model in models.items()}
        times["onnxruntime"] = time_images(asked, len(batches), threads=threads)
    return times


def _after(subject: Subject, found: Findings, size: int) -> Measurements:
    """Mean costs over the test images, which no single run of the network has."""
    reasons = {"macs_thop": "thop sees one image's way only"}
    timing = _timing(found, "routed") if found.times else None
    if timing is None:
        reasons["latency_ms"] = "left out by --no-latency"
    elif "onnxruntime" not in timing:
        reasons["latency_ms.onnxruntime"] = "the network could not be exported"
    return Measurements(
        macs=round(found.routed.macs),
        params=params_of(subject.module),
        file_bytes=size,
        latency_ms=timing,
        reasons=reasons,
    )


def _other_ways(found: Findings) -> dict[str, Measurements]:
    """What else the same weights can do, for comparisons: early exit by confidence, and one depth for all images."""
    reasons = {"file_bytes": "the routed network's file", "latency_ms": "only the router was timed"}
    return {
        way.name: Measurements(macs=round(way.point.macs), top1=way.point.top1, reasons=reasons)
        for way in found.ways[1:]
    }


def _timing(found: Findings, network: str) -> dict[str, Any]:
    return {engine: asdict(both[network]) for engine, both in found.times.items()}
