"""A run that goes on is refused where its data has changed, unless that is accepted."""

import random

import pytest

from tests.faults.changed_data import CHANGES, measure, write_images, write_lines
from triptych.cli.main import main
from triptych.core.errors import CheckpointError
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import DataConfig
from triptych.workflows.same_data import SameData
from triptych.workflows.sources import WholeSource


def test_changes_between_stop_and_resumption_are_named(tmp_path):
    """Three of the kinds a day; `python -m tests.faults changed_data` tries all."""
    assert len(CHANGES) >= 12
    found = measure(tmp_path, 3, seed=random.SystemRandom().randrange(2**32))
    assert found == {
        "changed_data": 3,
        "changed_data_of": 3,
        "unnamed": [],
        "accepted_but_stopped": [],
        "same_data_refused": [],
    }


@pytest.fixture
def data(tmp_path):
    """Return what makes the look at two sources: held-out data is one of them."""
    for name in ("m", "v"):
        write_lines(tmp_path / f"{name}.jsonl", write_images(tmp_path / f"images_{name}", 3))

    def look(names=("data.train m", "data.val v"), accept=False, **settings):
        sources = {}
        for name in names:
            source = DataSourceConfig(path=str(tmp_path / f"{name[-1]}.jsonl"))
            sources[name] = WholeSource(source, read_records(source).records)
        return SameData(DataConfig(**settings), sources, accept=accept)

    return look


def test_the_same_data_says_nothing(data):
    first = data()
    assert first.begin(None, 0) == []
    again = data()
    assert again.begin(first.state(), 4) == []
    assert again.state() == first.state()


def test_a_checkpoint_of_an_older_version_goes_on_with_a_note(data):
    look = data()
    (note,) = look.begin({}, 4)
    assert "holds no fingerprint of the data" in note
    assert look.state()["sources"]  # later checkpoints have one


def test_sources_and_settings_are_named(data):
    first = data()
    first.begin(None, 0)
    with pytest.raises(CheckpointError, match=r"step 4:\n  data.val v: is no longer read\n"):
        data(names=("data.train m",)).begin(first.state(), 4)
    with pytest.raises(CheckpointError, match=r"the order of the sources: was data.train m, data"):
        data(names=("data.val v", "data.train m")).begin(first.state(), 4)
    with pytest.raises(CheckpointError, match=r"data.val_share was None and is 0.5"):
        data(val_share=0.5).begin(first.state(), 4)
    (note,) = data(val_share=0.5, accept=True).begin(first.state(), 4)
    assert note.startswith("the run goes on with data that has changed since step 4:\n  data.val_s")


def test_the_flag_belongs_to_a_run_that_goes_on(tmp_path, capsys):
    given = ["train", "mplug.pretrain", "--data", "x.jsonl", "--accept-changed-data"]
    assert main([*given, "--out", str(tmp_path / "run")]) == 2
    assert "--accept-changed-data belongs to --resume" in capsys.readouterr().err
    assert main([*given, "--out", str(tmp_path / "run"), "--resume", "auto"]) == 2
    assert "x.jsonl" in capsys.readouterr().err  # it was taken, and there is no such data
