"""Files: opened where they are real ones, written whole or not at all, and what they may cost."""
