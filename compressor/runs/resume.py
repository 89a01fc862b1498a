"""Go on with a run or a sweep that was broken off: `compressor resume`."""

from typing import cast

from compressor.graph.neutral import afresh
from compressor.report.report import Report
from compressor.report.run_comparison import RunComparison
from compressor.runs.detach import Detached
from compressor.runs.jobs import SweepJob
from compressor.runs.restart import JOBS, restart
from compressor.runs.route import RoutedRun
from compressor.runs.stages import Tell, silent
from compressor.runs.sweep import sweep

Finished = Report | RunComparison | Detached | RoutedRun  # what the run itself would have returned


def resume(path: str, tell: Tell = silent, *, trust: bool = False, arch: str | None = None) -> Report | RunComparison:
    """Finish the run in a folder, which may have been moved; returns the report that was written, of a sweep the
    comparison.

    `trust` lets the run's model file run code, where the run began with that; `arch` names the run's architecture
    again, where it is code that was never named on this machine.

    Raises:
        FileError: there is no run in the folder, or its settings are damaged.
        UsageError: the run is finished, or would run code that nobody here asked for, or the model has changed.
        CompressorError: anything else the user can mend.

    Example:
        report = compressor.resume("runs/small")
        report.after.top1
    """
    found = finish(path, tell, trust=trust, arch=arch)
    return found.report if isinstance(found, Detached | RoutedRun) else found


@afresh()
def finish(path: str, tell: Tell = silent, *, trust: bool = False, arch: str | None = None) -> Finished:
    """The same, with all that the run found out."""
    return cast(Finished, restart(path, tell, {**JOBS, SweepJob: _sweep}, trust=trust, arch=arch))


def _sweep(job: SweepJob, tell: Tell, *, resume: bool) -> RunComparison:
    """A sweep goes on in its folder by itself."""
    return sweep(job, tell)
