"""What tests of several rooms share."""

import signal
from multiprocessing.context import SpawnContext

import pytest

from tests.processes import ForkedContext, in_place_of_spawn
from triptych.nn import packing


@pytest.fixture
def packed_at_any_width(monkeypatch):
    """Skip padding in the narrow models of tests too, as wide models do."""
    monkeypatch.setattr(packing, "PACKED_FROM", 1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep what tests cache out of the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _forked():
    """Give every process that the library spawns its imports at once: each takes 3 seconds."""
    with in_place_of_spawn(ForkedContext()):
        yield


@pytest.fixture
def spawned():
    """Spawn processes as a user's run does: each has a hash seed of its own, and prints here."""
    with in_place_of_spawn(SpawnContext()):
        yield


@pytest.fixture(autouse=True, scope="session")
def hang_up_is_heard():
    """Let tests see SIGHUP, also those that `nohup make test` runs."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
