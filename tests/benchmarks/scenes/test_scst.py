"""The SCST benchmark at smoke size: its figures are the scores of the models that it leaves."""

import json
from itertools import pairwise

import pytest

from benchmarks.scenes.scst import main
from tests.workflows.small_runs import small_run, trained_model
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import train_run
from triptych.workflows.scene_data import scene_source


@pytest.mark.slow
def test_figures_are_the_scores_of_both_models(tmp_path, capsys):
    files = write_scenes(tmp_path / "scenes", 16, formats=("captions",))
    source = scene_source(files, "caption", "train")
    train_run(small_run("mplug.pretrain", source), tmp_path / "pretrain")
    model, out = tmp_path / "pretrain" / "model", tmp_path / "out"
    sizes = "--num-images 16 --num-test 8 --caption-steps 2 --scst-steps 2 --local-batch-size 4"
    main(["--model", str(model), "--out", str(out), *sizes.split(), "--num-threads", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    test = scene_source(SceneFiles(out / "scenes"), "caption", "test")
    for key, stage in (("scst_cider_before", "caption"), ("scst_cider_after", "scst")):
        values = {v.name: v for v in evaluate_model(out / stage / "model", "caption", test)}
        assert found[key] == pytest.approx(values["cider"].value, abs=1e-4)
        low, high = found["intervals"][key]
        assert low <= found[key] <= high
    assert found["num_items"] == 8 and set(found["rewards"]) == {"first", "last"}
    folders = (model, out / "caption" / "model", out / "scst" / "model")
    words = [trained_model(folder).decoder.embedding.word.weight for folder in folders]
    for first, second in pairwise(words):  # each stage begins with the last one's weights
        assert 0 < (first - second).detach().abs().max() < 0.05
