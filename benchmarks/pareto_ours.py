"""Our arms of `benchmarks/pareto.py`: AdapNet and the one-shot scores, with and without distillation."""

import copy
from functools import partial

from benchmarks.adapnet_small import looked_at
from benchmarks.pareto_case import Arm, Case, Outcome
from compressor.graph import capture
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.oneshot import decide
from compressor.pruning.scores import Given
from compressor.pruning.settings import PruneSettings
from compressor.pruning.target import TOLERANCE
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.periods import Periods
from compressor.runs.phases import TrainingPhases
from compressor.runs.settings import GoalSettings
from compressor.surgery import operate_
from compressor.training.batch_norm import recalibrate_
from compressor.training.settings import DistillSettings


def adapnet(case: Case, share: float, *, distill: bool = False) -> Outcome:
    """AdapNet until the target is met, then fine-tuning with the epochs that are left.

    Where too few filters qualified in the epochs it may change the structure in, l1 over the whole network takes the
    rest, and the row says what AdapNet itself had left.
    """
    model, data = copy.deepcopy(case.start), case.data
    goals = GoalSettings(target_macs=share)
    whole, phases = capture(model, case.example), case.phases(0)
    steps = data.steps(phases.training)
    method = AdapNet(case.settings, classes=len(data.classes), steps_per_epoch=steps, seed=case.training.seed)
    inputs = looked_at(data, case.training.seed, model) if case.settings.reconstruct else ()
    periods = Periods(Network(model, whole, case.example), method, Target.of(goals, whole), inputs=inputs)
    training = TrainingPhases(model, data, periods, phases, DistillSettings(distill), trained=True)
    training.run()
    changing = sum(row["phase"] != "period" for row in training.rows)
    kinds = [row["kind"] for plan in periods.plans for row in plan]
    facts = {
        "changing_epochs": changing,
        "macs_left_by_adapnet": periods.channels.macs() / whole.macs(),
        "edits": {kind: kinds.count(kind) for kind in ("prune", "merge", "insert")},
    }
    if periods.channels.macs() > (1 + TOLERANCE) * share * whole.macs():
        choice = PruneSettings(method="l1", allocate="global", target_macs=share * whole.macs())
        operate_(model, decide(model, periods.channels, choice).plan, periods.channels, training.optimizer)
    step = case.distilling() if distill else None
    case.train_(model, changing, case.epochs, step, training.optimizer)
    return Outcome(model, facts)


def one_shot(case: Case, share: float, *, method: str, allocate: str, distill: bool = False) -> Outcome:
    """Score, cut, measure batch norm anew, fine-tune."""
    model = copy.deepcopy(case.start)
    channels = capture(model, case.example)
    choice = PruneSettings(method=method, allocate=allocate, target_macs=share, seed=case.training.seed)  # type: ignore[arg-type]
    batches = case.score_batches() if method == "taylor" else ()
    operate_(model, decide(model, channels, choice, Given(batches)).plan, channels)
    recalibrate_(model, case.data.train, case.data, batch_size=case.settings.batch_size)
    case.train_(model, 0, case.epochs, case.distilling() if distill else None)
    return Outcome(model)


def untouched(case: Case, share: float) -> Outcome:
    """The same epochs without any change, for what the network is worth whole."""
    model = copy.deepcopy(case.start)
    case.train_(model, 0, case.epochs)
    return Outcome(model)


ARMS: dict[str, Arm] = {
    "adapnet": adapnet,
    "adapnet + distill": partial(adapnet, distill=True),
    "l1": partial(one_shot, method="l1", allocate="uniform"),
    "l1 + distill": partial(one_shot, method="l1", allocate="uniform", distill=True),
    "taylor": partial(one_shot, method="taylor", allocate="global"),
    "taylor + distill": partial(one_shot, method="taylor", allocate="global", distill=True),
    "random": partial(one_shot, method="random", allocate="uniform"),  # what the choice of filters is worth
}
