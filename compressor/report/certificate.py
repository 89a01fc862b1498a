"""What is promised of a smaller network on fresh images, as plain data and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from compressor.report.figure import TOP1

CONFIDENCE = 0.95  # of a promise, unless another is asked for


@dataclass(frozen=True)
class Certificate:
    """What is promised of a network against the one that it was made of, and what its images showed."""

    drop: float  # at most, of top-1 as a share of the images: what they allow to be promised of this candidate alone
    confidence: float
    images: int  # which chose nothing; of a user's task examples, or batches
    observed: float  # the drop on them
    kept: bool  # whether what was asked for is promised
    asked: float
    would_do: int | None  # images that would be enough if as many of them were lost; None where kept, or none would
    worst_class: str = ""
    worst_drop: float = 0.0
    worst_images: int = 0
    agreement: float | None = None  # share of the images that both networks have right, or both wrong
    otherwise: str = ""  # what is done where nothing is promised
    subject: str = ""  # of which network of several it speaks, to begin the sentence with
    exit: int | None = None  # the exit that it is of, where one is asked for by its number
    figure: str = TOP1  # that may fall; of another than top-1 the drop is in its units
    unit: str = "images"
    differed: int | None = None  # images that the deepest exit gives another class; None where there are no exits

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the sentence."""
        return {**asdict(self), "words": self.words()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Certificate":
        """The certificate that `to_json` wrote. Raises KeyError or TypeError for other data."""
        return cls(**{each.name: data[each.name] for each in fields(cls)})

    @property
    def kind(self) -> str:
        """How sure the bound is: exact for top-1, and for a user's own figure an estimate."""
        return "exact" if self.figure == TOP1 else "bootstrap estimate"

    def words(self) -> str:
        """The sentence for a report."""
        shown = of = ""
        scale, digits, unit = 1, ".4g", f"of {self.figure}"
        if self.figure == TOP1:
            scale, digits, unit, of = 100, ".2f", "points", " of top-1"
        if self.agreement is not None:
            shown = (
                f" The class that loses most, {self.worst_class}, loses {100 * self.worst_drop:.1f} points of its "
                f"{self.worst_images:,} images; both networks are right or wrong together on {self.agreement:.1%}."
            )
        asked = f"at most {scale * self.asked:g} {unit}{of}"
        observed, drop = (format(scale * each, digits) for each in (self.observed, self.drop))
        if self.kept:
            begin = f"{self.subject} loses" if self.subject else "Loses"
            return (
                f"{begin} {asked} on {self.unit} like these, with {self.confidence:.0%} confidence "
                f"(n = {self.images:,}, {self.kind}; {observed} on them).{shown}"
            )
        why = (
            f"on these it loses {observed}"
            if self.would_do is None
            else f"with as many lost as here, {100 * max(self.observed, 0):.2f} points, {self.would_do:,} would do"
        )
        why += f", and at most {drop} {unit} can be promised on these"
        otherwise = f", so {self.otherwise}" if self.otherwise else ""
        estimate = "" if self.figure == TOP1 else f" ({self.kind})"
        return (
            f"No promise of {asked} can be made on {self.images:,} {self.unit} at "
            f"{self.confidence:.0%} confidence{estimate}{otherwise}; {why}.{shown}"
        )
