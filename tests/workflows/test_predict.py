"""Predicting to a file and scoring the file give what evaluating gives, to the bit."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serving.tiny_folder import IMAGE_SIZE, SHORT, WORDS, write_tiny_folder, write_tiny_vlmo
from triptych.checkpoint.model_folder import save_model_folder
from triptych.core.config import to_dict
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.evaluation.submissions import FORMS
from triptych.generation.search import BeamConfig
from triptych.models.families import model_config
from triptych.models.mplug.model import MPLUG
from triptych.serving.loading import load_model
from triptych.tasks.finetuning import retrieval
from triptych.tasks.finetuning.base import HeadConfig
from triptych.tasks.finetuning.image_classification import NAME, ImageClassificationConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassificationConfig,
    ImageTextClassificationConfig,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.segmentation import SegmentationConfig
from triptych.tasks.finetuning.text_classification import TextClassificationConfig
from triptych.tasks.finetuning.text_generator import GenerationSettings, sample_numbers
from triptych.tasks.registry import build_task, evaluations
from triptych.text import Tokenizer
from triptych.workflows.evaluate import EvalSettings, evaluate_model
from triptych.workflows.predict import PredictSettings, predict_model
from triptych.workflows.predictions import read_predictions
from triptych.workflows.score import score_file

COUNT = 12
# CLIP's, as in openai/CLIP `clip.py::_transform`
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CAPTIONS = [
    "a small red circle",
    "a large blue square",
    "what color is a circle",
    "the green star",
    "no square",
    "a small red circle",
]
HEAD = HeadConfig(hidden_ratio=0)
RELATIONS = ("contradiction", "neutral", "entailment")
COLOURS = ("red", "green", "blue", "black", "white", "grey")
CLASSIFIERS = {
    "nlvr2": (NLVR2Config(head=HEAD), "nlvr2"),
    "snli_ve": (ImageTextClassificationConfig(labels=RELATIONS, head=HEAD), None),
    "memes": (ImageTextClassificationConfig(labels=("0", "1"), text_field="text", head=HEAD), None),
    "texts": (
        TextClassificationConfig(labels=("entailment", "not_entailment"), head=HEAD),
        "text_classification",
    ),
    "numbers": (TextClassificationConfig(target="number", head=HEAD), "text_classification"),
    "images": (ImageClassificationConfig(labels=COLOURS, head=HEAD), NAME),
    "masks": (SegmentationConfig(classes=COLOURS[:3]), "segmentation"),
    "answers": (
        AnswerClassificationConfig(answers=("yes", "no", "green"), head=HEAD),
        "answer_classification",
    ),
}


def write_classifier(folder: Path, config, trained_for: str) -> Path:
    """Write a folder of random weights with a classifier on them."""
    tokenizer = Tokenizer.train(WORDS, vocab_size=120, num_unused=12)
    size = model_config("mplug_tiny", image_size=IMAGE_SIZE, vocab_size=tokenizer.vocab_size)
    size = replace(
        size,
        vision=replace(size.vision, embed_dim=32, depth=1, num_heads=2),
        text=replace(size.text, embed_dim=32, num_heads=2),
        text_depth=1,
        decoder_depth=1,
        proj_dim=8,
        init_std=0.3,
    )
    torch.manual_seed(1)
    model = MPLUG(size)
    head = build_task(config, model, tokenizer).modules["head"]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return save_model_folder(
        folder,
        config={
            "model": to_dict(size, tagged=True),
            "trained_for": [trained_for],
            "task": to_dict(config, tagged=True),
            "text": {"max_text_tokens": 20, "max_words": 30, "question": 12, "phrase": 12},
        },
        state_dict=model.state_dict(),
        tokenizer_json=tokenizer.to_json(),
        preprocess=to_dict(ImageTransformConfig(image_size=IMAGE_SIZE)),
        card="# Tiny\n",
        head=head.state_dict(),
    )


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in fp32: bf16 would let near ties fall either way."""
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images, and a model folder for each task."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(5)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for number in range(3):
        mask = rng.integers(0, 3, (IMAGE_SIZE, IMAGE_SIZE)).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"mask{number}.png")
    for name in ("pretraining", "captioning", "vqa", "grounding"):
        write_tiny_folder(folder / name, name)
    for name, (config, word) in CLASSIFIERS.items():
        write_classifier(folder / name, config, word or "image_text_classification")
    write_tiny_vlmo(folder / "vlmo", "language")
    return folder


