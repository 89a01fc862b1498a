"""The work at the end of a period, in order: remove, see concepts, prune, merge, insert.

A boundary lives as long as its plans are being carried out; what lasts is in the units.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from compressor.graph.channels import Channels, Group
from compressor.pruning.adapnet import clusters, concepts, insert, merge, prune, tables
from compressor.pruning.adapnet.extract import extract
from compressor.pruning.adapnet.neighbours import indicators, newcomer, strength
from compressor.pruning.adapnet.observe import Means
from compressor.pruning.adapnet.settings import AdapNetSettings
from compressor.pruning.adapnet.tables import ROW_MIN
from compressor.pruning.adapnet.unit import Unit
from compressor.pruning.reconstruction.fold import shares
from compressor.surgery.edits import Edit, Insert, Merge, Plan, Prune

PROTECTION = 2  # periods in which a new filter is not judged
UNIFORM = "equally active on all concepts, and the next layer draws little on it"


class Owner(Protocol):
    """What a boundary reads of the method it belongs to."""

    settings: AdapNetSettings
    classes: int
    generator: torch.Generator
    means: Means
    units: dict[str, Unit]
    coupled: frozenset[str]
    period: int

    @property
    def beta(self) -> float: ...


class Boundary:
    """One boundary: `plans` decides, `removed` counts what the stop rule counts, `rows` tells what was seen."""

    def __init__(
        self,
        owner: Owner,
        model: nn.Module,
        current: Callable[[], Channels],
        judged: list[Unit],
        admit: Callable[[Plan], Plan],
    ) -> None:
        self.owner, self.settings, self.generator = owner, owner.settings, owner.generator
        self.model, self.current = model, current
        self.judged, self.admit = judged, admit
        self.removed = 0
        self._found: dict[str, clusters.Clustering] = {}
        self._costs: dict[str, float] | None = None  # parameters of one channel of each group, by the mean of all
        self._told: dict[str, dict[str, Any]] = {unit.name: {} for unit in judged}

    def plans(self) -> Iterator[Plan]:
        """The plans, in order; empty ones are left out. Units follow each plan once it was carried out.

        A plan after which the channels are the same object as before was refused: its filters are spared.
        """
        for decide in (self._removals, self._prunes_and_merges, self._insertions):
            plan = self.admit(Plan(tuple(decide()), self.owner.period))
            if plan.edits:
                before = self.current()
                yield plan
                (self._spare if self.current() is before else self._follow)(plan.edits)

    def rows(self) -> list[dict[str, Any]]:
        """What was found in every judged group, as plain data."""
        common = {"period": self.owner.period, "beta": self.owner.beta}
        return [
            {
                **common,
                "group": unit.name,
                "filters": unit.filters,
                "clusters": unit.clusters,
                "concepts": len(unit.concepts),
                "frozen": len(unit.frozen_ids),
                **self._told[unit.name],
            }
            for unit in self.judged
        ]

    def _removals(self) -> list[Edit]:
        """The filters that were frozen in the period that ends, whatever they did in it, and those that never fire."""
        edits: list[Edit] = []
        for unit in self.owner.units.values():
            gone = torch.nonzero(unit.frozen).flatten().tolist()
            why = dict.fromkeys(gone, f"{UNIFORM}; frozen for one period")
            if unit.recording is not None and unit.recording.filled:
                unit.silent = torch.where(unit.recording.dead(), unit.silent + 1, 0)
            if unit in self.judged:
                dead = prune.dead(unit.silent, (unit.protect > 0) | unit.frozen, self._room(unit, len(gone)))
                why |= dict.fromkeys(dead, f"never active in {prune.DEAD_PERIODS} periods")
                self.removed += len(dead)
            edits += self._prune_edits(unit, why)
        return edits

    def _prune_edits(self, unit: Unit, why: dict[int, str]) -> list[Edit]:
        if not why:
            return []
        channels = self.current()
        group = channels.group(unit.name)
        means = self.owner.means.of(channels, group)
        inherited = self._heirs(unit, group, list(why))
        edits: list[Edit] = []
        for (position, reason), heirs_of in zip(why.items(), inherited):
            identity = unit.ids[position]
            mean = None
            if means is not None:
                mean = (means[identity] - sum(share * means[heir] for heir, (share,) in heirs_of.items()),)
            numbers = unit.reasons.get(identity, {})
            edits.append(Prune(unit.name, (identity,), reason, mean, numbers, heirs_of))
        return edits

    def _heirs(self, unit: Unit, group: Group, gone: list[int]) -> list[dict[int, tuple[float, ...]]]:
        """For each filter that goes, what part of its columns every one that stays takes over."""
        covariance = self.owner.means.covariance(group) if self.settings.reconstruct else None
        if covariance is None or len(gone) == unit.filters:
            return [{} for _ in gone]
        staying, parts = shares(covariance, gone)
        return [{unit.ids[i]: (part,) for i, part in zip(staying, column)} for column in parts.T.tolist()]

    def _prunes_and_merges(self) -> list[Edit]:
        """Concepts of all judged groups, then algorithms 2 and 3 on each; recorded maps are not needed afterwards."""
        self._found = extract(self.judged, self.owner.classes, self.settings, self.generator)
        edits: list[Edit] = []
        for unit in self.owner.units.values():
            unit.protect = (unit.protect - 1).clamp(min=0)
            if unit.name in self._found:
                self._see_concepts(unit, self._found[unit.name])
                chosen = self._choose_candidates(unit)
                edits += self._candidates_edits(unit, chosen)
                edits += self._merges(unit, {one.filter for one in chosen})
            unit.recording = None
        return edits

    def _see_concepts(self, unit: Unit, found: clusters.Clustering) -> None:
        beta, settings = self.owner.beta, self.settings
        # `extract` has counted this boundary already.
        verdicts = concepts.detect(unit.table, unit.concepts, found, unit.boundaries - 1, beta, settings)
        unit.concepts += [verdict.cluster for verdict in verdicts if verdict.accepted]
        limit = clusters.count_limit(self.owner.classes, len(found.points))
        dropped = clusters.retired(unit.idle, unit.concepts, unit.clusters, limit)
        if dropped:
            unit.forget_clusters_(dropped)
        self._told[unit.name] |= {"judged": len(verdicts), "accepted": sum(v.accepted for v in verdicts)}

    def _room(self, unit: Unit, planned: int) -> int:
        """How many more filters the group can lose."""
        return unit.filters - planned - prune.fewest(unit.original, self.settings)

    def _choose_candidates(self, unit: Unit) -> list[prune.Candidate]:
        channels = self.current()
        group = channels.group(unit.name)
        kse = partial(indicators, self.model, channels, group, self.generator)
        ranks: dict[str, Callable[[], torch.Tensor | None]] = {
            "change": partial(self.owner.means.change, self.model, channels, group),
            "weights": partial(strength, self.model, channels, group),
        }
        return prune.candidates(
            unit.table,
            unit.concepts,
            unit.protect == 0,
            self._room(unit, 0),
            self._threshold(unit),
            kse,
            self.settings,
            ranks.get(self.settings.victims),
        )

    def _threshold(self, unit: Unit) -> float:
        """The threshold in this period, lower for a group whose channels are dear and higher where they are cheap."""
        beta, bias = self.owner.beta, self.settings.params_bias
        if not bias:
            return beta
        if self._costs is None:
            self._costs = prune.relative_costs(self.current(), list(self.owner.units), Channels.params)
        return prune.biased(beta, self._costs[unit.name], bias)

    def _candidates_edits(self, unit: Unit, chosen: list[prune.Candidate]) -> list[Edit]:
        """Freeze the candidates; without freezing they go at once."""
        self.removed += len(chosen)
        for one in chosen:
            numbers = {"p_value": one.p_value, "beta": one.beta, "kse": one.kse, "gamma1": one.gamma1}
            unit.reasons[unit.ids[one.filter]] = numbers
            unit.frozen[one.filter] = self.settings.freeze
        if self.settings.freeze:
            return []
        return self._prune_edits(unit, dict.fromkeys((one.filter for one in chosen), UNIFORM))

    def _merges(self, unit: Unit, candidates: set[int]) -> list[Edit]:
        group = self.current().group(unit.name)
        if not self.settings.merge or group.prune_only is not None or unit.recording is None:
            return []
        eligible = (unit.protect == 0) & (unit.table.sum(1) >= ROW_MIN)
        eligible[list(candidates)] = False
        shares = tables.concept_shares(unit.table, unit.concepts)
        room = self._room(unit, len(candidates))
        found = merge.pairs(unit.recording.similarity(), shares, eligible, room, self.settings)
        self.removed += len(found)
        self._told[unit.name]["merged"] = len(found)
        why = "their maps look alike and they are active on the same concepts"
        return [
            Merge(
                unit.name,
                unit.ids[pair.keep],
                unit.ids[pair.drop],
                why,
                {"cosine": pair.cosine, "gamma2": pair.gamma2, "chebyshev": pair.chebyshev, "gamma3": pair.gamma3},
            )
            for pair in found
        ]

    def _insertions(self) -> list[Edit]:
        edits: list[Edit] = []
        for unit in self.judged:
            edit = self._insertion(unit) if unit.name in self._found else None
            edits += [edit] if edit is not None else []
        return edits

    def _insertion(self, unit: Unit) -> Edit | None:
        settings, channels = self.settings, self.current()
        group = channels.group(unit.name)
        coupled = unit.name in self.owner.coupled or group.prune_only is not None
        if not settings.insert or coupled or unit.filters >= int(settings.max_width * unit.original):
            return None
        judged = ~unit.frozen & (unit.table.sum(1) >= ROW_MIN)
        need = insert.need(tables.concept_shares(unit.table, unit.concepts), judged)
        masters = need.masters()
        if not masters:
            return None
        drawn = masters[int(torch.randint(len(masters), (), generator=self.generator))]
        names = list(self.owner.units)
        kind = insert.correlation(names.index(unit.name), len(names))
        rows, became = newcomer(self.model, channels, group, unit.ids[drawn], kind, self.generator)
        numbers = {
            "p1": float(need.p1[drawn]),
            "p2": float(need.p2[drawn]),
            "sum_p1": need.sum_p1,
            "sum_p2": need.sum_p2,
            "concepts": len(unit.concepts),
        }
        self._told[unit.name]["inserted"] = 1
        why = f"filters are active on too many concepts; its kernels are the {became} of another's"
        return Insert(unit.name, unit.ids[drawn], why, rows, "zero", numbers)

    def _spare(self, edits: Sequence[Edit]) -> None:
        """Protect the filters of edits that were refused, so that they are not proposed again at once."""
        for edit in edits:
            unit = self.owner.units[edit.group]
            if isinstance(edit, Insert):
                continue
            if isinstance(edit, Merge) or unit.reasons.pop(edit.channels[0], None) is None or not self.settings.freeze:
                self.removed -= 1  # what was frozen a period ago was counted then
            for identity in edit.channels:
                at = unit.ids.index(identity)
                unit.frozen[at] = False
                unit.protect[at] = PROTECTION + 1

    def _follow(self, edits: Sequence[Edit]) -> None:
        """Let the units follow edits that were carried out."""
        channels = self.current()
        pruned: dict[str, list[int]] = defaultdict(list)
        for edit in edits:
            unit = self.owner.units[edit.group]
            if isinstance(edit, Prune):
                pruned[edit.group] += edit.channels
            elif isinstance(edit, Merge):
                unit.merge_(unit.ids.index(edit.keep), unit.ids.index(edit.drop))
            else:
                ids = channels.group(edit.group).ids.tolist()
                position = unit.ids.index(edit.after) + 1
                # One more than asked: the next boundary counts down before it judges.
                unit.insert_(position, ids[position], PROTECTION + 1)
        for name, identities in pruned.items():
            unit = self.owner.units[name]
            unit.prune_([unit.ids.index(identity) for identity in identities])
        for name in {edit.group for edit in edits}:
            assert self.owner.units[name].ids == channels.group(name).ids.tolist(), f"{name} is out of step"
