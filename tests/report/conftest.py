"""Pages and plots are what is tested here."""

import pytest


@pytest.fixture(autouse=True)
def _no_drawings():
    """Everything is drawn."""