def picture(number):
    return {"id": str(100 + number), "image": f"{number}.png", "image_id": str(500 + number)}


def captioned(number):
    return picture(number) | {"caption": CAPTIONS[number % 6]}


def question(number):
    return picture(number) | {"question": "what color is the star ?"}


def rte(rows, labelled):
    head = ["index", "sentence1", "sentence2", *(["label"] if labelled else [])]
    lines = [
        [str(i), CAPTIONS[i % 6], CAPTIONS[i % 5], *([("not_", "")[i % 2] + "entailment"])]
        for i in range(rows)
    ]
    return "".join("\t".join(line[: len(head)]) + "\n" for line in [head, *lines])


def stsb(rows, labelled):
    head = [
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ]
    lines = [[str(i), *"gfyoss", CAPTIONS[i % 6], CAPTIONS[i % 5], str(i % 5)] for i in range(rows)]
    head = head if labelled else head[:-1]
    return "".join("\t".join(line[: len(head)]) + "\n" for line in [head, *lines])


# Evaluation, model folder, an unlabelled line, what a labelled one has beside it, official forms.
CASES = {
    "caption": ("captioning", picture, lambda i: {"caption": CAPTIONS[i % 6]}, ("coco",)),
    "vqa": ("vqa", question, lambda i: {"answers": ["yes", "no", "green"][: i % 3 + 1]}, ("vqa",)),
    "answers": ("answers", question, lambda i: {"answers": [["yes", "no"][i % 2]]}, ("vqa",)),
    "grounding": (
        "grounding",
        lambda i: picture(i) | {"phrase": "the small red circle"},
        lambda i: {"box": [i % 4, 2, 9, 8]},
        ("refcoco",),
    ),
    "nlvr2": (
        "nlvr2",
        lambda i: {
            "id": f"dev-{i}-0-0",
            "images": [f"{i}.png", f"{(i + 1) % COUNT}.png"],
            "statement": CAPTIONS[i % 6],
        },
        lambda i: {"label": i % 2 == 0},
        ("nlvr2", "csv"),
    ),
    "snli_ve": (
        "snli_ve",
        lambda i: picture(i) | {"hypothesis": CAPTIONS[i % 6]},
        lambda i: {"label": RELATIONS[i % 3]},
        ("snli_ve", "csv"),
    ),
    "hateful_memes": (
        "memes",
        lambda i: picture(i) | {"text": CAPTIONS[i % 6]},
        lambda i: {"label": i % 2},
        ("hateful_memes",),
    ),
    "RTE": ("texts", rte, None, ("glue",)),
    "STS-B": ("numbers", stsb, None, ("glue",)),
    "image_classification": (
        "images",
        picture,
        lambda i: {"label": COLOURS[i % 6]},
        ("csv",),
    ),
    "segmentation": ("masks", picture, lambda i: {"mask": f"mask{i % 3}.png"}, ()),
    "zero_shot": ("pretraining", picture, lambda i: {"label": CAPTIONS[i % 5]}, ("csv",)),
    "perplexity": ("captioning", captioned, dict, ()),
    "pseudo_perplexity": ("vlmo", lambda i: {"text": CAPTIONS[i % 6]}, lambda i: {}, ()),
    "retrieval": (
        "pretraining",
        lambda i: picture(i) | {"caption": CAPTIONS[i % 6]},
        dict,
        ("trec",),
    ),
}
NAMES = {"answers": "vqa", "RTE": "classification", "STS-B": "classification"}
FILES = {"glue": "{case}.tsv", "trec": "run.trec"}


def write_data(folder, case, *, labelled, rows=COUNT):
    """Write the data of a case with its labels or without."""
    _, line, label, _ = CASES[case]
    name = "labelled" if labelled else "bare"
    if label is None:
        path = folder / f"{name}.tsv"
        path.write_text(line(rows, labelled))
    else:
        path = folder / f"{case}.{name}.jsonl"
        more = (lambda i: {}) if not labelled or label is dict else label
        path.write_text("".join(json.dumps(line(i) | more(i)) + "\n" for i in range(rows)))
    return DataSourceConfig(path=str(path), image_root=str(folder.parent), index="never")


@pytest.fixture
def here(root, tmp_path_factory):
    folder = root / f"t{len(list(root.glob('t*')))}"
    folder.mkdir()
    return folder


