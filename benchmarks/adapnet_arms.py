"""The arms of `benchmarks/adapnet_variants.py`: one-shot pruning, AdapNet, AdapNet without its parts, and variants.

All start from the same weights and train the same epochs on the same images, with distillation from the start. All end
at the same multiply-adds: what AdapNet leaves above them goes by block OBS, and what reads it is refitted.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.adapnet_show import BASE
from benchmarks.real_arms import Case, Outcome
from compressor.graph import capture
from compressor.graph.channels import Channels, Ids
from compressor.graph.tensors import device_of
from compressor.pruning import consumers, obs
from compressor.pruning.adapnet import boundary, extract, neighbours, prune, tables
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.observe import reader_inputs
from compressor.pruning.adapnet.settings import PRESETS, AdapNetSettings
from compressor.pruning.adapnet.unit import Unit
from compressor.pruning.consumers import Consumer
from compressor.pruning.obs import Curve
from compressor.pruning.price import Goal, macs_price
from compressor.pruning.scores import Scores, in_order
from compressor.pruning.selection import select
from compressor.pruning.settings import PruneSettings
from compressor.runs.apply import apply_plan_
from compressor.runs.course import Network
from compressor.runs.goals import Target
from compressor.runs.periods import Periods
from compressor.runs.phases import MOMENTUM
from compressor.runs.settings import GoalSettings
from compressor.surgery import Insert, Plan, operate_
from compressor.surgery.renumber import Renumbering
from compressor.training.checkpoint import TrainState
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit
from compressor.training.schedule import make_optimizer
from compressor.training.settings import TrainSettings

LOOKED_AT = 256  # images by which channels are judged and layers refitted
RECORDED = 8 * 2  # batches for one table of concepts: two periods
SHORT = replace(PRESETS["short"], lsep=7, max_epochs=2)

P = dict[str, Tensor]  # by group and in the order of its ids: how equally a filter answers to all concepts, 0 to 1
Table = Callable[[Case, nn.Module, Channels], P]
Orders = Callable[[Case, nn.Module, Channels, Mapping[str, Curve]], Mapping[str, Ids]]
Weighing = Callable[[Case, nn.Module, Channels, list[Consumer]], list[Consumer]]


# How equally filters answer to concepts.


def clustered(case: Case, model: nn.Module, channels: Channels) -> P:
    """The paper's: p-values over the clusters of maps that algorithm 1 takes for concepts."""
    method = AdapNet(replace(SHORT, lsep=RECORDED // 2), classes=len(case.data.classes), steps_per_epoch=1, seed=0)
    watched = copy.deepcopy(model).train()  # batch norm's statistics move
    method.adopt(watched, channels)
    images = iter(case.data.drawn(case.data.train, 64 * RECORDED, case.seed + 1, device_of(model), 64))
    for _ in range(2):
        watch = method.watch(watched, channels)
        with watch.on(watched), torch.no_grad():
            for _ in range(method.lsep):
                watched(next(images)[0])
                method.step_done(watch.take())
        units = list(method.units.values())
        found = extract.extract(units, method.classes, method.settings, method.generator)
        for name, clustering in found.items():
            method.units[name].see_(clustering, 1 << 10, method.beta, method.settings)
        for unit in units:
            unit.recording = None
        method.step = 0
    values = {
        name: tables.row_uniformity(unit.table, unit.concepts, SHORT.chi_s)
        if len(unit.concepts) > 1
        else torch.full((unit.filters,), 0.5)
        for name, unit in method.units.items()
    }
    return {name: each.nan_to_num(0.5) for name, each in values.items()}


def by_class(case: Case, model: nn.Module, channels: Channels) -> P:
    """Concepts are the classes: p-values over each filter's mean response to the images of every class."""
    return {name: tables.row_uniformity(each, list(range(each.shape[1])), 20.0).nan_to_num(0.5)
            for name, each in responses(case, model, channels).items()}  # fmt: skip


def responses(case: Case, model: nn.Module, channels: Channels) -> dict[str, Tensor]:
    """Mean activation (filters, classes) of every filter, as the first layer that reads it is given it."""
    sums: dict[str, Tensor] = {}
    now: list[Tensor] = []  # the labels of the batch that runs
    handles = []

    def add(name: str, dim: int, module: nn.Module, given: Any) -> None:
        x = given[0].detach().movedim(dim, 1).flatten(2).mean(2) if given[0].ndim > 2 else given[0].detach()
        table = sums.setdefault(name, torch.zeros(len(case.data.classes), x.shape[1], dtype=torch.float64))
        table.index_add_(0, now[-1].cpu(), x.double().cpu())

    for name, dim in reader_inputs(model, channels).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        handles.append(layer.register_forward_pre_hook(partial(add, name, dim)))
    training = model.training
    model.eval()
    with torch.no_grad():
        for x, labels in case.images(LOOKED_AT):
            now.append(labels)
            model(x)
    model.train(training)
    for handle in handles:
        handle.remove()
    found = {}
    for group in channels.free:
        read = next((p.tensor for p in group.places if p.role == "column" and p.tensor in sums), None)
        if read is not None:
            ids = channels.identities[read, 1]
            place = {identity: at for at, identity in reversed(list(enumerate(ids.tolist())))}
            found[group.name] = sums[read].clamp(min=0)[:, [place[i] for i in group.ids.tolist()]].T
    return found


def drawn(case: Case, model: nn.Module, channels: Channels) -> P:
    """A control: p-values by chance."""
    generator = torch.Generator().manual_seed(case.seed)
    return {group.name: torch.rand(group.size, generator=generator) for group in channels.free}


def shuffled(table: Table) -> Table:
    """A control: every filter with the p-value of another one of its group."""

    def given(case: Case, model: nn.Module, channels: Channels) -> P:
        generator = torch.Generator().manual_seed(case.seed)
        found = table(case, model, channels)
        return {name: each[torch.randperm(len(each), generator=generator)] for name, each in found.items()}

    return given


# What concepts change in the order of block OBS.


def prior(table: Table, weight: float = 0.5) -> Orders:
    """A filter's place in the order moves towards the front, the more equally it answers to all concepts."""

    def orders(case: Case, model: nn.Module, channels: Channels, found: Mapping[str, Curve]) -> Mapping[str, Ids]:
        return _reordered(channels, found, table(case, model, channels), lambda place, p: place - weight * p)

    return orders


def veto(table: Table, share: float = 0.25) -> Orders:
    """The filters that answer to the fewest concepts go last."""

    def orders(case: Case, model: nn.Module, channels: Channels, found: Mapping[str, Curve]) -> Mapping[str, Ids]:
        return _reordered(channels, found, table(case, model, channels), lambda place, p: place + 2.0 * (p < share))

    return orders


def _reordered(
    channels: Channels, found: Mapping[str, Curve], p: P, key: Callable[[Any, Any], Any]
) -> Mapping[str, Ids]:
    orders = {}
    for group in channels.free:
        curve = found[group.name]
        orders[group.name] = curve.ids
        if group.name in p:
            at = {identity: place for place, identity in enumerate(group.ids.tolist())}
            ranks = p[group.name].argsort(stable=True).argsort().double().numpy() / group.size
            ranks = ranks[[at[identity] for identity in curve.ids.tolist()]]
            orders[group.name] = curve.ids[np.argsort(key(np.arange(group.size) / group.size, ranks), kind="stable")]
    return orders


def twins(case: Case, model: nn.Module, channels: Channels, found: Mapping[str, Curve]) -> Mapping[str, Ids]:
    """Merges by least squares: of two filters that answer to the classes alike the one that costs less goes early."""
    p = {}
    for name, table in responses(case, model, channels).items():
        shares = tables.concept_shares(table, list(range(table.shape[1])))
        alike = nn.functional.normalize(shares - shares.mean(1, keepdim=True), dim=1)
        alike = (alike @ alike.T).fill_diagonal_(-1)
        ids = found[name].ids.tolist()
        place = torch.tensor([ids.index(i) for i in channels.group(name).ids.tolist()])
        p[name] = alike.masked_fill(place[None] < place[:, None], -1).amax(1)  # only those that cost more
    return _reordered(channels, found, p, lambda place, rank: place - 0.5 * rank)


def discriminant(case: Case, model: nn.Module, channels: Channels, layers: list[Consumer]) -> list[Consumer]:
    """Class-conditional Gram matrices: what tells the classes apart counts as much as everything else together."""
    parts: dict[int, list[Tensor]] = {}
    pairs = case.images(LOOKED_AT)
    images, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    with patch.object(obs, "_sensitivities", lambda *_: {}):
        for label in range(len(case.data.classes)):
            for each in consumers.consumers(model, channels, [images[labels == label]]):
                parts.setdefault(each.reader.start, []).append(each.mean)
    found = []
    for each in layers:
        means = torch.cat(parts[each.reader.start], 1)  # (groups, classes, unknowns)
        means = means - means.mean(1, keepdim=True)
        between = means.mT @ means / means.shape[1]
        scale = each.covariance.diagonal(dim1=1, dim2=2).sum() / between.diagonal(dim1=1, dim2=2).sum()
        found.append(replace(each, covariance=(each.covariance + scale * between) / 2))
    return found


# Rounds of pruning.


@dataclass(frozen=True)
class Choice:
    """How a round decides."""

    orders: Orders | None = None
    weigh: Weighing | None = None
    trials: bool = False  # among several ways to share the loss out, the one with the best validation figure

    def cut_(self, case: Case, model: nn.Module, channels: Channels, macs: float, optimizer: Any = None) -> Channels:
        """Bring a network down to so many multiply-adds, and refit what is left to what it was."""
        if macs >= channels.macs():
            return channels
        plan, inputs = self.plan(case, model, channels, macs)
        apply_plan_(model, plan, channels, case.example, optimizer, inputs=inputs)
        return Renumbering.of(plan, channels).apply(channels)

    def plan(self, case: Case, model: nn.Module, channels: Channels, macs: float) -> tuple[Plan, list[Tensor]]:
        """What goes, and the images by which that was decided."""
        inputs = [x for x, _ in case.images(LOOKED_AT)]
        layers = consumers.consumers(model, channels, inputs)
        if self.weigh is not None:
            layers = self.weigh(case, model, channels, layers)
        found = obs.curves(model, channels, layers)
        if self.orders is not None:
            found = obs.curves(model, channels, layers, self.orders(case, model, channels, found))
        calibrated = obs.calibrated(model, found, inputs)
        ways: list[Mapping[str, Curve]] = [calibrated]
        if self.trials:
            ways += [found, {name: replace(each, errors=each.errors**2) for name, each in calibrated.items()}]
        plans = [self._plan(channels, each, macs) for each in ways]
        plan = plans[0]
        if len(plans) > 1:

            def figure(plan: Plan) -> float:
                trial = copy.deepcopy(model)
                apply_plan_(trial, plan, channels, case.example, inputs=inputs)
                return evaluate(trial, case.data.validation, case.data).top1

            plan = max(plans, key=figure)
        return plan, inputs

    def _plan(self, channels: Channels, found: Mapping[str, Curve], macs: float) -> Plan:
        values = {}
        for group in channels.free:
            each = found[group.name]
            values[group.name] = in_order(np.append(each.errors[1:], np.inf), each.ids, group.ids)
        settings = PruneSettings(method="obs", allocate="error", round_to=1)
        return select(channels, Scores(values), settings, found, [Goal.at(macs_price(channels), macs)]).plan


@dataclass(frozen=True)
class Rounds:
    """Pruning in rounds while the network trains, each taking the same share of what is left."""

    choice: Choice = Choice()
    count: int = 1
    first: float = 0.0  # epochs of training before the first round,
    last: float = 0.0  # and before the last
    late: bool = False  # the rate falls only once the structure stands
    grow: float = 0.0  # the last round goes so much further, and filters are inserted where width is missing
    rates: Mapping[str, Any] | None = None  # of training, in place of everyone's

    def __call__(self, case: Case, share: float) -> Outcome:
        """A trained network at this share of the multiply-adds."""
        model = copy.deepcopy(case.start)
        channels = capture(model, case.example)
        whole, settings = channels.macs(), replace(case.training, **(self.rates or {}))
        steps = case.data.steps(settings)
        gaps = max(1, self.count - 1)
        rounds = [round(steps * (self.first + (self.last - self.first) * n / gaps)) for n in range(self.count)]
        facts: dict[str, Any] = {"inserted": 0}

        def prune_(number: int, optimizer: Any = None) -> None:
            nonlocal channels
            left = whole * share ** ((number + 1) / self.count)
            final = number + 1 == self.count and self.grow
            channels = self.choice.cut_(case, model, channels, left * (1 - self.grow if final else 1), optimizer)
            if final:
                channels, facts["inserted"] = grow_(case, model, channels, left, optimizer)

        def after(state: TrainState) -> None:
            for number, at in enumerate(rounds):
                if at and state.step == at:
                    prune_(number, state.optimizer)

        for number, at in enumerate(rounds):
            if not at:
                prune_(number)
        _train_(case, model, settings, after, round(self.last) if self.late else 0)
        return Outcome(model, case.epochs, facts | {"widths": {each.name: each.size for each in channels.free}})


def grow_(case: Case, model: nn.Module, channels: Channels, macs: float, optimizer: Any) -> tuple[Channels, int]:
    """Insert filters where the error curve says that width is missing, while there are multiply-adds for them."""
    generator, count = torch.Generator().manual_seed(case.seed), 0
    names = [group.name for group in channels.free]
    while True:
        inputs = [x for x, _ in case.images(LOOKED_AT)]
        found = obs.calibrated(model, obs.curves(model, channels, consumers.consumers(model, channels, inputs)), inputs)
        whole, edits, spent = channels.macs(), [], 0
        coupled = {group.name for group in channels.free if len(neighbours.makers(model, group)) > 1}
        needs = {}
        for group in channels.free:
            cost = whole - channels.macs([int(group.ids[0])])
            if group.name not in coupled and group.prune_only is None and cost > 0:
                needs[group.name] = (float(found[group.name].errors[1]) / cost, cost)
        for name in sorted(needs, key=lambda name: -needs[name][0])[:4]:
            group, cost = channels.group(name), needs[name][1]
            if whole + spent + cost > macs:
                continue
            source = int(found[name].ids[-1])  # the filter that would go last
            kind = boundary.insert.correlation(names.index(name), len(names))
            rows, _ = neighbours.newcomer(model, channels, group, source, kind, generator)
            edits.append(Insert(name, source, "width is missing", rows, "zero"))
            spent += cost
        if not edits:
            return channels, count
        channels, count = operate_(model, Plan(tuple(edits)), channels, optimizer), count + len(edits)


def _train_(
    case: Case, model: nn.Module, settings: TrainSettings, after: Callable[[TrainState], None], held: int = 0
) -> None:
    """All epochs; the rate stays in the first `held` of them."""
    optimizer, step = make_optimizer(model, settings), case.step()
    offset = 0

    def counted(state: TrainState) -> None:
        after(replace(state, step=state.step + offset))

    if held:
        constant = replace(settings, epochs=held, schedule="constant")
        fit(model, case.data, constant, step=step, after_step=counted, optimizer=optimizer)
        offset = held * case.data.steps(settings)
        settings = replace(settings, epochs=settings.epochs - held, first_epoch=held)
    fit(model, case.data, settings, step=step, after_step=counted, optimizer=optimizer)


# AdapNet by the paper's rules.


@dataclass(frozen=True)
class Adaptive:
    """AdapNet as it is: periods while the network trains, then the rest of the way by block OBS."""

    settings: AdapNetSettings = SHORT
    epochs: float = 2.0  # in which the structure changes
    broken: Callable[[], AbstractContextManager[Any]] = nullcontext  # what a control takes away
    rates: Mapping[str, Any] | None = None
    by_curves: bool = False  # no layer goes below the width that the error curves give it at the target

    def __call__(self, case: Case, share: float) -> Outcome:
        """A trained network at this share of the multiply-adds."""
        model = copy.deepcopy(case.start)
        channels = capture(model, case.example)
        settings = replace(case.training, **(self.rates or {}))
        steps, wanted = case.data.steps(settings), share * channels.macs()
        method = AdapNet(self.settings, classes=len(case.data.classes), steps_per_epoch=steps, seed=case.seed)
        target = Target.of(GoalSettings(target_macs=share if share < 1 else None), channels)
        inputs = [x for x, _ in case.images(LOOKED_AT)] if self.settings.reconstruct else ()
        course = Periods(Network(model, channels, case.example), method, target, inputs=inputs)
        optimizer, step = make_optimizer(model, settings), case.step()
        facts: dict[str, Any] = {}

        def watched(model: nn.Module, x: Any, y: Any) -> Any:
            if not facts:
                course.arm(optimizer)
            return step(model, x, y)

        def after(state: TrainState) -> None:
            if facts:
                return
            course.stepped(optimizer, {"epoch": state.epoch, "step": state.step})
            if state.batch == state.batches:
                course.close_epoch(optimizer)
            if not course.over and state.step < round(self.epochs * steps):
                return
            course.disarm()
            method.release()
            kinds = [row["kind"] for plan in course.plans for row in plan]
            facts["macs_left_by_adapnet"] = course.channels.macs() / channels.macs()
            facts["edits"] = {kind: kinds.count(kind) for kind in ("prune", "merge", "insert")}
            left = Choice().cut_(case, model, course.channels, wanted, optimizer)
            facts["widths"] = {each.name: each.size for each in left.free}

        widths = nullcontext()
        if self.by_curves:
            plan, _ = Choice().plan(case, model, channels, wanted)
            floors = Renumbering.of(plan, channels).apply(channels)
            widths = _at_least({group.name: group.size for group in floors.free})
        with self.broken(), widths:
            fit(model, case.data, settings, step=watched, after_step=after, optimizer=optimizer)
        return Outcome(model, case.epochs, facts)


@contextmanager
def _at_least(floors: Mapping[str, int]) -> Iterator[None]:
    """How many filters every group keeps, in place of a share of what it came with."""

    def room(looked: boundary.Looked, unit: Unit, planned: int) -> int:
        return unit.filters - planned - floors.get(unit.name, 1)  # down to one: no longer free

    with patch.object(boundary, "_room", room):
        yield


@contextmanager
def random_p() -> Iterator[None]:
    """Algorithm 2 by p-values drawn by chance."""

    def by_chance(table: Tensor, concepts: Sequence[int], strength: float) -> Tensor:
        return torch.rand(len(table), dtype=torch.float64)

    with patch.object(prune, "row_uniformity", by_chance):
        yield


@contextmanager
def other_concepts() -> Iterator[None]:
    """Every filter has the concepts of another one of its group, in all three algorithms."""
    known = tables.concept_shares

    def exchanged(table: Tensor, concepts: list[int]) -> Tensor:
        return known(table, concepts)[torch.randperm(len(table))]

    with patch.object(tables, "concept_shares", exchanged):
        yield


_OWN_RATES = {
    "lr": SHORT.lr, "batch_size": SHORT.batch_size, "momentum": MOMENTUM,
    "schedule": "step", "milestones": (1, 2), "gamma": 0.5,
}  # fmt: skip
_THREE = {"count": 3, "first": 0.0, "last": 1.0}

Arm = Callable[[Case, float], Outcome]
ARMS: dict[str, Arm] = {
    BASE: Rounds(),
    "one-shot, AdapNet's rates": Rounds(rates=_OWN_RATES),
    "AdapNet": Adaptive(),
    "AdapNet, its own rates": Adaptive(rates=_OWN_RATES),
    "AdapNet, random p-values": Adaptive(broken=random_p),
    "AdapNet, concepts of other filters": Adaptive(broken=other_concepts),
    "AdapNet, no merge": Adaptive(replace(SHORT, merge=False)),
    "AdapNet, no insert": Adaptive(replace(SHORT, insert=False)),
    "AdapNet, no freeze": Adaptive(replace(SHORT, freeze=False)),
    "AdapNet, widths by the curves": Adaptive(by_curves=True),
    "AdapNet, widths by the curves, random p-values": Adaptive(by_curves=True, broken=random_p),
    "AdapNet, widths by the curves, half an epoch": Adaptive(replace(SHORT, lsep=4), epochs=0.7, by_curves=True),
    "AdapNet, means alone": Adaptive(replace(SHORT, reconstruct=False)),
    "AdapNet, half an epoch": Adaptive(replace(SHORT, lsep=4), epochs=0.6),
    "one-shot, two looks": Rounds(count=2),
    "one-shot, three looks": Rounds(count=3),
    "one-shot, class Gram": Rounds(Choice(weigh=discriminant)),
    "one-shot, concepts prior": Rounds(Choice(prior(clustered))),
    "one-shot, random prior": Rounds(Choice(prior(drawn))),
    "one-shot, classes prior": Rounds(Choice(prior(by_class))),
    "one-shot, merges": Rounds(Choice(twins)),
    "one-shot, trials": Rounds(Choice(trials=True)),
    "after an epoch": Rounds(first=1.0, last=1.0),
    "after an epoch, rate held": Rounds(first=1.0, last=1.0, late=True),
    "3 rounds": Rounds(**_THREE),
    "3 rounds, rate held": Rounds(**_THREE, late=True),
    "3 rounds, grown": Rounds(**_THREE, grow=0.1),
    "3 rounds, concepts prior": Rounds(Choice(prior(clustered)), **_THREE),
    "3 rounds, concepts veto": Rounds(Choice(veto(clustered)), **_THREE),
    "3 rounds, random prior": Rounds(Choice(prior(drawn)), **_THREE),
    "3 rounds, shuffled prior": Rounds(Choice(prior(shuffled(clustered))), **_THREE),
    "3 rounds, random veto": Rounds(Choice(veto(drawn)), **_THREE),
    "3 rounds, classes prior": Rounds(Choice(prior(by_class)), **_THREE),
    "3 rounds, classes veto": Rounds(Choice(veto(by_class)), **_THREE),
    "3 rounds, class Gram": Rounds(Choice(weigh=discriminant), **_THREE),
    "3 rounds, merges": Rounds(Choice(twins), **_THREE),
    "3 rounds, trials": Rounds(Choice(trials=True), **_THREE),
}
