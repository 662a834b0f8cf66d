"""Packages of users, imported so that they can register families, tasks and recipes."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import entry_points

from triptych.core.errors import ConfigError

GROUP = "triptych.plugins"
"""The entry points that an installed package names its modules under."""

VARIABLE = "TRIPTYCH_PLUGINS"
"""The environment variable with more modules, separated by commas."""


def load_plugins() -> None:
    """Import every plugin once; what a module registers is known from then on.

    Raises:
        ConfigError: A module cannot be imported.
    """
    named = {point.value: f"entry point {point.name}" for point in entry_points(group=GROUP)}
    listed = [module.strip() for module in os.environ.get(VARIABLE, "").split(",")]
    named |= {module: VARIABLE for module in listed if module}
    for module, where in named.items():
        try:
            importlib.import_module(module.partition(":")[0])
        except ImportError as error:
            raise ConfigError(
                f"{where} names the plugin {module!r}, which cannot be imported: {error}; install "
                "it, put its folder on PYTHONPATH, or remove the name"
            ) from error
