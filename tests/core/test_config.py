import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from triptych.core.config import (
    check,
    check_range,
    from_dict,
    kind_of,
    load_yaml,
    renamed,
    save_yaml,
    to_dict,
)
from triptych.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerConfig:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherConfig:
    path: Path = Path("x")


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterConfig:
    name: str
    mode: Literal["a", "b"] = "a"
    inner: InnerConfig = field(default_factory=InnerConfig)
    task: InnerConfig | OtherConfig = field(default_factory=OtherConfig)
    pair: tuple[float, float] | None = None
    many: tuple[InnerConfig, ...] = ()
    count: int = 1

    def __post_init__(self) -> None:
        check(self.count > 0, "count", self.count, "be at least 1")


FULL = OuterConfig(
    name="n",
    mode="b",
    inner=InnerConfig(rate=1e-4, sizes=(3,)),
    task=InnerConfig(rate=2.0),
    pair=(0.1, 1.0),
    many=(InnerConfig(), InnerConfig(rate=0.25)),
    count=7,
)


@pytest.mark.parametrize("config", [FULL, OuterConfig(name="n")])
def test_yaml_round_trip(config, tmp_path):
    save_yaml(config, tmp_path / "c.yaml")
    assert load_yaml(OuterConfig, tmp_path / "c.yaml") == config


def test_plain_form_is_what_yaml_can_hold():
    plain = to_dict(FULL)
    assert plain["task"] == {"kind": "inner", "rate": 2.0, "sizes": [1, 2]}
    assert plain["inner"] == {"rate": 1e-4, "sizes": [3]}
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"name": "n", "inner": {"raet": 1}}, "unknown field 'inner.raet'; did you mean 'rate'?"),
        ({"nam": "n"}, "unknown field 'nam'; did you mean 'name'?"),
        ({}, "name: a value is required"),
        ({"name": 3}, "name = 3: must be str"),
        ({"name": "n", "mode": "c"}, "mode = 'c': must be one of"),
        ({"name": "n", "count": True}, "count = True: must be a whole number"),
        ({"name": "n", "count": 1.5}, "count = 1.5: must be int"),
        ({"name": "n", "count": 0}, "count = 0: must be at least 1"),
        ({"name": "n", "inner": {"rate": "fast"}}, "inner.rate = 'fast': must be a number"),
        ({"name": "n", "inner": {"sizes": 3}}, "inner.sizes = 3: must be a list"),
        ({"name": "n", "pair": [1.0]}, "pair = [1.0]: must have 2 entries"),
        ({"name": "n", "task": {"kind": "iner"}}, "did you mean 'inner'?"),
        ({"name": "n", "many": [{"rate": 1}, {"size": 1}]}, "unknown field 'many[1].size'"),
        ([], "expected a mapping"),
    ],
)
def test_what_does_not_fit_is_named(plain, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(OuterConfig, plain)
    assert message in str(caught.value)


def test_yaml_reads_an_exponent_without_a_point_as_a_number(tmp_path):
    (tmp_path / "c.yaml").write_text("name: n\ninner: {rate: 1e-4}\n")
    assert load_yaml(OuterConfig, tmp_path / "c.yaml").inner.rate == 1e-4


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_yaml(OuterConfig, tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml:1: not valid YAML"):
        load_yaml(OuterConfig, tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("VQAConfig", "vqa"), ("MPLUGPretrainingConfig", "mplug_pretraining"), ("Plain", "plain")],
)
def test_kind_of(name, expected):
    assert kind_of(type(name, (), {})) == expected


@dataclass(frozen=True, kw_only=True, slots=True)
class NewerConfig:
    """`size` was called `length`; `inner.rate` was a field `rate` of this config, in percent."""

    size: int = 1
    inner: InnerConfig = field(default_factory=InnerConfig)

    @staticmethod
    def upgrade_fields(plain):
        plain = renamed(plain, {"length": "size"})
        if "rate" in plain:
            inner = dict(plain.get("inner", {}))
            plain["inner"] = {**inner, "rate": plain.pop("rate") / 100}
        return plain


@dataclass(frozen=True, kw_only=True, slots=True)
class HolderConfig:
    newer: NewerConfig = field(default_factory=NewerConfig)


def test_old_fields_load_under_their_new_names(tmp_path):
    old = {"newer": {"length": 3, "rate": 25, "inner": {"sizes": [4]}}}
    expected = NewerConfig(size=3, inner=InnerConfig(rate=0.25, sizes=(4,)))
    assert from_dict(HolderConfig, old) == HolderConfig(newer=expected)
    assert old == {"newer": {"length": 3, "rate": 25, "inner": {"sizes": [4]}}}  # not changed
    save_yaml(HolderConfig(newer=expected), tmp_path / "c.yaml")
    assert "length" not in (tmp_path / "c.yaml").read_text()
    assert load_yaml(HolderConfig, tmp_path / "c.yaml").newer == expected


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"length": 3, "size": 3}, "newer: length is the old name of size, which is given too"),
        ({"length": "x"}, "newer.size = 'x': must be int"),
        ({"lenght": 3}, "unknown field 'newer.lenght'"),
    ],
)
def test_old_fields_that_do_not_fit_are_named(plain, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(HolderConfig, {"newer": plain})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "size = 0: must be at least 1"),
        (5000, "size = 5000: must be at most 1,024"),
        (float("nan"), "size = nan: must be at least 1"),
    ],
)
def test_a_range_has_two_ends(value, message):
    with pytest.raises(ConfigError, match=message):
        check_range("size", value, 1, 1024)
    check_range("size", 1, 1, 1024)
    check_range("size", 1024, 1, 1024)
    check_range("size", None, 1, 1024)