def settings_of(case, **more):
    classes = tuple(dict.fromkeys(CAPTIONS[:5])) if case == "zero_shot" else ()
    return PredictSettings(local_batch_size=5, asked=EvalSettings(classes=classes), **more)


@pytest.mark.parametrize("case", CASES)
def test_predict_then_score_is_eval_to_the_bit(root, here, case):
    folder, _, _, forms = CASES[case]
    task, settings = NAMES.get(case, case), settings_of(case)
    labelled, bare = (write_data(here, case, labelled=flag) for flag in (True, False))
    expected = evaluate_model(
        root / folder, task, labelled, local_batch_size=5, settings=settings.asked
    )
    for name, source in (("own", labelled), ("bare", bare)):
        out = here / f"{name}.jsonl"
        done = predict_model(root / folder, task, source, out, settings=settings)
        assert (done.num_before, done.num_skipped) == (0, 0)
        scored = score_file(out, labelled)
        assert scored.values == expected and scored.notes == [] and scored.task == task
    for form in forms:
        out = here / FILES.get(form, f"{form}.out").format(case=case)
        predict_model(root / folder, task, bare, out, form=form, settings=settings)
        scored = score_file(out, labelled, task=task)
        assert scored.form == form and scored.values
        by_name = {value.name: value for value in expected}
        for value in scored.values:
            reference = by_name[f"{value.name}_itm" if form == "trec" else value.name]
            if case != "STS-B":  # whose values are cut to 0 ... 5
                assert value.value == pytest.approx(reference.value, abs=1e-6)


