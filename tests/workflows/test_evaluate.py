"""Scores of a model folder equal what plain loops over single images compute."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.serving.tiny_folder import IMAGE_SIZE, write_tiny_folder
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.data.manifest import read_records
from triptych.data.source import DataSourceConfig
from triptych.models.mplug.model import MPLUG
from triptych.serving.loading import load_model
from triptych.text import Tokenizer
from triptych.train.precision import explain_precision
from triptych.workflows import search
from triptych.workflows.evaluate import (
    EvalSettings,
    evaluate_in_processes,
    evaluate_loaded,
    evaluate_model,
)

from .small_runs import trained_model

COUNT = 12
NUM_BINS = 9  # of the tiny grounding folder
# CLIP's, as in openai/CLIP `clip.py::_transform`
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
QUESTION = "what color is the star ?"
PHRASE = "the small red circle"
CAPTIONS = [
    "a small red circle",
    "a large blue square",
    "what color is a circle",
    "the green star",
    "a star and a circle",
    "no square",
    "yes a large star",
    "a blue circle and a small green square",
    "is the star red",
    "red red blue",
    "green",
    "a large large star and no circle",
]


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Compute in fp32: bf16 would let near ties fall either way."""
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")


@pytest.fixture(scope="module")
def image_paths(tmp_path_factory):
    """Noise at the model's own size, so that there is nothing to resize."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    paths = []
    for number in range(COUNT):
        low, high = sorted(rng.integers(0, 257, 2).tolist())
        pixels = rng.integers(low, max(high, low + 20), (IMAGE_SIZE, IMAGE_SIZE, 3))
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


class PlainModel:
    """A model folder, asked for one image at a time, without caches."""

    def __init__(self, folder: Path) -> None:
        self.model = trained_model(folder).eval()
        self.tokenizer = Tokenizer.load(folder)

    def image(self, path: Path):
        pixels = torch.from_numpy(np.array(Image.open(path))).double() / 255
        normal = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
        return self.model.encode_image(normal.permute(2, 0, 1)[None].float())

    def text(self, words: str):
        ids = self.tokenizer.encode([words], max_tokens=20)[0] if words else [self.tokenizer.cls_id]
        return self.model.encode_text(torch.tensor([ids]), torch.ones(1, len(ids), dtype=bool))

    @torch.no_grad()
    def embeddings(self, paths, texts):
        images = torch.cat([self.model.embed_image(self.image(path)) for path in paths])
        return images, torch.cat([self.model.embed_text(self.text(text)) for text in texts])

    @torch.no_grad()
    def match(self, path, words):
        no, yes = self.model.match_logits(self.model.fuse(self.image(path), self.text(words)))[0]
        return float(yes - no)

    @torch.no_grad()
    def say(self, path, words, start, steps):
        """Return the likeliest tokens one after the other; `steps` are the ids allowed in each."""
        image = self.image(path)
        memory = self.model.decoder_memory(image, self.model.fuse(image, self.text(words)))
        said = [start]
        for allowed in steps:
            states = self.model.decode(torch.tensor([said]), memory)
            logits = self.model.decoder.word_logits(states)[0, -1]
            said.append(max(allowed, key=lambda token: float(logits[token])))
        return said[1:]

    def words(self, path, question, num_tokens):
        """Return a text of at most `num_tokens` tokens, the first of which is not the end."""
        every, end = range(self.tokenizer.vocab_size), self.tokenizer.sep_id
        first = [token for token in every if token != end] if num_tokens > 1 else every
        steps = [first, *[every] * (num_tokens - 1)]
        ids = self.say(path, question, self.tokenizer.cls_id, steps)
        return self.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)

    def box(self, path):
        """Return x0, y0, x1, y1 in pixels from four coordinate tokens."""
        first = self.tokenizer.unused_id(1)
        bins = range(first, first + NUM_BINS)
        ids = self.say(path, PHRASE, self.tokenizer.unused_id(0), [bins] * 4)
        x, y, w, h = (min(1, (token - first + 0.5) / (NUM_BINS - 1)) for token in ids)
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return [IMAGE_SIZE * min(1, max(0, value)) for value in corners]


def model_folder(folder: Path, trained_for: str, max_tokens: int | None = None) -> Path:
    """Write a tiny folder; with `max_tokens`, its search follows the likeliest token alone."""
    write_tiny_folder(folder, trained_for)
    if max_tokens is not None:
        config = json.loads((folder / "config.json").read_text())
        config["task"]["beam"] |= {
            "num_beams": 1,
            "min_tokens": max_tokens - 1,
            "max_tokens": max_tokens,
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "SHA256SUMS").unlink()  # it is changed on purpose
    return folder


def manifest(path: Path, lines: list[dict]) -> DataSourceConfig:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataSourceConfig(path=str(path))


def values_of(results):
    return {result.name: result.value for result in results}


def captioned(image_paths):
    """Pairs in which image 0 has two captions, and images 2 and 3 share one but for its case.

    The last two images come second, so that positions and numbers differ.
    """
    pairs = [(image_paths[number], CAPTIONS[number]) for number in (0, 10, 11, *range(1, 10))]
    pairs.insert(5, (image_paths[0], "a star"))
    place = next(i for i, pair in enumerate(pairs) if pair[0] == image_paths[3])
    pairs[place] = (image_paths[3], f"{CAPTIONS[2].capitalize()}!")
    return pairs


def recalls(scores, right, ks=(1, 5, 10)):
    """Count the queries whose best right candidate has fewer than k wrong ones before it."""
    ranks = []
    for row, good in zip(scores.tolist(), right, strict=True):
        best = max(value for value, g in zip(row, good) if g)
        ranks.append(sum(value >= best for value, g in zip(row, good) if not g))
    return [sum(rank < k for rank in ranks) / len(ranks) for k in ks]


def shortlisted(sims, scores, top):
    """Return `scores` where `sims` is among the `top` of its row, and a value below all else."""
    kept = torch.full_like(scores, -1e9)
    for row, line in enumerate(sims.tolist()):
        for place in sorted(range(len(line)), key=lambda i: -line[i])[:top]:
            kept[row, place] = scores[row, place]
    return kept


@pytest.mark.parametrize(("itm_score", "itc_share"), [("itm", 0), ("itm+itc", 1)])
def test_recalls_equal_those_of_the_whole_matrix(tmp_path, image_paths, itm_score, itc_share):
    folder = model_folder(tmp_path / "m", "pretraining")
    pairs = captioned(image_paths)
    source = manifest(
        tmp_path / "d.jsonl", [{"image": str(path), "caption": text} for path, text in pairs]
    )
    found = evaluate_model(
        folder, "retrieval", source, rerank_top_k=4, itm_score=itm_score, local_batch_size=5
    )
    plain = PlainModel(folder)
    paths = list(dict.fromkeys(path for path, _ in pairs))
    texts = [text.lower().rstrip("!") for _, text in pairs]
    images, words = plain.embeddings(paths, texts)
    sims = images @ words.T  # (12 image_paths, 13 captions)
    itm = torch.tensor([[plain.match(path, text) for text in texts] for path in paths])
    itm = itm + itc_share * sims
    own = {(path, text) for (path, _), text in zip(pairs, texts)}
    right = np.array([[(path, text) in own for text in texts] for path in paths])
    assert right.sum() == 15  # 13 pairs, and the shared caption crosswise
    expected = {}
    for way, s, m, r in (("i2t", sims, itm, right), ("t2i", sims.T, itm.T, right.T)):
        for suffix, scores in (("", s), ("_itm", shortlisted(s, m, 4))):
            found_at = recalls(scores, r)
            expected |= {f"{way}_r{k}{suffix}": v for k, v in zip((1, 5, 10), found_at)}
    for suffix in ("", "_itm"):
        six = [expected[f"{way}_r{k}{suffix}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
        expected[f"r_mean{suffix}"] = sum(six) / 6
    assert values_of(found) == pytest.approx(expected)
    assert any(0 < value < 1 for value in expected.values())
    protocols = [result.protocol for result in found if result.name.endswith("_itm")]
    assert all(f"ranked by {itm_score.upper()}" in text for text in protocols)


def _scored(folder, source):
    said = []
    found = evaluate_model(
        folder, "retrieval", source, rerank_top_k=4, max_bad_share=0.5, on_skipped=said.append
    )
    return values_of(found), [text.partition(":")[0] for text in said]


def test_two_processes_score_as_one(tmp_path, image_paths):
    folder = model_folder(tmp_path / "m", "pretraining")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    pairs = [*captioned(image_paths), (broken, "one"), (broken, "two")]
    lines = [{"image": str(path), "caption": text} for path, text in pairs]
    source = manifest(tmp_path / "d.jsonl", lines)
    one, said = _scored(folder, source)
    assert said == [f"2 of {len(pairs)} samples skipped"]
    ask = partial(evaluate_model, folder, "retrieval", source, rerank_top_k=4, max_bad_share=0.5)
    both, notes = evaluate_in_processes(2, "retrieval", ask)
    assert [text.partition(":")[0] for text in notes] == said
    assert values_of(both) == pytest.approx(one)
    assert any(0 < value < 1 for value in one.values())
    with pytest.raises(ConfigError, match="only retrieval is shared"):
        evaluate_in_processes(2, "caption", ask)


def test_java_metrics_are_for_captions(tmp_path, image_paths):
    folder = model_folder(tmp_path / "m", "pretraining")
    lines = [{"image": str(path), "caption": text} for path, text in captioned(image_paths)]
    source = manifest(tmp_path / "d.jsonl", lines)
    settings = EvalSettings(java_metrics=("meteor",))
    with pytest.raises(ConfigError, match="only captions are scored by them"):
        evaluate_model(folder, "retrieval", source, settings=settings)


def test_states_in_files_give_the_same_scores(tmp_path, image_paths, monkeypatch):
    folder = model_folder(tmp_path / "m", "pretraining")
    lines = [{"image": str(path), "caption": text} for path, text in captioned(image_paths)]
    source = manifest(tmp_path / "d.jsonl", lines)
    expected = _scored(folder, source)
    rooms = []
    store = search.StateStore

    def small(memory_mib):
        rooms.append(memory_mib)
        return store(0)

    monkeypatch.setattr(search, "StateStore", small)
    assert _scored(folder, source) == expected
    assert rooms == [4096]


def test_without_candidates_for_itm_its_numbers_are_absent(tmp_path, image_paths):
    folder = model_folder(tmp_path / "m", "retrieval")
    lines = [{"image": str(path), "caption": text} for path, text in captioned(image_paths)]
    source = manifest(tmp_path / "d.jsonl", lines)
    names = set(values_of(evaluate_model(folder, "retrieval", source, rerank_top_k=0)))
    assert names == {"r_mean", *(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))}


def test_answers_and_their_score_equal_those_of_a_plain_loop(tmp_path, image_paths):
    folder = model_folder(tmp_path / "m", "vqa", max_tokens=1)
    plain = PlainModel(folder)
    said = [plain.words(path, QUESTION, 1) for path in image_paths]
    assert len(set(said)) > 1 and all(said)
    # The official script leaves each answer out once: with all ten equal 1; with two of ten,
    # two subsets hold one match and eight hold two: (2 · 1/3 + 8 · 2/3) / 10 = 0.6; else 0.
    scores = [(1.0, 0.6, 0.0)[number % 3] for number in range(COUNT)]
    matches = [(10, 2, 0)[number % 3] for number in range(COUNT)]
    lines = [
        {
            "image": str(path),
            "question": QUESTION,
            "answers": [text] * count + ["elsewhere"] * (10 - count),
            "question_type": "even" if number % 2 == 0 else "odd",
        }
        for number, (path, text, count) in enumerate(zip(image_paths, said, matches))
    ]
    kept = {}
    found = evaluate_model(
        folder,
        "vqa",
        manifest(tmp_path / "d.jsonl", lines),
        local_batch_size=5,
        keep=lambda p: kept.update(zip(p.index, p.texts)),
    )
    assert [kept[number] for number in range(COUNT)] == said
    expected = {"vqa": np.mean(scores), "vqa/even": np.mean(scores[::2])}
    assert values_of(found) == pytest.approx(expected | {"vqa/odd": np.mean(scores[1::2])})


def test_a_caption_is_scored_against_all_captions_of_its_image(tmp_path, image_paths):
    folder = model_folder(tmp_path / "m", "captioning", max_tokens=2)
    plain = PlainModel(folder)
    said = [plain.words(path, "", 2) for path in image_paths]
    lines = []
    for number, (path, text) in enumerate(zip(image_paths, said)):
        other = " ".join(["elsewhere"] * len(text.split()))  # as long: no brevity penalty
        lines.append({"image": str(path), "caption": [other, text if number % 3 == 0 else other]})
    found = values_of(evaluate_model(folder, "caption", manifest(tmp_path / "d.jsonl", lines)))
    lengths = [len(text.split()) for text in said]
    assert found["bleu_1"] == pytest.approx(sum(lengths[::3]) / sum(lengths))
    assert found["rouge_l"] == pytest.approx(4 / COUNT)


def overlap(a, b):
    """Return the intersection over union of two x0, y0, x1, y1 boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared)


