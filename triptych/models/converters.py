"""The families whose released checkpoints can be imported and exported, a line each."""

from __future__ import annotations

from collections.abc import Iterable

from triptych.core.registry import Registry
from triptych.models.conversion import Converter
from triptych.models.flava.convert import CONVERTER as FLAVA_CONVERTER
from triptych.models.mplug.convert import CONVERTER as MPLUG_CONVERTER
from triptych.models.vlmo.convert import CONVERTER as VLMO_CONVERTER

CONVERTERS: Registry[Converter] = Registry("model family")
for _converter in (MPLUG_CONVERTER, VLMO_CONVERTER, FLAVA_CONVERTER):
    CONVERTERS.register(_converter.family)(_converter)


def recognised_families(names: Iterable[str]) -> list[str]:
    """Return the families whose released files have names like these."""
    listed = list(names)
    return [family for family in CONVERTERS if CONVERTERS.get(family).recognises(listed)]