@torch.no_grad()
def test_perplexities_equal_plain_loops(root, here):
    loaded = load_model(root / "captioning", device="cpu")
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    total, count = 0.0, 0
    for number in range(COUNT):
        pixels = torch.from_numpy(np.array(Image.open(root / f"{number}.png"))).double() / 255
        normal = (pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        image = model.encode_image(normal.permute(2, 0, 1)[None].float())
        start = torch.tensor([[tokenizer.cls_id]])
        empty = model.encode_text(start, torch.ones(1, 1, dtype=torch.bool))
        memory = model.decoder_memory(image, model.fuse(image, empty))
        ids = tokenizer.encode([CAPTIONS[number % 6]], max_tokens=20)[0]
        states = model.decode(torch.tensor([ids[:-1]]), memory)
        log_probs = torch.log_softmax(model.decoder.word_logits(states)[0].double(), dim=-1)
        total -= sum(float(log_probs[place, token]) for place, token in enumerate(ids[1:]))
        count += len(ids) - 1
    source = write_data(here, "perplexity", labelled=True)
    (value,) = evaluate_model(root / "captioning", "perplexity", source)
    assert value.value == pytest.approx(np.exp(total / count), rel=1e-4)
    assert not value.higher_is_better and f"{count} tokens" in value.protocol


@torch.no_grad()
def test_pseudo_perplexity_hides_one_token_at_a_time(root, here):
    loaded = load_model(root / "vlmo", device="cpu")
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    total, count = 0.0, 0
    for number in range(COUNT):
        ids = tokenizer.encode([CAPTIONS[number % 6]], max_tokens=20)[0]
        for place in range(1, len(ids) - 1):
            hidden = torch.tensor([ids])
            hidden[0, place] = tokenizer.mask_id
            text = model.encode_text(hidden, torch.ones_like(hidden, dtype=torch.bool))
            log_probs = torch.log_softmax(model.word_logits(text.tokens[0, place]).double(), -1)
            total -= float(log_probs[ids[place]])
            count += 1
    source = write_data(here, "pseudo_perplexity", labelled=True)
    (value,) = evaluate_model(root / "vlmo", "pseudo_perplexity", source)
    assert value.value == pytest.approx(np.exp(total / count), rel=1e-4)


def test_a_full_disk_is_an_error_that_says_so(root, here, monkeypatch):
    source, written = write_data(here, "vqa", labelled=False), []

    def full(descriptor, data):
        written.append(1)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    write = os.write
    monkeypatch.setattr("triptych.workflows.predictions.os.write", full)
    out, settings = here / "p.jsonl", settings_of("vqa")
    with pytest.raises(DataError, match=r"No space left on device; .* which stays"):
        predict_model(root / "vqa", "vqa", source, out, settings=settings)
    monkeypatch.undo()
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")
    assert predict_model(root / "vqa", "vqa", source, out, settings=settings).num_before == 5


def test_every_evaluation_that_is_registered_is_tried_here():
    tried = {NAMES.get(case, case) for case in CASES}
    assert set(evaluations()) - tried == set(), "add a case for a new evaluation"


def test_lines_say_what_made_them(root, here):
    source = write_data(here, "vqa", labelled=False)
    predict_model(root / "vqa", "vqa", source, here / "p.jsonl", settings=settings_of("vqa"))
    first, *rows = [json.loads(line) for line in (here / "p.jsonl").read_text().splitlines()]
    assert first["triptych"] == "predictions" and first["num_samples"] == COUNT == len(rows)
    assert first["model"] == str(root / "vqa") and first["data"] == source.path
    assert first["task_config"]["kind"] == "vqa" and first["protocol"].startswith("Predicted by")
    assert [(row["index"], row["id"], row["image_id"]) for row in rows] == [
        (i, str(100 + i), str(500 + i)) for i in range(COUNT)
    ]
    assert all(set(row) == {"index", "id", "image_id", "text"} for row in rows)


class KilledError(Exception):
    """Stands for a signal that ends the process."""


def kill_after(count):
    def progress(done, total):
        if done >= count:
            raise KilledError

    return progress


@pytest.mark.parametrize("case", ["vqa", "zero_shot", "RTE", "perplexity"])
def test_a_run_that_was_stopped_goes_on(root, here, case, monkeypatch):
    task, settings = NAMES.get(case, case), settings_of(case)
    source = write_data(here, case, labelled=False)
    folder = root / CASES[case][0]
    predict_model(folder, task, source, here / "whole.jsonl", settings=settings)
    out = here / "p.jsonl"
    with pytest.raises(KilledError):
        predict_model(folder, task, source, out, settings=settings, progress=kill_after(5))
    assert len(out.read_text().splitlines()) == 1 + 5
    with out.open("a") as file:
        file.write('{"index": 5, "id": "105", "ima')  # a kill in the middle of a line
    with pytest.raises(DataError, match="is not finished: 5 of 12"):
        score_file(out, source)
    seen = []
    again = predict_model(
        folder, task, source, out, settings=settings, progress=lambda now, _: seen.append(now)
    )
    assert again.num_before == 5 and seen[0] == 10  # the first five are not predicted again
    assert out.read_text() == (here / "whole.jsonl").read_text()
    monkeypatch.setattr("triptych.workflows.predict.predict_batches", None)  # asks no model
    finished = predict_model(folder, task, source, out, settings=settings)
    assert "was finished before: nothing was predicted again" in finished.words()


def test_a_search_goes_on_with_the_pairs_that_it_has(root, here, monkeypatch):
    source, settings = write_data(here, "retrieval", labelled=True), settings_of("retrieval")
    predict_model(root / "pretraining", "retrieval", source, here / "w.jsonl", settings=settings)
    monkeypatch.setitem(retrieval.PAIRS_A_PASS, "cpu", 16)
    scored = []
    match_pairs = sys.modules["triptych.tasks.finetuning.retrieval"].match_pairs

    def counted(*arguments):
        scored.append(1)
        if len(scored) == 4:
            raise KilledError
        return match_pairs(*arguments)

    monkeypatch.setattr("triptych.tasks.finetuning.retrieval.match_pairs", counted)
    out = here / "p.jsonl"
    with pytest.raises(KilledError):
        predict_model(root / "pretraining", "retrieval", source, out, settings=settings)
    assert (here / "p.jsonl.pairs").stat().st_size == 32 + 3 * 16 * 4
    before = len(scored)
    predict_model(root / "pretraining", "retrieval", source, out, settings=settings)
    assert not (here / "p.jsonl.pairs").exists()
    total = before - 1 + len(scored) - before
    assert total == -(-COUNT * len(set(CAPTIONS)) // 16)  # every pair once, the failed pass apart
    assert score_file(out, source).values == score_file(here / "w.jsonl", source).values


def test_killed_by_a_signal_at_any_moment(root, here):
    source = write_data(here, "caption", labelled=False)
    out = here / "p.jsonl"
    code = (
        "import sys, time\n"
        "from triptych.cli.main import main\n"
        "import triptych.workflows.predict as p, triptych.serving.loading as s\n"
        "s.resolve_precision = lambda *_: 'fp32'\n"
        "add = p.PredictionFile.add\n"
        "def slow(self, rows):\n    add(self, rows); print(self.num_rows, flush=True)\n"
        "    time.sleep(30 if self.num_rows > 4 else 0)\n"
        "p.PredictionFile.add = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["predict", str(root / "captioning"), "--task", "caption", "--data", source.path]
    arguments += ["--image-root", str(root), "--index", "never", "--out", str(out)]
    arguments += ["--local-batch-size", "2"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGKILL)
    assert lines == ["2\n", "4\n", "6\n"] and len(out.read_text().splitlines()) == 1 + 6
    settings = replace(settings_of("caption"), local_batch_size=2)
    again = predict_model(root / "captioning", "caption", source, out, settings=settings)
    assert again.num_before == 6
    predict_model(root / "captioning", "caption", source, here / "w.jsonl", settings=settings)
    assert out.read_text().splitlines()[1:] == (here / "w.jsonl").read_text().splitlines()[1:]


def test_other_models_data_and_settings_are_refused(root, here):
    source = write_data(here, "vqa", labelled=False)
    out, settings = here / "p.jsonl", settings_of("vqa")

    def predict(folder="vqa", task="vqa", source=source, settings=settings):
        return predict_model(root / folder, task, source, out, settings=settings)

    predict()
    with pytest.raises(ConfigError, match=r"the model \('.*vqa' in the file, now '.*answers'\)"):
        predict("answers")
    with pytest.raises(ConfigError, match=r"the task \('vqa' in the file, now 'caption'\)"):
        predict("captioning", "caption")
    with pytest.raises(ConfigError, match=r"limit \(None in the file, now 3\)"):
        predict(settings=replace(settings, limit=3))
    asked = EvalSettings(generation=GenerationSettings(num_beams=1))
    with pytest.raises(ConfigError, match=r"generation.num_beams \(None in the file, now 1\)"):
        predict(settings=replace(settings, asked=asked))
    changed = Path(source.path)
    changed.write_text(changed.read_text().replace("star", "square", 1))
    with pytest.raises(ConfigError, match=r"the data .* of the same name, which has changed"):
        predict()
    assert len(read_predictions(out)[1]) == COUNT
    assert predict(settings=replace(settings, overwrite=True)).num_before == 0


def test_labels_that_are_added_change_nothing(root, here):
    source, settings = write_data(here, "vqa", labelled=False), settings_of("vqa")
    predict_model(root / "vqa", "vqa", source, here / "p.jsonl", settings=settings)
    Path(source.path).write_text(Path(write_data(here, "vqa", labelled=True).path).read_text())
    done = predict_model(root / "vqa", "vqa", source, here / "p.jsonl", settings=settings)
    assert done.num_before == COUNT


def test_files_that_are_not_ours_are_left_alone(root, here):
    source = write_data(here, "vqa", labelled=False)
    out = here / "p.jsonl"
    out.write_text("mine\n")
    for overwrite in (False, True):
        settings = settings_of("vqa", overwrite=overwrite)
        with pytest.raises(ConfigError, match="no file of predictions of ours"):
            predict_model(root / "vqa", "vqa", source, out, settings=settings)
    assert out.read_text() == "mine\n"
    with pytest.raises(ConfigError, match="is a folder"):
        predict_model(root / "vqa", "vqa", source, here, settings=settings_of("vqa"))


def test_two_processes_do_not_write_one_file(root, here):
    source, out = write_data(here, "vqa", labelled=False), here / "p.jsonl"

    def meanwhile(now, total):
        with pytest.raises(ConfigError, match="another process is writing"):
            predict_model(root / "vqa", "vqa", source, out, settings=settings_of("vqa"))

    predict_model(root / "vqa", "vqa", source, out, settings=settings_of("vqa"), progress=meanwhile)
    assert len(read_predictions(out)[1]) == COUNT


def test_unreadable_images_are_told_as_eval_tells_them(root, here):
    source = write_data(here, "vqa", labelled=True)
    lines = Path(source.path).read_text().splitlines()
    lines[3] = lines[3].replace("3.png", "absent.png")
    lines[7] = lines[7].replace("7.png", "absent2.png")
    Path(source.path).write_text("\n".join(lines) + "\n")
    settings = settings_of("vqa", max_bad_share=0.5)
    expected = evaluate_model(root / "vqa", "vqa", source, local_batch_size=5, max_bad_share=0.5)
    told = []
    out = here / "p.jsonl"
    with pytest.raises(KilledError):
        predict_model(root / "vqa", "vqa", source, out, settings=settings, progress=kill_after(5))
    done = predict_model(root / "vqa", "vqa", source, out, settings=settings, tell=told.append)
    assert done.num_skipped == 2 and "2 of 12 samples skipped" in told[0]
    assert score_file(out, source).values == expected
    assert "2 of 12 samples skipped (unreadable)" in expected[0].protocol
    predict_model(root / "vqa", "vqa", source, here / "a.json", form="vqa", settings=settings)
    official = score_file(here / "a.json", source, allow_missing=True)
    assert official.values[0].value == expected[0].value
    assert "2 of 12 samples have no prediction" in official.values[0].protocol
    with pytest.raises(DataError, match="At most"):
        predict_model(root / "vqa", "vqa", source, here / "b.jsonl", settings=settings_of("vqa"))
    assert not (here / "b.jsonl").exists() or len(read_predictions(here / "b.jsonl")[1]) < COUNT


@pytest.fixture
def answers(root, here):
    """Labelled data, and predictions of it in the official form."""
    source = write_data(here, "vqa", labelled=True)
    predict_model(root / "vqa", "vqa", source, here / "a.json", form="vqa")
    return source, here / "a.json", json.loads((here / "a.json").read_text())


def test_double_unknown_and_missing_predictions(answers):
    source, path, listed = answers

    def score(entries, **options):
        path.write_text(json.dumps(entries))
        return score_file(path, source, **options)

    with pytest.raises(DataError, match="predicts more than once: 100"):
        score([*listed, listed[0]])
    with pytest.raises(DataError, match=r"1 sample is \(7\) not in the data"):
        score([*listed, {"question_id": 7, "answer": "a"}])
    with pytest.raises(DataError, match=r"3 samples are \(109, 110, 111\) in the data but not"):
        score(listed[:9])
    some = score(listed[:9], allow_missing=True)
    assert some.values[0].num_items == 9 and some.notes[0].startswith("3 of 12 samples have no")
    with pytest.raises(DataError, match="not predicted"):
        score(
            [{"question_id": 7, "answer": "a"}][:0] or listed[:0] or listed[:1][:0] or [listed[0]]
        )


def test_predictions_without_a_label_in_the_data_are_counted(root, here):
    whole, half = (write_data(here, "vqa", labelled=flag) for flag in (False, True))
    lines = Path(half.path).read_text().splitlines()
    bare = Path(whole.path).read_text().splitlines()
    Path(half.path).write_text("\n".join(lines[:8] + bare[8:]) + "\n")
    predict_model(root / "vqa", "vqa", whole, here / "p.jsonl")
    scored = score_file(here / "p.jsonl", half)
    assert scored.values[0].num_items == 8
    assert scored.notes == [
        "4 predictions are of samples that are not scored: they have no answers in the data"
    ]


def test_labels_of_another_spelling_are_an_error(root, here):
    source = write_data(here, "snli_ve", labelled=True)
    path = here / "p.csv"
    path.write_text("pairID,gold_label\n" + "".join(f"{100 + i},Neutral\n" for i in range(COUNT)))
    with pytest.raises(DataError, match="its labels are Neutral, and those of the data"):
        score_file(path, source)
    path.write_text(path.read_text().replace("Neutral", "neutral", 3))
    assert (
        "9 predictions have a label that the data lacks (Neutral)" in score_file(path, source).notes
    )


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda lines: [*lines[:4], lines[4][:20], *lines[5:]], "p.jsonl:5: damaged"),
        (lambda lines: lines[1:], "of no form that is known"),
        (lambda lines: [*lines[:3], *lines[4:]], "p.jsonl:4: damaged: is not that of sample 2"),
        (lambda lines: [*lines, lines[-1]], "damaged: is not that of sample 12"),
        (lambda lines: [lines[0].replace('"version": 1', '"version": 9'), *lines[1:]], "version 9"),
        (lambda lines: [], "of no form"),
    ],
)
def test_broken_files_of_ours(root, here, damage, match):
    source = write_data(here, "vqa", labelled=True)
    path = here / "p.jsonl"
    predict_model(root / "vqa", "vqa", source, path)
    path.write_text("".join(line + "\n" for line in damage(path.read_text().splitlines())))
    with pytest.raises(DataError, match=match):
        score_file(path, source)