def test_boxes_and_their_score_equal_those_of_a_plain_loop(tmp_path, image_paths):
    folder = model_folder(tmp_path / "m", "grounding")
    plain = PlainModel(folder)
    said = [plain.box(path) for path in image_paths]
    assert len({tuple(box) for box in said}) > 1
    truth = [box if number % 2 else [2, 3, 9, 12] for number, box in enumerate(said)]
    lines = [
        {"image": str(path), "phrase": PHRASE, "box": [x0, y0, x1 - x0, y1 - y0]}
        for path, (x0, y0, x1, y1) in zip(image_paths, truth)
    ]
    boxes = {}
    found = evaluate_model(
        folder,
        "grounding",
        manifest(tmp_path / "d.jsonl", lines),
        keep=lambda p: boxes.update(zip(p.index, p.boxes_xyxy.tolist())),
    )
    np.testing.assert_allclose([boxes[i] for i in range(COUNT)], said, atol=1e-4)
    ious = [overlap(a, b) for a, b in zip(said, truth)]
    hits = sum(iou >= 0.5 - 1e-9 for iou in ious)
    assert values_of(found) == pytest.approx(
        {"grounding": hits / COUNT, "grounding_iou": sum(ious) / COUNT}, abs=1e-5
    )


@pytest.mark.parametrize(
    ("trained_for", "task"),
    [
        ("pretraining", "vqa"),
        ("pretraining", "grounding"),
        ("vqa", "caption"),
        ("grounding", "retrieval"),
        ("captioning", "retrieval"),
    ],
)
def test_an_untrained_task_names_the_command_that_trains_it(tmp_path, trained_for, task):
    folder = model_folder(tmp_path / "m", trained_for)
    command = f"triptych train mplug.{task} --data YOUR_DATA.jsonl --init-from {folder}"
    with pytest.raises(CapabilityError, match=f"trained for {trained_for}.*{command}"):
        evaluate_model(folder, task, DataSourceConfig(path="absent.jsonl"))


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path / "m", "pretraining")


