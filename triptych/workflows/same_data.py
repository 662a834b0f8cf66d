"""Whether a run that goes on still reads the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.core.errors import CheckpointError
from triptych.data.fingerprint import differences, fingerprint
from triptych.distributed.collectives import from_main
from triptych.distributed.env import is_main
from triptych.recipes.config import DataConfig
from triptych.workflows.sources import WholeSource

VERSION = 1
ACCEPT_FLAG = "--accept-changed-data"

SETTINGS = ("seed", "val_share", "shuffle_window")
"""Of all data together: they decide which record is drawn when."""


class SameData:
    """The fingerprints of a run's data: kept in its checkpoints, compared when it goes on.

    Args:
        config: Of the data.
        sources: All sources that were read, the held-out ones too, by what messages call them.
        accept: Whether a run goes on with other data than it began with.
    """

    def __init__(
        self, config: DataConfig, sources: Mapping[str, WholeSource], *, accept: bool = False
    ) -> None:
        self._config, self._sources, self._accept = config, sources, accept
        self._state: dict[str, Any] = {}

    def begin(self, saved: dict[str, Any] | None, step: int) -> list[str]:
        """Look at the data; all processes call this together, and rank 0 looks.

        Args:
            saved: What `state` returned when the checkpoint was written that the run goes on
                from; None for a new run, and empty for the checkpoint of a version without it.
            step: Of that checkpoint.

        Returns:
            What to tell the user.

        Raises:
            CheckpointError: The data has changed, and that is not accepted.
        """
        known = saved if saved and saved.get("version") == VERSION else None
        state, changes, notes = from_main(self._look(known) if is_main() else None)
        self._state = state
        if saved is not None and known is None:
            return [
                "the checkpoint holds no fingerprint of the data, as it is of another version: "
                "whether the data has changed since is not known"
            ]
        if not changes:
            return list(notes)
        told = "\n".join(f"  {line}" for line in changes)
        if not self._accept:
            raise CheckpointError(
                f"the data has changed since the checkpoint of step {step:,}:\n{told}\n"
                "A run that went on would not end as one that never stopped. Put the data back, "
                f"or go on with the data as it is now with {ACCEPT_FLAG}"
            )
        return [f"the run goes on with data that has changed since step {step:,}:\n{told}", *notes]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return self._state

    def _look(self, saved: dict[str, Any] | None) -> tuple[dict[str, Any], list[str], list[str]]:
        """Return the fingerprints now, what has changed, and what only looks so."""
        before: dict[str, Any] = {} if saved is None else saved["sources"]
        now = {
            name: fingerprint(source.records, source.config, before.get(name))
            for name, source in self._sources.items()
        }
        settings = {name: getattr(self._config, name) for name in SETTINGS}
        state = {"version": VERSION, "settings": settings, "sources": now}
        changes: list[str] = []
        notes: list[str] = []
        if saved is None:
            return state, changes, notes
        changes += [
            f"data.{name} was {saved['settings'].get(name)!r} and is {value!r}"
            for name, value in settings.items()
            if saved["settings"].get(name) != value
        ]
        changes += [f"{name}: is no longer read" for name in before if name not in now]
        changes += [f"{name}: was not read before" for name in now if name not in before]
        if before.keys() == now.keys() and list(before) != list(now):
            changes.append(f"the order of the sources: was {', '.join(before)}")
        for name in now:
            if name in before:
                found = differences(before[name], now[name], self._sources[name].records)
                changes += [f"{name} ({now[name]['path']}): {what}" for what in found.changes]
                notes += [f"{name} ({now[name]['path']}): {what}" for what in found.notes]
        return state, changes, notes
