import pytest

from triptych.core.errors import ConfigError, nearest
from triptych.core.registry import Registry


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