@pytest.fixture
def lines(image_paths):
    return [{"image": str(path), "caption": text} for path, text in zip(image_paths, CAPTIONS)]


def test_a_limit_takes_the_first_records(tmp_path, folder, lines):
    few, loaded = manifest(tmp_path / "d.jsonl", lines), []
    some = evaluate_model(folder, "retrieval", few, limit=5, on_loaded=loaded.append)
    assert [model.precision_reason for model in loaded] == [
        explain_precision("auto", "fp32", loaded[0].device)
    ]
    same = evaluate_model(folder, "retrieval", manifest(tmp_path / "e.jsonl", lines[:5]))
    assert some == same
    counts = {result.name: result.num_items for result in some}
    assert counts == {name: 10 if "mean" in name else 5 for name in counts}  # both directions


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_an_error(tmp_path, folder, lines, limit):
    source = manifest(tmp_path / "d.jsonl", lines)
    with pytest.raises(ConfigError, match=f"limit = {limit}: must be at least 1"):
        evaluate_model(folder, "retrieval", source, limit=limit)


def test_bad_lines_are_judged_with_the_whole_file_whatever_the_limit(tmp_path, folder, lines):
    source = manifest(tmp_path / "d.jsonl", [*lines, {"image": "x.png", "caption": ""}])
    share = 0.1  # 1 of 13 is bad; 1 of 3 would be too many
    assert evaluate_model(folder, "retrieval", source, limit=2, max_bad_share=share)
    with pytest.raises(DataError, match=r"1 of 13 samples are bad so far .*: 1 empty_caption"):
        evaluate_model(folder, "retrieval", source, limit=2, max_bad_share=0.05)


