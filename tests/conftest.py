"""What tests of several rooms share."""

import pytest

from triptych.nn import packing


@pytest.fixture
def packed_at_any_width(monkeypatch):
    """Skip padding in the narrow models of tests too, as wide models do."""
    monkeypatch.setattr(packing, "PACKED_FROM", 1)
