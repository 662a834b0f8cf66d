"""The long way beside the package's fast ones: to prove that they give the same, and to time them.

The package has its fast ways alone. Tests and benchmarks that compare them with the long way, as
released code does it, replace the three decisions between the two for the length of a block.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from triptych.generation import decoding
from triptych.nn import packing
from triptych.nn.attention import CrossAttention

NEVER = sys.maxsize


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """Compute padding like any token, project every memory, and prepack no weights.

    It holds for the whole process.
    """
    with (
        patch.object(packing, "PACKED_FROM", NEVER),
        patch.object(CrossAttention, "_reads_states", lambda *_: False),
        patch.object(decoding, "packed_dtype", lambda _: None),
    ):
        yield


def takes_shortcuts() -> bool:
    """Return whether the package's fast ways are in use."""
    return packing.PACKED_FROM != NEVER