def test_an_unreadable_image_is_left_out_and_said(tmp_path, folder, lines, image_paths):
    cut = tmp_path / "cut.png"
    cut.write_bytes(image_paths[0].read_bytes()[:200])
    bad = [*lines[:4], {"image": str(cut), "caption": "a circle"}, *lines[4:]]
    source = manifest(tmp_path / "d.jsonl", bad)
    found = evaluate_model(folder, "retrieval", source, max_bad_share=0.1)
    whole = evaluate_model(folder, "retrieval", manifest(tmp_path / "e.jsonl", lines))
    assert values_of(found) == values_of(whole)
    assert all("1 of 13 samples skipped (unreadable)" in result.protocol for result in found)
    with pytest.raises(DataError, match="1 of 13 samples are bad") as stop:
        evaluate_model(folder, "retrieval", source)
    assert str(cut) in str(stop.value) and "with --max-bad-share 0.08" in str(stop.value)


def test_progress_counts_samples(tmp_path, folder, lines):
    told = []
    source = manifest(tmp_path / "d.jsonl", lines)
    evaluate_model(folder, "retrieval", source, local_batch_size=5, progress=told.append)
    assert told == [5, 10, COUNT]


def test_an_unknown_task_names_the_nearest(folder):
    with pytest.raises(ConfigError, match=r"unknown task .captoin.*caption"):
        evaluate_model(folder, "captoin", DataSourceConfig(path="absent.jsonl"))


