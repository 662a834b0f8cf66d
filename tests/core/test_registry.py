import pytest

from triptych.core.errors import ConfigError, nearest
from triptych.core.registry import Registry, load_plugins


def test_entries_come_back_in_order_and_errors_name_the_nearest():
    registry: Registry[int] = Registry("thing")
    registry.register("tiny")(1)
    registry.register("large")(2)
    assert registry.names() == ["tiny", "large"] == list(registry)
    assert registry.get("large") == 2
    assert "tiny" in registry and "huge" not in registry
    with pytest.raises(ConfigError, match="unknown thing 'larg'; did you mean 'large'"):
        registry.get("larg")
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("tiny")(3)


@pytest.mark.parametrize(("name", "clause"), [("quay", "; did you mean 'quax'?"), ("zzz", "")])
def test_nearest(name, clause):
    assert nearest(name, ["quax", "foo"]) == clause


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('boom')", r"RuntimeError: boom \(.*broken_plugin.py:1\)"),
        ("import sys; sys.exit(3)", r"SystemExit: 3 \(.*broken_plugin.py:1\)"),
        ("def (", "SyntaxError: invalid syntax"),
    ],
)
def test_a_plugin_that_raises_is_an_error_that_names_it(monkeypatch, tmp_path, source, cause):
    (tmp_path / "broken_plugin.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRIPTYCH_PLUGINS", "broken_plugin")
    with pytest.raises(ConfigError, match=f"plugin 'broken_plugin', which fails .*{cause}"):
        load_plugins()


def test_a_relative_plugin_is_an_error(monkeypatch):
    monkeypatch.setenv("TRIPTYCH_PLUGINS", "../mine")
    with pytest.raises(ConfigError, match=r"plugin '\.\./mine'"):
        load_plugins()
