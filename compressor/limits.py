"""How large a file may be before it is opened; nothing heavy is imported, so that settings can take the default."""

from __future__ import annotations

from compressor.errors import FileError

GIB = 1 << 30
LARGEST_GIB = 16.0  # of a model file, as it lies on the disk and unpacked


def check_size(what: str, size: int, most_gib: float = LARGEST_GIB) -> None:
    """Raises FileError where `size` bytes are more than `most_gib`; `what` begins the message, "model.pt is"."""
    if size > most_gib * GIB:
        raise FileError(
            f"{what} {size / GIB:,.1f} GiB, and at most {most_gib:g} are opened: give --max-size {size / GIB + 1:.0f} "
            "if that is right"
        )
