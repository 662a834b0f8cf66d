"""A recipe's run with other settings: fields by dotted name, another model, another length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from triptych.core.config import from_dict, to_dict
from triptych.core.errors import ConfigError, nearest
from triptych.models.families import VARIANTS
from triptych.recipes.config import RunConfig
from triptych.train.config import ObjectiveWeight


def with_changes(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """Return a run with other values of some fields.

    Args:
        config: The run.
        changes: By dotted name, such as "train.max_steps", or "weights.itm.start_step" for the
            schedule of an objective.

    Raises:
        ConfigError: There is no such field, or the value is out of range.
    """
    plain = to_dict(config, tagged=False)
    for name, value in changes.items():
        *parents, last = name.split(".")
        inner: Any = plain
        for depth, parent in enumerate(parents):
            inner = _inner(inner, parent, ".".join(parents[: depth + 1]))
        if not isinstance(inner, dict) or last not in inner:
            known = inner if isinstance(inner, dict) else ()
            raise ConfigError(f"unknown field {name!r}{nearest(last, known)}")
        inner[last] = value
    return from_dict(RunConfig, plain) if changes else config


def _inner(outer: Any, name: str, path: str) -> Any:
    """Return the part of a plain config that a name leads to; a list's entries have names."""
    if isinstance(outer, list):
        for entry in outer:
            if isinstance(entry, dict) and entry.get("name") == name:
                return entry
        names = [str(e.get("name")) for e in outer if isinstance(e, dict)]
        raise ConfigError(f"unknown field {path!r}{nearest(name, names)} (known: {names})")
    if not isinstance(outer, dict) or name not in outer:
        known = outer if isinstance(outer, dict) else ()
        raise ConfigError(f"unknown field {path!r}{nearest(name, known)}")
    return outer[name]


def without_objectives(config: RunConfig, names: Sequence[str]) -> RunConfig:
    """Return a run that does not train some objectives."""
    known = {weight.name for weight in config.weights}
    weights = (
        *(replace(w, weight=0.0) if w.name in names else w for w in config.weights),
        *(ObjectiveWeight(name=name, weight=0.0) for name in names if name not in known),
    )
    return replace(config, weights=weights) if names else config


def with_architecture(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a run whose new model differs from its registered variant.

    Args:
        config: The run.
        changes: Fields of the model's config by name, such as "fusion_depth"; dotted for those of
            a part, such as "text.embed_dim".

    Raises:
        ConfigError: There is no such field, or the value is out of range.
    """
    if not changes:
        return config
    name = _register(config.model.name, changes)
    return replace(config, model=replace(config.model, name=name))


def _register(name: str, changes: Mapping[str, Any]) -> str:
    """Return a variant that differs from a registered one, registered in this process."""
    own = "_".join([name, *(f"{key}_{_text(value)}" for key, value in changes.items())])
    if own not in VARIANTS:
        build = VARIANTS.get(name)

        def changed(*, image_size: int | None = None, vocab_size: int | None = None) -> Any:
            sizes = build(image_size=image_size, vocab_size=vocab_size)
            plain = to_dict(sizes)
            for key, value in changes.items():
                *parents, last = key.split(".")
                inner = plain
                for parent in parents:
                    inner = _inner(inner, parent, key)
                if last not in inner:
                    raise ConfigError(f"the model {name} has no {key!r}{nearest(last, inner)}")
                inner[last] = value
            return from_dict(type(sizes), plain, "model")

        changed()  # a field that does not exist is said before anything is registered
        VARIANTS.register(own)(changed)
    return own


def _text(value: Any) -> str:
    return "_".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def shortened(config: RunConfig, steps: int, of_steps: int) -> RunConfig:
    """Return a run of fewer steps whose schedules keep their proportions.

    Args:
        config: A recipe's run; objectives start and end at their share of its own steps.
        steps: How many to take.
        of_steps: The number that its warm-up is meant for; a longer run keeps the warm-up.
    """
    warmup, own = config.optim.warmup_steps, config.train.max_steps
    if steps < of_steps:
        warmup = max(1, warmup * steps // of_steps)

    def moved(weight: ObjectiveWeight) -> ObjectiveWeight:
        start, end = weight.start_step * steps // own, weight.end_step
        if end is not None:
            end = max(start + 1, end * steps // own)
        return replace(weight, start_step=start, end_step=end)

    return replace(
        config,
        train=replace(config.train, max_steps=steps),
        optim=replace(config.optim, warmup_steps=warmup),
        weights=tuple(map(moved, config.weights)),
    )
