"""Scenes and a pre-trained model that the tests of recipes share."""

import pytest

from triptych.recipes.run import train_run
from triptych.scenes.write import write_scenes

from .small_runs import small_run, source_of


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Written scenes: 32 for training, 8 of each other split."""
    folder = tmp_path_factory.mktemp("scenes") / "s"
    return write_scenes(folder, 32, formats=("captions", "vqa", "refs"))


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, scenes):
    """A run folder of mplug.pretrain at scale "smoke"."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    train_run(small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain")), folder)
    return folder
