"""A user's own mixed files: check, train, evaluate, caption; the bad ones listed, nothing lost."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from triptych.cli.main import main
from triptych.core.errors import DataError
from triptych.data.check import check_sources
from triptych.data.source import DataSourceConfig
from triptych.tasks.pretraining.mplug import MPLUGPretraining
from triptych.train.config import ObjectiveWeight
from triptych.workflows.run import train_run

from .own_data import BAD, KINDS, NUM_LINES, write_own_data
from .small_runs import small_run

NUM_GOOD = 197


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return write_own_data(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, own):
    """A run over the whole manifest once: 25 steps of 8 are 200 lines."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_run(_config(own, max_bad_share=0.02), folder)
    return folder


def _config(own, *, max_bad_share=0.01):
    source = DataSourceConfig(path=str(own.manifest))
    config = small_run("mplug.pretrain", source, max_steps=NUM_LINES // 8)
    return replace(
        config,
        model=replace(config.model, image_size=32),
        data=replace(config.data, max_bad_share=max_bad_share),
        weights=tuple(ObjectiveWeight(name=name) for name in ("itc", "prefix_lm")),
    )


def _listed(path, own):
    """Return kind by relative path of a list of skipped files; each may be listed once."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    places = [line["where"].removeprefix(f"{own.manifest.parent}/") for line in lines]
    assert len(set(places)) == len(places)
    return dict(zip(places, (line["kind"] for line in lines), strict=True))


def _caption_words(own):
    lines = own.manifest.read_text(encoding="utf-8").splitlines()
    return {word for line in lines for word in json.loads(line)["caption"].split()}


def test_the_files_are_what_their_names_say(own):
    """The other tests mean something only if all these kinds are there."""
    modes = Counter()
    for path in own.good:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) == 6
            modes[image.format, image.mode, turned] += 1
    assert set(modes) == {
        *(("JPEG", mode, False) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode, False) for mode in ("RGB", "L", "RGBA", "P", "I;16")),
        ("JPEG", "RGB", True),
    }
    assert min(modes.values()) >= NUM_GOOD // len(KINDS)


def test_check_counts_every_file(own):
    report = check_sources([DataSourceConfig(path=str(own.manifest))])
    assert (report.num_total, report.num_usable, report.num_bad) == (NUM_LINES, NUM_GOOD, 3)
    assert report.skip_counts == dict.fromkeys(BAD.values(), 1)
    sizes = []
    for path in own.good:
        with Image.open(path) as image:
            sizes.append(image.size[::-1] if "turned" in path.name else image.size)
    widths, heights = zip(*sizes, strict=True)
    assert (report.width_px.minimum, report.width_px.maximum) == (min(widths), max(widths))
    assert report.height_px.median == np.median(heights)


@pytest.mark.parametrize(("allowed", "code"), [([], 1), (["--max-bad-share", "0.02"], 0)])
def test_the_command_lists_them_and_says_whether_training_would_stop(
    own, capsys, tmp_path, allowed, code
):
    skipped = tmp_path / "skipped.jsonl"
    arguments = [str(own.manifest), "--skipped", str(skipped), *allowed]
    assert main(["data", "check", *arguments]) == code
    shown = capsys.readouterr()
    assert "197 usable of 200" in shown.out
    assert all(path in shown.out for path in BAD)
    assert _listed(skipped, own) == BAD
    assert ("--data.max-bad-share 0.02" in shown.err) == bool(code)


def test_training_reads_every_good_file_and_lists_the_bad(own, run):
    assert _listed(run / "skipped.jsonl", own) == BAD
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == NUM_LINES // 8
    assert steps[-1]["loss/prefix_lm"] < steps[0]["loss/prefix_lm"]


def test_training_sees_each_of_the_good_files(own, tmp_path, monkeypatch, capsys):
    seen = Counter()
    losses = MPLUGPretraining.losses

    def counted(task, batch, *, active):
        seen.update(batch["index"].tolist())
        return losses(task, batch, active=active)

    monkeypatch.setattr(MPLUGPretraining, "losses", counted)
    train_run(_config(own, max_bad_share=0.02), tmp_path)
    lines = [json.loads(line)["image"] for line in own.manifest.read_text().splitlines()]
    assert sorted(seen) == [number for number, path in enumerate(lines) if path not in BAD]
    assert len(seen) == NUM_GOOD and seen.total() == NUM_LINES  # others stand in for the bad
    assert "3 of 200 samples skipped" in capsys.readouterr().out


def test_training_stops_where_more_is_bad_than_is_allowed(own, tmp_path):
    with pytest.raises(DataError) as stop:
        train_run(_config(own), tmp_path)
    said = str(stop.value)
    assert "3 of 200 samples are bad so far (1.50%)" in said
    assert all(f"1 {kind}" in said for kind in BAD.values())
    assert "At most 1.00% is allowed" in said
    assert "--data.max-bad-share 0.02" in said
    assert _listed(tmp_path / "skipped.jsonl", own) == BAD


@pytest.mark.parametrize("task", ["retrieval", "caption"])
def test_evaluation_scores_every_good_file(own, run, tmp_path, capsys, task):
    scores = tmp_path / "scores.json"
    data = ["--data", str(own.manifest), "--max-bad-share", "0.02", "--json", str(scores)]
    asked = [str(run / "model"), "--task", task, "--rerank-top-k", "2", *data]
    assert main(["eval", *asked]) == 0
    metrics = json.loads(scores.read_text())["scores"][0]["metrics"]
    counts = {metric["num_items"] for metric in metrics if "mean" not in metric["name"]}
    assert counts == {NUM_GOOD}  # R-mean counts both directions
    said = capsys.readouterr().err
    assert "3 of 200 samples skipped" in said and all(path in said for path in BAD)
    assert main(["eval", *asked[:3], "--data", str(own.manifest)]) == 2
    assert "3 of 200 samples are bad" in capsys.readouterr().err


def test_captions_come_for_every_kind_of_file(own, run, capsys):
    paths = [str(path) for path in own.good[: len(KINDS)]]
    assert main(["caption", str(run / "model"), *paths, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == paths
    said = [line["caption"].split() for line in lines]
    assert all(words and set(words) <= _caption_words(own) for words in said)


@pytest.mark.parametrize(
    ("path", "said"),
    [("bad/cut.jpg", "cut short"), ("bad/letter.jpg", "no image"), ("bad/lost.png", "no such")],
)
def test_captioning_a_bad_file_says_which(own, run, capsys, path, said):
    assert main(["caption", str(run / "model"), str(own.manifest.parent / path)]) == 2
    error = capsys.readouterr().err
    assert path in error and said in error
