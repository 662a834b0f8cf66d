"""The benchmark of validation at smoke size: its figures are the scores of the models it leaves."""

import json

import pytest

from benchmarks.scenes.best_over_last import main
from tests.workflows.small_runs import small_run
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import train_run
from triptych.workflows.scene_data import format_source


@pytest.mark.slow
def test_figures_are_the_scores_of_both_models(tmp_path, capsys):
    files = write_scenes(tmp_path / "scenes", 16, formats=("captions",))
    train_run(
        small_run("mplug.pretrain", format_source(files, "captions", "train")), tmp_path / "pre"
    )
    out = tmp_path / "out"
    sizes = "--scale smoke --steps 3 --seeds 2 --num-threads 1"
    main(["--start", str(tmp_path / "pre" / "model"), "--out", str(out), *sizes.split()])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for seed in range(2):
        folder = out / f"seed_{seed}"
        test = format_source(SceneFiles(folder / "data"), "captions", "test")
        for name, key in (("best", "best"), ("model", "last")):
            scores = evaluate_model(folder / "retrieval" / name, "retrieval", test, rerank_top_k=0)
            values = {score.name: score.value for score in scores}
            assert found[key][seed] == pytest.approx(values["r_mean"], abs=1e-4)
        assert str(found["best_steps"][seed]) in found["validation"][seed]
    gains = [best - last for best, last in zip(found["best"], found["last"])]
    assert found["best_over_last"] == pytest.approx(sum(gains) / 2, abs=2e-4)
