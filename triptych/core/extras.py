"""Packages that only some features need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from triptych.core.errors import CapabilityError


def import_extra(module: str, extra: str, purpose: str, instead: str = "") -> Any:
    """Import a module of a package that an extra of Triptych installs.

    Args:
        module: Its full name, such as `ray.data`.
        extra: The extra, such as `scale` in `pip install 'triptych[scale]'`.
        purpose: What needs it, as the beginning of the error.
        instead: What else the user can do, as the end of the error.

    Returns:
        The module; `Any`, since it may lack types.

    Raises:
        CapabilityError: It is not installed, or fails while it is imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name in {package, module}
        found = "which is not installed" if is_missing else f"which cannot be imported ({error})"
        advice = f"pip install 'triptych[{extra}]'" + (f", or {instead}" if instead else "")
        raise CapabilityError(f"{purpose} needs {package}, {found}: {advice}") from error
