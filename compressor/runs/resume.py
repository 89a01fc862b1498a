"""Go on with a run or a sweep that was broken off: `compressor resume`."""

from compressor.graph.neutral import afresh
from compressor.report.report import Report
from compressor.report.run_comparison import RunComparison
from compressor.runs.job import RunJob
from compressor.runs.jobs import ShrinkJob, SweepJob
from compressor.runs.restart import from_checkpoint, restart
from compressor.runs.shrink import shrink
from compressor.runs.stages import Callback, silent
from compressor.runs.sweep import sweep


@afresh()
def resume(
    path: str, tell: Callback = silent, *, trust: bool = False, arch: str | None = None
) -> Report | RunComparison:
    """Finish the run in a folder, which may have been moved; returns its report, of a sweep the comparison.

    `trust` lets the run's model file run code, where the run began with that; `arch` names the run's architecture
    again, where it is code that was never named on this machine.

    Raises:
        FileError: there is no run in the folder, or its settings are damaged.
        UsageError: the run is finished, or would run code that was not named on this machine, or the model has changed.
        CompressorError: anything else the user can mend.

    Example:
        report = compressor.resume("runs/small")
        report.after.top1
    """
    found: Report | RunComparison = restart(path, tell, _go_on, trust=trust, arch=arch)
    return found


def _go_on(job: RunJob, tell: Callback) -> Report | RunComparison:
    """A sweep and a search go on in their folders by themselves."""
    if isinstance(job, SweepJob):
        return sweep(job, tell)
    return shrink(job, tell) if isinstance(job, ShrinkJob) else from_checkpoint(job, tell)
