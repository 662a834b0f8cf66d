"""Two runs at once compute what they compute in turn."""

import pytest
from safetensors.torch import load_file

from tests.train.toy import exact_lines
from triptych.core.errors import DataError
from triptych.data.source import DataSourceConfig
from triptych.recipes.side_by_side import train_side_by_side

from .kills import same_tensors
from .small_runs import small_run, source_of

NAMES = ("vqa", "grounding")


@pytest.mark.slow
def test_runs_at_once_equal_runs_in_turn(tmp_path, scenes, capfd):
    runs = {
        name: small_run(f"mplug.{name}", source_of(scenes, name), max_steps=2, log_every_steps=1)
        for name in NAMES
    }
    folders = {
        threads: {name: tmp_path / str(threads) / name for name in NAMES} for threads in (1, 2)
    }
    for threads, each in folders.items():
        train_side_by_side(runs, each, num_threads=threads)
    said = capfd.readouterr().out
    for name in NAMES:
        assert f"{name} | step 2/2" in said  # only runs at once say their name
        alone, beside = folders[1][name], folders[2][name]
        assert exact_lines(alone) == exact_lines(beside)
        weights = [load_file(run / "model/model.safetensors") for run in (alone, beside)]
        assert same_tensors(*weights)


@pytest.mark.slow
def test_an_error_of_one_run_arrives_as_it_was(tmp_path, scenes):
    (tmp_path / "empty.jsonl").write_text('{"image": "absent.jpg", "caption": "a"}\n')
    bad = DataSourceConfig(path=str(tmp_path / "empty.jsonl"))
    runs = {"bad": small_run("mplug.pretrain", bad)}
    runs["good"] = small_run("mplug.vqa", source_of(scenes, "vqa"), max_steps=1)
    with pytest.raises(DataError, match="none of the 1 pictures"):
        train_side_by_side(runs, {name: tmp_path / name for name in runs}, num_threads=2)
