"""Strict configs: frozen dataclasses to and from plain values and YAML.

A config is a `@dataclass(frozen=True, kw_only=True, slots=True)`; nested configs are fields. Where
a field's type is a union of configs, or an `OpenConfig`, the plain form carries a `kind` key, the
class's snake-case name without a trailing `_config`. A mapping may stand only for what another
config checks, such as changes of its fields by dotted name.

A config whose fields were renamed or changed still loads from old files: its static method
`upgrade_fields` takes the plain fields of any age and returns those of today (`renamed` helps).
What moves from one config into another is upgraded by the config that holds both.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from triptych.core.errors import ConfigError, nearest
from triptych.core.files import write_atomic
from triptych.core.reading import read_yaml, reading

C = TypeVar("C")

MAX_BATCH_SIZE = 65_536
"""Samples that one process takes at a time, at most."""
MAX_WORKERS = 1024
"""Processes of a kind on one machine, at most."""


class OpenConfig:
    """Base of configs that one field may hold, told apart by `kind`; more may be added later."""

    __slots__ = ()

    @classmethod
    def choices(cls) -> Mapping[str, type]:
        """Return the config classes by each `kind` that loads them."""
        raise NotImplementedError


def kind_of(config_class: type) -> str:
    """Return the `kind` of a config class: its `KIND`, or else `CaptionTask` is `caption_task`."""
    if named := getattr(config_class, "KIND", None):
        return str(named)
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", config_class.__name__)
    return snake.lower().removesuffix("_config")


def kinds_of(config_class: type) -> tuple[str, ...]:
    """Return the `kind` of a config class and those that it had before (`OLD_KINDS`)."""
    return kind_of(config_class), *getattr(config_class, "OLD_KINDS", ())


def renamed(plain: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return plain fields with old names replaced: what most `upgrade_fields` do.

    Args:
        plain: The fields of a config, as a file holds them; not changed.
        names: Today's name of each old one.

    Raises:
        ConfigError: A field stands there under both names.

    Example:
        `renamed({"clip_apart": True}, {"clip_apart": "clip_per_parameter"})`
    """
    for old, new in names.items():
        if old in plain and new in plain:
            raise ConfigError(f"{old} is the old name of {new}, which is given too: remove {old}")
    return {names.get(key, key): value for key, value in plain.items()}


def to_dict(config: Any, *, tagged: bool = False) -> Any:
    """Return a config as plain dicts, lists, numbers and strings.

    Args:
        config: A config, or any value that a field may hold.
        tagged: Whether to add the `kind` key at this level.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        hints = get_type_hints(type(config))
        plain = {"kind": kind_of(type(config))} if tagged else {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            plain[field.name] = to_dict(value, tagged=_is_tagged(hints[field.name]))
        return plain
    if isinstance(config, (list, tuple)):
        return [to_dict(item) for item in config]
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def from_dict(config_class: type[C], plain: Any, where: str = "") -> C:
    """Build a config from plain values; an unknown key names the nearest known one.

    Args:
        config_class: The dataclass to build.
        plain: A mapping, as `to_dict` or YAML gives it. Absent keys take their defaults.
        where: Dotted path of this config, for messages.

    Raises:
        ConfigError: Unknown key, missing value, wrong type, or a value that the config rejects.
    """
    if not isinstance(plain, dict):
        raise ConfigError(f"{where or 'config'}: expected a mapping, got {plain!r}")
    upgrade = getattr(config_class, "upgrade_fields", None)
    if upgrade is not None:
        try:
            plain = upgrade(plain)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}" if where else str(error)) from error
    hints = get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, config_class))}
    values: dict[str, Any] = {}
    for key, value in plain.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise ConfigError(f"unknown field {path!r}{nearest(str(key), fields)}")
        values[key] = _convert(hints[key], value, path)
    for name, field in fields.items():
        absent = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if name not in values and absent:
            raise ConfigError(f"{f'{where}.' if where else ''}{name}: a value is required")
    return config_class(**values)


def load_yaml(config_class: type[C], path: Path) -> C:
    """Read a config from a YAML file.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not fit the config.
    """
    plain = read_yaml(path)
    try:
        with reading(path, ConfigError):
            return from_dict(config_class, plain)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def save_yaml(config: Any, path: Path) -> None:
    """Write a config as YAML, atomically."""
    write_atomic(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def check(condition: bool, field: str, value: Any, must: str) -> None:
    """Raise a ConfigError that names the field, its value and what it must be.

    Example:
        `check(self.depth > 0, "depth", self.depth, "be at least 1")`
    """
    if not condition:
        raise ConfigError(f"{field} = {value!r}: must {must}")


def check_range(field: str, value: float | None, least: float, most: float) -> None:
    """Raise a ConfigError that names the field, its value and the bound that it breaks.

    Args:
        field: The field.
        value: Its value; None breaks no bound.
        least: The smallest value.
        most: The largest; what is larger is a mistake, and would take all memory or for ever.
    """
    if value is not None:
        check(value >= least, field, value, f"be at least {least:,}")
        check(value <= most, field, value, f"be at most {most:,}")


def _is_tagged(hint: Any) -> bool:
    return _is_open(hint) or len(_config_choices(hint)) > 1


def _is_open(hint: Any) -> bool:
    """Return whether a field takes any config of an open family, rather than one of them."""
    is_base = isinstance(hint, type) and issubclass(hint, OpenConfig)
    return is_base and not dataclasses.is_dataclass(hint)


def _config_choices(hint: Any) -> list[type]:
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Return `value` as `hint` wants it, or raise with the path."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, path)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{path} = {value!r}: must be one of {list(get_args(hint))}")
        return value
    if origin in (tuple, list):
        return _convert_sequence(hint, value, path)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} = {value!r}: must be a mapping")
        inner = get_args(hint)[1]
        return {str(key): _convert(inner, item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)
    if _is_open(hint):
        return _convert_tagged(hint.choices(), value, path)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as text
            return float(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{path} = {value!r}: must be a number") from None
    if hint is Any or (isinstance(hint, type) and isinstance(value, hint)):
        if hint is int and isinstance(value, bool):
            raise ConfigError(f"{path} = {value!r}: must be a whole number")
        return value
    raise ConfigError(f"{path} = {value!r}: must be {getattr(hint, '__name__', hint)}")


def _convert_sequence(hint: Any, value: Any, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{path} = {value!r}: must be a list")
    args = get_args(hint)
    if get_origin(hint) is tuple and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ConfigError(f"{path} = {value!r}: must have {len(args)} entries")
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    items = [_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    return tuple(items) if get_origin(hint) is tuple else items


def _convert_union(hint: Any, value: Any, path: str) -> Any:
    members = get_args(hint)
    if value is None and type(None) in members:
        return None
    choices = _config_choices(hint)
    if len(choices) > 1 and isinstance(value, dict):
        kinds = {kind: choice for choice in choices for kind in kinds_of(choice)}
        return _convert_tagged(kinds, value, path)
    errors = []
    for member in members:
        if member is type(None):
            continue
        try:
            return _convert(member, value, path)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _convert_tagged(kinds: Mapping[str, type], value: Any, path: str) -> Any:
    """Build the config that a mapping's `kind` names."""
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping, got {value!r}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(
            f"{path}.kind = {kind!r}: must be one of {list(kinds)}{nearest(str(kind), kinds)}"
        )
    return from_dict(kinds[kind], {k: v for k, v in value.items() if k != "kind"}, path)
