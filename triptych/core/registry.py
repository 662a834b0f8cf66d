"""Tables from names to objects, and the packages of users that add to them."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from triptych.core.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Map names to objects of one kind, in the order of registration."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`.

        Args:
            name: The key; must be new.

        Raises:
            ConfigError: The name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            ConfigError: There is none; the message names the nearest and lists all.
        """
        entries = self.entries()
        if name not in entries:
            known = ", ".join(entries)
            raise ConfigError(
                f"unknown {self.kind} {name!r}{nearest(name, entries)} (known: {known})"
            )
        return entries[name]

    def entries(self) -> Mapping[str, T]:
        """Return all entries by name, in the order of registration."""
        return self._entries

    def names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self.entries())

    def __contains__(self, name: object) -> bool:
        return name in self.entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries())


GROUP = "triptych.plugins"
"""The entry points that an installed package names its modules under."""

VARIABLE = "TRIPTYCH_PLUGINS"
"""The environment variable with more modules, separated by commas."""


def load_plugins() -> None:
    """Import every plugin once; what a module registers is known from then on.

    Raises:
        ConfigError: A module cannot be imported, or fails as it is.
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
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            raise ConfigError(
                f"{where} names the plugin {module!r}, which fails when it is imported: "
                f"{type(error).__name__}: {error}{_raised_in(error)}; correct it or "
                "remove the name"
            ) from error


def _raised_in(error: BaseException) -> str:
    """Return the file and line that raised, in parentheses; nothing if the import system did."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if "importlib" in last.filename:
        return ""
    return f" ({last.filename}:{last.lineno})"
