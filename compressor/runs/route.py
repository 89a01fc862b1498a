"""Let each image run only the layers it needs: `compressor route`."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from compressor.errors import CompressorError, UsageError
from compressor.exporting.onnx import export_onnx
from compressor.exporting.runtime import OnnxModel
from compressor.graph.cuts import Chain
from compressor.report.measurements import Measurements
from compressor.report.report import Report
from compressor.routing.costs import Costs, costs
from compressor.routing.curve import (
    check_time,
    choose,
    choose_in_time,
    early_exit_at,
    early_exit_points,
    fixed_points,
    point_at,
    routed_points,
    thinned,
    within,
)
from compressor.routing.network import Routed
from compressor.routing.observing import observe
from compressor.routing.phases import Taught, Teacher
from compressor.routing.rebuild import make_routed, survey
from compressor.routing.section import Findings, Way, doubts, remarks, section
from compressor.routing.settings import RouteSettings, check, every_unit
from compressor.routing.timing import ImageTimes, time_images
from compressor.routing.units import Units
from compressor.runs.depth_times import depth_times, in_time
from compressor.runs.folder import RunFolder
from compressor.runs.jobs import RouteJob, flat
from compressor.runs.measuring import file_bytes, filters, in_words, layer_sizes, measure
from compressor.runs.models import transformed
from compressor.runs.results import report_of, write_results
from compressor.runs.stages import Stage, Tell, note_all, silent
from compressor.runs.subject import Subject, open_subject
from compressor.training import distributed
from compressor.training.batching import examples
from compressor.training.events import NoteEvent
from compressor.training.state import Saving

_TIMED_IMAGES = 100


@dataclass(frozen=True)
class RoutedRun:
    """What a run did: its report, and what it found out."""

    report: Report
    findings: Findings


@dataclass(frozen=True)
class Planned:
    """A network with ways out, not yet trained."""

    subject: Subject
    routed: Routed
    units: Units
    settings: RouteSettings
    costs: Costs
    depth_ms: tuple[float, ...] = ()  # of an image that leaves at each depth, where milliseconds are asked for


def route(job: RouteJob, tell: Tell = silent, *, resume: bool = False) -> RoutedRun:
    """Open, find what can be skipped, teach network and router, choose the threshold, measure, write.

    With `resume` the training goes on from the folder's last checkpoint.

    Raises:
        CompressorError: anything the user can mend; the folder is as it was when the network cannot be routed.
    """
    folder = RunFolder(job.output, model=job.model.model, resume=resume)
    planned = plan(job, tell)
    subject, routed = planned.subject, planned.routed
    data = subject.data
    if data is None:
        raise UsageError("route trains the ways out and the router, which needs --data; without there is --list")
    tell(Stage("measuring the model as it came"))
    before, widths = measure(subject, latency=job.output.latency), filters(subject.module)
    tell(NoteEvent(in_words(before)))
    result = replace(subject, opened=transformed(subject.opened, routed, routed.step()))
    size = file_bytes(result.opened)  # a network that could not be saved is refused before it is trained
    whole = copy.deepcopy(subject.module).eval()  # to be timed beside what becomes of it
    folder.begin(flat(job))

    tell(Stage("teaching the network and its router"))
    teacher = Teacher(
        subject.module, routed, data, job.training, planned.settings,
        tell=folder.recording(tell), saving=Saving(folder.path, resume=resume),
    )  # fmt: skip
    taught = teacher.teach()
    tell(Stage("choosing the threshold on validation images, measuring on test images"))
    found = _measured(planned, taught)
    found = replace(found, before_top1=before.top1 or 0.0)
    if job.output.latency:
        tell(Stage("timing single images"))
        found = replace(found, times=distributed.from_first(lambda: _times(result, whole)))
        before = replace(before, latency_ms=_timing(found, "whole"))  # on the same images, at the same time
    after = _after(result, found, size)
    said = (*doubts(len(taught.calibration), planned.settings), *remarks(found), *in_time(found, planned.depth_ms))
    note_all(said, tell)
    report = _report(job, planned, before, after)
    report = replace(
        report,
        layers=layer_sizes(widths, widths),
        rows=tuple(taught.rows),
        notes=(*report.notes, *taught.notes, *said),
        sections=(section(found, said),),
        variants=_other_ways(found),
    )
    return RoutedRun(write_results(result, report, folder, job.output, tell), found)


def plan(job: RouteJob, tell: Tell = silent) -> Planned:
    """Open what the job names and give the network its ways out; nothing is trained and nothing written.

    Raises:
        CompressorError: it cannot be opened, nothing can be skipped, or no route could meet the target.
    """
    subject, chain, units = _surveyed(job, tell)
    check(job.choice)
    settings = every_unit(job.choice, len(units.units))
    routed = make_routed(chain, units.units, settings)
    counted = costs(routed)
    if settings.target_macs is not None:
        within(settings.target_macs, counted.routed[0], counted.whole)
    if settings.target_ms is None:
        return Planned(subject, routed, units, settings, counted)
    tell(Stage("timing every depth on ONNX Runtime"))
    depth_ms = distributed.from_first(lambda: depth_times(routed, subject.example))
    check_time(depth_ms, settings.target_ms)
    return Planned(subject, routed, units, settings, counted, depth_ms)


def list_units(job: RouteJob, tell: Tell = silent) -> Units:
    """What of a network can be skipped, for `--list`; nothing is changed."""
    return _surveyed(job, tell)[2]


def dry_run(job: RouteJob, tell: Tell = silent) -> tuple[Report, Planned]:
    """The report of what `route` would do, and what each depth would cost; nothing is trained and written."""
    planned = plan(job, tell)
    reasons = dict.fromkeys(("macs_thop", "file_bytes", "latency_ms", "top1"), "not measured in a dry run")
    params = sum(each.numel() for each in planned.subject.module.parameters())
    before = Measurements(macs=planned.costs.whole, params=params, reasons=reasons)
    cheapest, dearest = planned.costs.routed[0], planned.costs.routed[-1]
    span = f"{cheapest / 1e6:.3g} to {dearest / 1e6:.3g} MMAC an image, as the router decides"
    params = sum(each.numel() for each in planned.routed.parameters())
    after = Measurements(params=params, reasons={**reasons, "macs": span})
    return _report(job, planned, before, after), planned


def _surveyed(job: RouteJob, tell: Tell) -> tuple[Subject, Chain, Units]:
    tell(Stage("opening the model" if job.data is None else "opening the model and the data"))
    subject = open_subject(job.model, job.data, job.loading, job.training.device)
    note_all(subject.notes, tell)
    assert subject.opened.input_shape is not None
    if any(isinstance(module, Routed) for module in subject.module.modules()):
        raise UsageError(
            "this network is routed already: give the one that it was made of, and another --out; a cheaper threshold "
            "needs no training: set_threshold_"
        )
    tell(Stage("finding what can be skipped"))
    chain, units = survey(subject.module, subject.opened.input_shape)
    return subject, chain, units


def _measured(planned: Planned, taught: Taught) -> Findings:
    """Choose on validation images, set the thresholds, and look at the test set."""
    routed, counted, settings, data = planned.routed, planned.costs, planned.settings, planned.subject.data
    assert data is not None
    seen, test = observe(routed, taught.calibration, data), observe(routed, data.test, data)
    curve = routed_points(seen, counted)
    if settings.target_ms is not None:
        chosen = choose_in_time(curve, planned.depth_ms, settings.target_ms)
    elif settings.threshold is None:
        chosen = choose(curve, counted, target_macs=settings.target_macs, max_drop=settings.max_drop)
    else:
        chosen = point_at(seen, counted, settings.threshold)
    routed.set_threshold_(chosen.setting)
    measured = point_at(test, counted, chosen.setting)
    ways = [Way("the router", measured)]
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
    return Findings(planned.units.units, routed.layout.leave_after, counted.whole, 0.0, tuple(ways), curves, taught, {})


def _times(subject: Subject, whole: nn.Module) -> dict[str, dict[str, ImageTimes]]:
    """Both networks on single test images, on torch and on ONNX Runtime where both export."""
    data, routed = subject.data, subject.module
    assert data is not None
    images = examples(data.test, data, _TIMED_IMAGES, subject.device)
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
            files = {}
            for name, module in (("whole", whole), ("routed", routed)):
                files[name] = Path(folder) / f"{name}.onnx"
                export_onnx(module, images[:2], files[name], check_inputs=images)
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
    timing: dict[str, Any] | None = None
    if found.times:
        timing = _timing(found, "routed")
        if "onnxruntime" not in timing:
            reasons["latency_ms.onnxruntime"] = "the network could not be exported"
    else:
        reasons["latency_ms"] = "left out by --no-latency"
    return Measurements(
        macs=round(found.routed.macs),
        params=sum(each.numel() for each in subject.module.parameters()),
        file_bytes=size,
        latency_ms=timing,
        top1=found.routed.top1,
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


def _report(job: RouteJob, planned: Planned, before: Measurements, after: Measurements) -> Report:
    return report_of(
        job,
        planned.subject,
        before,
        after,
        frozen=planned.units.refused,
        notes=tuple(planned.subject.notes),
    )