def test_what_cannot_be_told_must_be_named(root, here):
    source = write_data(here, "snli_ve", labelled=True)
    path = here / "p.csv"
    path.write_text("id,label\n" + "".join(f"{100 + i},neutral\n" for i in range(COUNT)))
    with pytest.raises(ConfigError, match="are of several tasks: name one with --task"):
        score_file(path, source)
    assert score_file(path, source, task="snli_ve").values[0].name == "snli_ve"
    with pytest.raises(ConfigError, match="none of those of snli_ve"):
        score_file(path, source, task="snli_ve", form="vqa")
    with pytest.raises(DataError, match="not in the form 'snli_ve'"):
        score_file(path, source, task="snli_ve", form="snli_ve")
    with pytest.raises(ConfigError, match="unknown task"):
        score_file(path, source, task="snlive")
    with pytest.raises(DataError, match="no such file"):
        score_file(here / "absent", source, task="snli_ve")
    predict_model(root / "snli_ve", "snli_ve", source, here / "p.jsonl")
    with pytest.raises(ConfigError, match="holds predictions of 'snli_ve', not of 'vqa'"):
        score_file(here / "p.jsonl", source, task="vqa")


def test_settings_of_generation_reach_the_texts(root, here):
    source = write_data(here, "caption", labelled=True)

    def texts(name, **given):
        asked = EvalSettings(generation=GenerationSettings(**given))
        settings = PredictSettings(asked=asked, local_batch_size=5)
        predict_model(root / "captioning", "caption", source, here / name, settings=settings)
        values = evaluate_model(
            root / "captioning", "caption", source, local_batch_size=5, settings=asked
        )
        assert score_file(here / name, source).values == values
        return [row["text"] for row in read_predictions(here / name)[1]]

    own = texts("own.jsonl")
    assert own == texts("same.jsonl", num_beams=SHORT.num_beams, max_tokens=SHORT.max_tokens)
    assert all(len(text.split()) <= 2 for text in texts("short.jsonl", max_tokens=2))
    assert texts("one.jsonl", num_beams=1, min_tokens=5) != own
    prompted = texts("prompt.jsonl", prompt="a small red")
    assert prompted != own and not any(text.startswith("a small red") for text in prompted)
    drawn = [texts(f"s{n}.jsonl", top_p=0.95, seed=s) for n, s in enumerate((1, 1, 2))]
    assert drawn[0] == drawn[1] != drawn[2]
    likeliest = texts("k1.jsonl", top_k=1)
    assert likeliest == texts("greedy.jsonl", num_beams=1)


