"""What is promised of a smaller network on fresh images, as plain data and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CONFIDENCE = 0.95  # of a promise, unless another is asked for


@dataclass(frozen=True)
class Certificate:
    """What is promised of a network against the one that it was made of, and what its images showed."""

    drop: float  # of top-1 at most, as a share of the images: what they allow to be promised of this candidate alone
    confidence: float
    images: int  # which chose nothing
    observed: float  # the drop on them
    kept: bool  # whether what was asked for is promised
    asked: float
    would_do: int | None  # images that would be enough if as many of them were lost; None where kept, or none would
    worst_class: str
    worst_drop: float
    worst_images: int
    agreement: float  # share of the images that both networks have right, or both wrong
    otherwise: str = ""  # what is done where nothing is promised
    subject: str = ""  # of which network of several it speaks, to begin the sentence with
    exit: int | None = None  # the exit that it is of, where one is asked for by its number
    differed: int | None = None  # images that the deepest exit gives another class; None where there are no exits

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the sentence."""
        return {**asdict(self), "words": self.words()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Certificate":
        """The certificate that `to_json` wrote. Raises KeyError or TypeError for other data."""
        return cls(**{each.name: data[each.name] for each in fields(cls)})

    def words(self) -> str:
        """The sentence for a report."""
        shown = (
            f"The class that loses most, {self.worst_class}, loses {100 * self.worst_drop:.1f} points of its "
            f"{self.worst_images:,} images; both networks are right or wrong together on {self.agreement:.1%}."
        )
        if self.kept:
            begin = f"{self.subject} loses" if self.subject else "Loses"
            return (
                f"{begin} at most {100 * self.asked:g} points of top-1 on images like these, with "
                f"{self.confidence:.0%} confidence (n = {self.images:,}, exact; {100 * self.observed:.2f} on them). "
                f"{shown}"
            )
        why = (
            f"on these it loses {100 * self.observed:.2f}"
            if self.would_do is None
            else f"with as many lost as here, {100 * max(self.observed, 0):.2f} points, {self.would_do:,} would do"
        )
        otherwise = f", so {self.otherwise}" if self.otherwise else ""
        why += f", and at most {100 * self.drop:.2f} points can be promised on these"
        return (
            f"No promise of at most {100 * self.asked:g} points of top-1 can be made on {self.images:,} images at "
            f"{self.confidence:.0%} confidence{otherwise}; {why}. {shown}"
        )