def test_data_without_what_the_task_needs_is_an_error(tmp_path, image_paths):
    source = manifest(tmp_path / "d.jsonl", [{"image": str(image_paths[0]), "question": "why ?"}])
    folder = model_folder(tmp_path / "m", "captioning")
    with pytest.raises(DataError, match="nothing to evaluate caption on: 1 records"):
        evaluate_model(folder, "caption", source)


def test_each_image_is_encoded_once_however_many_captions_it_has(
    tmp_path, folder, image_paths, monkeypatch
):
    """Five captions of two images: as if each caption had a file of its own."""
    texts = CAPTIONS[:10]
    shared = [{"image": str(image_paths[i // 5]), "caption": text} for i, text in enumerate(texts)]
    sizes = []
    encode = MPLUG.encode_image

    def counting(self, image, **settings):
        sizes.append(len(image))
        return encode(self, image, **settings)

    monkeypatch.setattr(MPLUG, "encode_image", counting)
    settings = {"rerank_top_k": 4, "local_batch_size": 3}
    found = evaluate_model(folder, "retrieval", manifest(tmp_path / "d.jsonl", shared), **settings)
    assert sizes == [2]
    plain = PlainModel(folder)
    images, embedded = plain.embeddings(image_paths[:2], texts)
    sim = images @ embedded.T
    best = [int(row.argmax()) // 5 == number for number, row in enumerate(sim)]
    assert values_of(found)["i2t_r1"] == np.mean(best)
    right = [int(column.argmax()) == number // 5 for number, column in enumerate(sim.T)]
    assert values_of(found)["t2i_r1"] == np.mean(right)
    scores = torch.tensor([[plain.match(path, text) for text in texts] for path in image_paths[:2]])
    right = [int(column.argmax()) == number // 5 for number, column in enumerate(scores.T)]
    assert values_of(found)["t2i_r1_itm"] == np.mean(right)


def test_the_first_captions_of_each_image_and_folds_of_images(tmp_path, folder, image_paths):
    lines = [
        {"image": str(image_paths[i % 4]), "caption": text} for i, text in enumerate(CAPTIONS)
    ]  # three captions of each of four images
    source = manifest(tmp_path / "d.jsonl", lines)
    settings = EvalSettings(captions_per_image=2, folds=2)
    found = evaluate_model(folder, "retrieval", source, rerank_top_k=0, settings=settings)
    assert {result.name: result.num_items for result in found}["t2i_r1"] == 8
    images, texts = PlainModel(folder).embeddings(image_paths[:4], CAPTIONS[:8])
    right = []
    for number in range(8):
        half = number % 4 // 2
        rivals = images[2 * half : 2 * half + 2] @ texts[number]
        right.append(int(rivals.argmax()) + 2 * half == number % 4)
    assert values_of(found)["t2i_r1"] == np.mean(right)
    assert "Mean over 2 folds" in found[0].protocol


def test_all_captions_of_an_unreadable_image_are_counted(tmp_path, folder, lines, image_paths):
    cut = tmp_path / "cut.png"
    cut.write_bytes(image_paths[0].read_bytes()[:200])
    bad = [*lines, *({"image": str(cut), "caption": text} for text in ("a star", "red", "green"))]
    source = manifest(tmp_path / "d.jsonl", bad)
    with pytest.raises(DataError, match="3 of 15 samples are bad"):
        evaluate_model(folder, "retrieval", source, max_bad_share=0.19)
    found = evaluate_model(folder, "retrieval", source, max_bad_share=0.2)
    assert "3 of 15 samples skipped" in found[0].protocol


@pytest.mark.parametrize("task", ["retrieval", "vqa"])
def test_a_model_in_memory_scores_as_its_folder_and_goes_on_training(tmp_path, image_paths, task):
    words = {"retrieval": "pretraining", "vqa": "vqa"}
    folder = model_folder(tmp_path / "m", words[task])
    fields = {"caption": "a dot"}, {"question": "what?", "answers": ["dot"]}
    lines = [{"image": str(path), **fields[task == "vqa"]} for path in image_paths]
    source = manifest(tmp_path / "d.jsonl", lines)
    loaded = load_model(folder)
    loaded.model.train()
    bound = loaded.build_task(task)
    modes = [module.training for module in bound.modules.modules()]
    found = evaluate_loaded(
        loaded, task, source, found=read_records(source), bound=bound, limit=6, rerank_top_k=2
    )
    assert found == evaluate_model(folder, task, source, limit=6, rerank_top_k=2)
    assert [module.training for module in bound.modules.modules()] == modes
