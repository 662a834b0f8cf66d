"""The demo at scale "smoke", from scratch to scores."""

import io
import json
import signal
from itertools import product

import pytest
from rich.console import Console
from safetensors.torch import load_file

from tests.train.toy import exact_lines
from tests.workflows.kills import same_tensors
from triptych.core.config import load_yaml
from triptych.core.errors import ConfigError
from triptych.data.batches import record_texts
from triptych.demo.page import before_after
from triptych.demo.plan import SIZES
from triptych.demo.run import run_demo
from triptych.demo.scoring import SPLITS
from triptych.demo.state import DemoSettings, resume_command
from triptych.recipes.config import RunConfig
from triptych.tasks.finetuning.vqa import VQA
from triptych.tasks.pretraining.mplug import MPLUGPretraining
from triptych.text import Tokenizer
from triptych.train.interrupts import TrainingInterrupted

SIZE = SIZES["smoke"]
SETTINGS = DemoSettings(scale="smoke", seed=3, num_threads=1)
STAGES = {"pretrain": SIZE.pretrain_steps, "vqa": SIZE.vqa_steps, "grounding": SIZE.grounding_steps}
RECALLS = [
    f"{way}_r{k}{stage}" for way, k, stage in product(("i2t", "t2i"), (1, 5, 10), ("", "_itm"))
]
# What the issue asks for and what papers print; questions also by type
KEYS = {
    "retrieval": {*RECALLS, "r_mean", "r_mean_itm"},
    "caption": {"caption_objects", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"},
    "vqa": {"vqa", *(f"vqa/{kind}" for kind in ("color", "count", "relation", "shape", "yes_no"))},
    "grounding": {"grounding", "grounding_iou"},
}
UNBOUNDED = {"cider"}  # every other score is a share


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The result of the demo on one thread, and what it said."""
    said = io.StringIO()
    folder = tmp_path_factory.mktemp("demo") / "out"
    result = run_demo(folder, SETTINGS, console=Console(file=said, width=100))
    return result, said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_score_is_there_and_a_share(demo, split):
    scores = [score for score in demo[0].scores if score.split == split]
    prefix = "" if split == "test" else "compositional_"
    assert {(score.task, score.key) for score in scores} == {
        (task, prefix + key) for task, keys in KEYS.items() for key in keys
    }
    for score in scores:
        assert 0 <= score.value.low <= score.value.value <= score.value.high
        assert score.value.high <= 1 or score.value.name in UNBOUNDED
        for guess in (score.chance, score.blind):
            assert guess is None or 0 <= guess <= (10 if score.value.name in UNBOUNDED else 1)
        assert score.value.protocol


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "compositional_"])
def test_guesses_stand_beside_the_scores(demo, prefix):
    by_key = {score.key: score for score in demo[0].scores}
    assert by_key[f"{prefix}i2t_r1"].chance == 1 / SIZE.num_test
    assert by_key[f"{prefix}t2i_r5_itm"].chance == 5 / SIZE.num_test
    for key in sorted(KEYS["caption"] | KEYS["vqa"] | KEYS["grounding"]):
        score = by_key[prefix + key]
        assert score.chance is not None and score.blind is not None


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_held_out_sample_is_answered_once(demo, split):
    result, _ = demo
    images = {file.name for file in (result.folder / "data/images" / split).iterdir()}
    assert len(images) == SIZE.num_test
    for task in ("caption", "vqa", "grounding"):
        records, said = result.records[task, split], result.predictions[task, split]
        assert sorted(said) == list(range(len(records)))
        assert {record.image.path.rpartition("/")[2] for record in records} == images
        if task == "grounding":
            assert all(x0 <= x1 and y0 <= y1 for x0, y0, x1, y1 in said.values())
        else:
            assert all(isinstance(text, str) for text in said.values())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_leaves_its_run_and_its_model(demo, stage):
    result, _ = demo
    run = result.run(stage)
    assert load_yaml(RunConfig, run / "config.yaml").train == result.configs[stage].train
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["step"] == STAGES[stage]
    assert sorted(path.name for path in result.model(stage).iterdir()) == [
        *("README.md", "SHA256SUMS", "config.json", "model.safetensors"),
        *("preprocess.json", "tokenizer.json"),
    ]
    stored = json.loads((result.model(stage) / "config.json").read_text(encoding="utf-8"))
    assert stored["trained_for"] == [{"pretrain": "pretraining"}.get(stage, stage)]
    first = result.configs[stage].model.init_from
    assert first == (None if stage == "pretrain" else str(result.model("pretrain")))


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_word_of_every_task_can_be_read_and_said(demo, split):
    """Captions alone hold no digit and no question mark, and a word that is unknown is lost."""
    tokenizer = Tokenizer.load(demo[0].model("pretrain"))
    for task in ("caption", "vqa", "grounding"):
        for record in demo[0].records[task, split]:
            for text in record_texts(record):
                (ids,) = tokenizer.encode([text], max_tokens=100)
                assert tokenizer.unk_id not in ids, text
                said = text.lower().replace("?", " ?").split()
                assert tokenizer.decode(ids).replace("?", " ?").split() == said


@pytest.mark.slow
def test_each_stage_is_told_and_timed(demo):
    result, said = demo
    assert list(result.times_s) == [
        *("scenes", "pretrain", "fine-tuning", "evaluation test", "evaluation compositional"),
        "index",
    ]
    assert min(result.times_s.values()) > 0
    places = [said.index(word) for word in ("writing 48", "pre-training: 4", "fine-tuning for")]
    assert places == sorted(places)


def stopping(task, patch, at_step):
    """Have a task ask for the end of its run after a step."""
    after_step = task.after_step

    def stop(own, step):
        after_step(own, step)
        if step == at_step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(task, "after_step", stop)


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_bitwise(demo, tmp_path, monkeypatch):
    """Stopped within pre-training, then within a fine-tuning, then between trainings."""
    whole, folder = demo[0], tmp_path / "out"
    quiet = Console(file=io.StringIO())
    for task, step in ((MPLUGPretraining, 2), (VQA, 1)):
        with monkeypatch.context() as patch:
            stopping(task, patch, step)
            with pytest.raises(TrainingInterrupted):
                run_demo(folder, SETTINGS, console=quiet)
        command = f"triptych demo --scale smoke --seed 3 --num-threads 1 --out {folder}"
        assert resume_command(folder) == command
    finished = (folder / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("triptych.demo.run.evaluate_scenes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_demo(folder, SETTINGS, console=quiet)
    result = run_demo(folder, SETTINGS, console=quiet)
    assert (folder / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == finished
    assert result.scores == whole.scores
    assert list(result.times_s) == list(whole.times_s)
    assert 0 < result.earlier_s < sum(result.times_s.values())
    for stage in STAGES:
        assert exact_lines(result.run(stage)) == exact_lines(whole.run(stage))
        weights = [load_file(r.model(stage) / "model.safetensors") for r in (result, whole)]
        assert same_tensors(*weights)


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_report_shows_what_fine_tuning_did_to_retrieval(demo):
    stages = before_after(demo[0])
    assert [stage.stage for stage in stages] == ["vqa", "grounding"]
    for stage in stages:
        stored = json.loads((demo[0].run(stage.stage) / "before_after.json").read_text())["rows"]
        shown = [row for row in stored if row["metric"] in ("i2t_r1", "t2i_r1")]
        assert len(shown) >= 2
        assert [(c.images, c.before.value, c.after.value) for c in stage.changes] == [
            (row["images"], row["before"]["value"], row["after"]["value"]) for row in shown
        ]


@pytest.mark.slow
def test_another_demo_in_the_folder_is_an_error(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("triptych.demo.run.train_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, DemoSettings(scale="smoke"), console=Console(file=io.StringIO()))
    command = f"triptych demo --scale smoke --seed 0 --out {tmp_path}"
    with pytest.raises(ConfigError, match=f"holds another demo: continue it with `{command}`"):
        run_demo(tmp_path, DemoSettings(scale="smoke", seed=1))


def test_a_folder_in_use_is_an_error(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files.*--out.*DEMO_OUT"):
        run_demo(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": "huge"}, "scale = 'huge': must be one of smoke, tiny, small"),
        ({"seed": -1}, "seed = -1"),
        ({"minutes": 0}, "minutes = 0: must be above 0; for no limit, give --scale tiny"),
        ({"max_bad_share": 2}, "max_bad_share = 2: must be from 0 to 1"),
    ],
)
def test_a_wrong_setting_is_an_error(settings, said):
    with pytest.raises(ConfigError, match=said):
        DemoSettings(**settings)
