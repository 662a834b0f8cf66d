import pytest

from tests.serving.tiny_folder import write_tiny_folder
from triptych.data.source import DataSourceConfig
from triptych.index.build import build_index
from triptych.index.search import open_index
from triptych.serving.engine import load
from triptych.serving.loading import load_model

from .asking import Server, image_bytes


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Write a tiny model folder for each of some tasks."""
    root = tmp_path_factory.mktemp("models")
    names = ("pretraining", "vqa", "grounding")
    return {name: write_tiny_folder(root / name, name) for name in names}


@pytest.fixture(scope="session")
def index_folder(folders, tmp_path_factory):
    """Index ten images."""
    root = tmp_path_factory.mktemp("index")
    (root / "photos" / "all").mkdir(parents=True)
    for number in range(10):
        (root / "photos" / "all" / f"{number}.png").write_bytes(image_bytes(number))
    source = DataSourceConfig(path=str(root / "photos"))
    build_index(load_model(folders["pretraining"]), source, root / "found")
    return root / "found"


@pytest.fixture(scope="session")
def engines(folders):
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def server(engines, index_folder):
    """Serve all of them with the default limits."""
    server = Server(engines, open_index(index_folder), host_names=("testserver",))
    yield server
    server.close()
