"""Scenes and a pre-trained model that the tests of recipes share."""

import pytest
import torch

from triptych.scenes.write import write_scenes
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """Keep to one thread here, and leave other tests the number that they had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def scenes(tmp_path_factory):
    """Written scenes: 32 for training, 8 of each other split."""
    folder = tmp_path_factory.mktemp("scenes") / "s"
    return write_scenes(folder, 32, formats=("captions", "vqa", "refs", "nlvr2", "snli_ve"))


@pytest.fixture(scope="package")
def pretrained(tmp_path_factory, scenes):
    """A run folder of mplug.pretrain at scale "smoke"."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train_run(small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain")), folder)
    return folder
