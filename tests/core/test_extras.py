"""Packages of extras: what is missing is named, with the command that installs it."""

import sys

import pytest

from triptych.core.errors import CapabilityError
from triptych.core.extras import import_extra


def test_a_module_that_is_installed_is_returned():
    assert import_extra("json.decoder", "extra", "a test") is sys.modules["json.decoder"]


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch):
    with pytest.raises(CapabilityError) as caught:
        import_extra("no_such.module", "scale", "a test", "go without")
    assert str(caught.value) == (
        "a test needs no_such, which is not installed: pip install 'triptych[scale]', or go without"
    )


def test_a_package_that_is_broken_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import another_missing_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CapabilityError, match=r"cannot be imported \(No module named 'another_m"):
        import_extra("broken_extra", "scale", "a test")