def test_draws_depend_on_the_place_alone():
    together, alone = sample_numbers(3, [4, 9], 7), sample_numbers(3, [9], 7)
    assert torch.equal(together[1:], alone) and not torch.equal(together[0], alone[0])
    assert together.shape == (2, 1, 7) and together.min() >= 0 and together.max() < 1


@pytest.mark.parametrize(
    ("folder", "task", "given", "error", "match"),
    [
        ("grounding", "grounding", {"num_beams": 2}, ConfigError, "--num-beams: a model that was"),
        ("answers", "vqa", {"max_tokens": 3}, ConfigError, "generates no text for `vqa`"),
        ("pretraining", "retrieval", {"prompt": "a"}, ConfigError, "`retrieval` generates no text"),
        ("captioning", "perplexity", {"top_k": 3}, ConfigError, "reads texts and generates none"),
        (
            "captioning",
            "caption",
            {"max_tokens": 1, "min_tokens": 1},
            ConfigError,
            "min_tokens = 1: must",
        ),
        ("captioning", "caption", {"max_tokens": 4000}, ConfigError, "lower max_tokens"),
        ("vqa", "caption", {}, CapabilityError, "does not teach `caption`"),
        ("pretraining", "pseudo_perplexity", {}, CapabilityError, "cannot be asked for"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_no_file(root, here, folder, task, given, error,
                                                           match):  # fmt: skip
    case = "caption" if task == "pseudo_perplexity" else task
    source = write_data(here, case if case in CASES else "caption", labelled=True)
    if task == "pseudo_perplexity":
        Path(source.path).write_text('{"text": "a star"}\n')
    if task == "vqa":
        source = write_data(here, "answers", labelled=True)
    asked = EvalSettings(generation=GenerationSettings(**given))
    for run in (
        lambda: predict_model(
            root / folder, task, source, here / "p.jsonl", settings=PredictSettings(asked=asked)
        ),
        lambda: evaluate_model(root / folder, task, source, settings=asked),
    ):
        with pytest.raises(error, match=match):
            run()
    assert not (here / "p.jsonl").exists()


def test_beams_or_samples():
    with pytest.raises(ConfigError, match="num_beams excludes top_p"):
        GenerationSettings(num_beams=2, top_p=0.5)
    with pytest.raises(ConfigError, match="seed = -1"):
        GenerationSettings(seed=-1)
    assert GenerationSettings(length_penalty=0.0).beam(BeamConfig()).length_penalty == 0


def test_answers_from_a_list_take_no_lengths(root, here):
    config = json.loads((root / "vqa" / "config.json").read_text())
    config["task"]["answer_list"] = ["yes", "no"]
    folder = here / "listed"
    folder.mkdir()
    for path in (root / "vqa").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "SHA256SUMS").unlink()
    source = write_data(here, "vqa", labelled=True)
    asked = EvalSettings(generation=GenerationSettings(max_tokens=3, num_beams=2))
    with pytest.raises(ConfigError, match="num_beams, max_tokens: the model chooses its answers"):
        evaluate_model(folder, "vqa", source, settings=asked)


def test_images_and_texts_are_searched_without_pairs(root, here):
    images, texts = here / "images.jsonl", here / "texts.jsonl"
    pairs = write_data(here, "retrieval", labelled=True)
    images.write_text("".join(json.dumps(picture(i)) + "\n" for i in range(COUNT)))
    texts.write_text(
        "".join(
            json.dumps({"id": str(100 + i), "text": CAPTIONS[i % 6]}) + "\n" for i in range(COUNT)
        )
    )
    bare = [
        DataSourceConfig(path=str(path), image_root=str(root), index="never")
        for path in (images, texts)
    ]
    settings = settings_of("retrieval")
    predict_model(root / "pretraining", "retrieval", bare, here / "p.jsonl", settings=settings)
    predict_model(root / "pretraining", "retrieval", pairs, here / "q.jsonl", settings=settings)
    found, whole = (score_file(here / name, pairs) for name in ("p.jsonl", "q.jsonl"))
    assert [v.value for v in found.values] == [v.value for v in whole.values]
    assert found.notes == []


def test_classes_must_be_named_for_images_without_labels(root, here):
    source = write_data(here, "zero_shot", labelled=False)
    with pytest.raises(ConfigError, match="name the classes with --classes"):
        predict_model(root / "pretraining", "zero_shot", source, here / "p.jsonl")


def test_data_without_what_the_model_reads_is_an_error(root, here):
    source = write_data(here, "caption", labelled=True)
    with pytest.raises(DataError, match="nothing to predict vqa of: 12 records"):
        predict_model(root / "vqa", "vqa", source, here / "p.jsonl")


def test_forms_of_other_tasks_are_refused_before_the_model_is_loaded(here):
    source = write_data(here, "vqa", labelled=False)
    with pytest.raises(ConfigError, match=r"none of those of vqa.*jsonl \(our own\), vqa"):
        predict_model(Path("absent"), "vqa", source, here / "p", form="coco")
    assert "vqa" in FORMS


def test_ids_that_a_server_does_not_take_are_refused_before_anything_is_predicted(root, here):
    source = write_data(here, "vqa", labelled=False)
    Path(source.path).write_text(Path(source.path).read_text().replace('"id": "1', '"id": "q1'))
    with pytest.raises(DataError, match="'q100' is no whole number"):
        predict_model(root / "vqa", "vqa", source, here / "p.json", form="vqa")
    assert not (here / "p.json").exists() and not (here / "p.predictions.jsonl").exists()
    with pytest.raises(ConfigError, match="none of them"):
        predict_model(
            root / "texts", "classification", write_data(here, "RTE", labelled=False),
            here / "rte.tsv", form="glue",
        )  # fmt: skip


def test_bad_settings():
    for given, match in (
        ({"limit": 0}, "limit = 0"),
        ({"list_length": 5}, "list_length = 5"),
        ({"local_batch_size": 0}, "local_batch_size = 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            PredictSettings(**given)


def test_time_is_not_wasted_on_a_finished_file(root, here):
    source = write_data(here, "vqa", labelled=False)
    predict_model(root / "vqa", "vqa", source, here / "p.jsonl")
    stamp = (here / "p.jsonl").stat().st_mtime_ns
    time.sleep(0.01)
    predict_model(root / "vqa", "vqa", source, here / "p.jsonl")
    assert (here / "p.jsonl").stat().st_mtime_ns == stamp
