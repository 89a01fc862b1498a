"""What a person may choose, and how it is read; nothing heavy is imported, so that `--help` is quick."""

from compressor.settings.reading import Job, filled, known_to, read, recorded_of, settings_of, stranger
from compressor.settings.setting import About, Known, checked, fits, is_text, plain, same, setting

__all__ = [
    "About", "Job", "Known", "checked", "filled", "fits", "is_text", "known_to", "plain", "read", "recorded_of", "same",
    "setting", "settings_of", "stranger",
]  # fmt: skip
