"""AdapNet from a network and data to a smaller network and its report: `compressor prune --method adapnet`.

Reference: Ahmadluei, Faez, Masoumi, "Adaptive Pruning of Convolutional Neural Network".
"""

from dataclasses import replace
from functools import partial

from compressor.graph import capture
from compressor.graph.channels import Channels
from compressor.pruning.adapnet.method import AdapNet
from compressor.pruning.adapnet.schedule import check_period
from compressor.pruning.adapnet.settings import in_epochs
from compressor.pruning.settings import in_time
from compressor.report.measurements import Measurements
from compressor.runs.course import Network
from compressor.runs.goals import Guard, Target
from compressor.runs.jobs import AdaptJob
from compressor.runs.latency_goal import goal_in_ms
from compressor.runs.periods import REFITTED_BY, Periods
from compressor.runs.phases import Phases, TrainingPhases, hints
from compressor.runs.run import UNMEASURED, Run
from compressor.runs.stages import Stage
from compressor.runs.subject import calibration_inputs, refuse_routed
from compressor.runs.tuning import measured_here
from compressor.training import distributed
from compressor.training.events import NoteEvent

_TRIED_STEPS = 10  # of a period, for an estimate


class AdaptRun(Run[AdaptJob]):
    """AdapNet's three phases: before, while and after the structure changes."""

    channels: Channels
    method: AdapNet
    periods: Periods
    phases: Phases

    def plan(self) -> None:
        """Give every group of channels that may change to AdapNet; what it cuts depends on the training."""
        job, subject, data, notes = self.job, self.subject, self.data, self.note
        refuse_routed(subject, "prune")
        self.phases = Phases.of(job.adapnet, job.training, trained=self._trained, fill=job.goals.fill)
        steps = data.steps(self.phases.training)
        check_period(job.adapnet, steps)
        self.tell(Stage("finding which channels belong together"))
        self.channels = channels = capture(subject.module, subject.example, keep=job.goals.keep, also=job.goals.also)
        notes(*channels.notes, *hints(job.adapnet, subject.module))
        self.method = AdapNet(job.adapnet, classes=len(data.classes), steps_per_epoch=steps, seed=job.training.seed)
        self.method.adopt(subject.module, channels)
        self.phases_steps, self.period_steps = steps, self.method.lsep
        self.method.check_units(channels)
        guard = Guard(job.goals.undo_drop, partial(measured_here, subject), data)
        network = Network(subject.module, channels, subject.example, self.tell)
        inputs = calibration_inputs(subject, job.training.seed, REFITTED_BY) if job.adapnet.reconstruct else ()
        self.periods = Periods(network, self.method, self._target(), guard, job.goals.round_to, inputs)
        self.training = TrainingPhases(subject.module, data, self.periods, self.phases, job.distilling, self._trained)
        self.facts["frozen"] = {**channels.frozen, **self.method.locked}

    def _target(self) -> Target:
        """With times by the first process, which the others wait for."""
        goals, found = self.job.goals, list[Target]()
        if in_time(goals):
            self.tell(Stage("timing the network's layers"))

        def measured() -> dict[str, float]:
            goal = goal_in_ms(self.subject.module, self.subject.example, self.channels, goals)
            found.append(Target.of(goals, self.channels, goal))
            return found[0].measured()

        known = distributed.from_first(measured)
        if not found:
            measured()
        return found[0].as_measured(known)

    @property
    def _trained(self) -> bool:
        return self.job.model.model is not None

    def predicted(self) -> tuple[Measurements, Measurements]:
        """The costs before; those after are known when it has trained."""
        settings, units = self.job.adapnet, list(self.method.units.values())
        self.note(
            f"would train {self.phases.startup} epochs without changes, up to {settings.max_epochs} in which every "
            f"{self.method.lsep} steps the structure changes, and {settings.finetune_epochs} more",
            f"would judge {sum(unit.filters for unit in units)} filters in {len(units)} groups: "
            f"{', '.join(f'{unit.name} ({unit.filters})' for unit in units)}",
        )
        open_ends = dict.fromkeys(("macs", "macs_thop", "params"), "AdapNet decides while it trains")
        return self.size, Measurements(reasons={**UNMEASURED, **open_ends})

    def epochs(self) -> float:
        """Of all three phases, at most: a target may end the second one sooner."""
        settings = self.job.adapnet
        return self.phases.startup + settings.max_epochs + settings.finetune_epochs

    def within(self, epochs: int) -> AdaptJob:
        """As a sweep shares them out."""
        return replace(self.job, adapnet=in_epochs(self.job.adapnet, epochs))

    def changes(self) -> float:
        """At most."""
        return self.job.adapnet.max_epochs * self.phases_steps / self.period_steps

    def shorten(self) -> None:
        """Into the second phase at once, with short periods."""
        self.training.phases = replace(self.phases, startup=0)
        self.method.lsep = min(self.method.lsep, _TRIED_STEPS)

    def train(self) -> None:
        """All three phases, on one optimizer."""
        self.periods.tell = self.record
        self.training.run(self.folder.path, self.record, resume=self.folder.resuming)
        self.rows = self.training.rows
        self.notes += self.training.notes
        found = self.periods.findings()
        self.note(*found.pop("notes"))
        self.facts |= found
        if "target" in found["refused"]:
            self.tell(NoteEvent(found["refused"]["target"]))
