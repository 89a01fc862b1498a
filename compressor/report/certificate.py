"""What is promised of a smaller network on fresh images, as plain data and in words."""

from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95  # of a promise, unless another is asked for


@dataclass(frozen=True)
class Certificate:
    """What is promised of a network against the one that it was made of, and what its images showed."""

    drop: float  # of top-1 at most, as a share of the images; 1 where nothing is promised
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

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def words(self) -> str:
        """The sentence for a report."""
        if not self.kept:
            why = (
                f"on these the network with all its layers loses {100 * self.observed:.2f}"
                if self.would_do is None
                else f"with as many lost as here {self.would_do:,} would do"
            )
            return (
                f"No promise of at most {100 * self.asked:g} points can be made on {self.images:,} images at "
                f"{self.confidence:.0%} confidence, so all layers run; {why}."
            )
        return (
            f"Loses at most {100 * self.asked:g} points of top-1 on images like these, with {self.confidence:.0%} "
            f"confidence (n = {self.images:,}, exact; {100 * self.observed:.2f} on them). The class that loses most, "
            f"{self.worst_class}, loses {100 * self.worst_drop:.1f} of its {self.worst_images:,} images' points; both "
            f"networks are right or wrong together on {self.agreement:.1%}."
        )
