"""The table of verbs: each row against the engine's own method, and what it refuses."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

import triptych
from tests.serving.tiny_folder import write_tiny_folder, write_tiny_vlmo
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.data.entries import ENTAILMENT_LABELS
from triptych.serving.verbs import VERBS, refusals_of, verbs_of
from triptych.tasks.finetuning.image_text_classification import ImageTextClassificationConfig
from triptych.tasks.finetuning.nlvr2 import NLVR2Config
from triptych.tasks.finetuning.segmentation import SegmentationConfig
from triptych.tasks.finetuning.text_classification import TextClassificationConfig

CLASSIFIERS = {
    "entailment": ImageTextClassificationConfig(labels=ENTAILMENT_LABELS, with_premise=True),
    "memes": ImageTextClassificationConfig(labels=("fine", "hateful"), text_field="text"),
    "segmentation": SegmentationConfig(classes=("sky", "sea", "land"), head="linear"),
    "texts": TextClassificationConfig(labels=("good", "bad")),
    "similarity": TextClassificationConfig(target="number"),
    "nlvr2": NLVR2Config(),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    folders = {name: write_tiny_folder(root / name, name) for name in ("pretraining", "vqa")}
    folders["grounding"] = write_tiny_folder(root / "grounding", "grounding")
    folders["vlmo"] = write_tiny_vlmo(root / "vlmo")
    folders |= {k: write_tiny_vlmo(root / k, task=task) for k, task in CLASSIFIERS.items()}
    return {name: triptych.load(folder, precision="fp32") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((16, 16), (30, 20), (9, 40))]


def ask(engine, name, items, options=None, **more):
    verb = VERBS[name]
    made = [verb.item(*item) for item in items]
    found = verb.ask(engine, made, verb.read_options(options), **more)
    assert json.loads(json.dumps(found)) == found
    return found


def test_captions_and_answers(engines, images):
    engine = engines["pretraining"]
    found = ask(engine, "caption", [([i],) for i in images], {"num_beams": 2, "prompt": "a red"})
    expected = engine.caption(images, num_beams=2, prompt="a red")
    assert found == [{"caption": text} for text in expected]
    engine, texts = engines["vqa"], {"question": "what color is the star?", "ocr_words": "a red"}
    plain = {"question": "is it green?", "ocr_words": "", "object_words": None}
    found = ask(engine, "answer", [([images[0]], texts), ([images[1]], plain)])
    assert found == [
        {
            "question": texts["question"],
            "answer": engine.answer(images[0], texts["question"], ocr_words="a red"),
        },
        {"question": "is it green?", "answer": engine.answer(images[1], "is it green?")},
    ]
    (chosen,) = ask(engine, "answer", [([images[0]], plain)], {"choices": ["yes", "no"]})
    assert chosen["answer"] in ("yes", "no")


def test_boxes_have_one_digit_and_probabilities_six(engines, images):
    engine = engines["grounding"]
    found = ask(engine, "ground", [([i], {"phrase": "the star"}) for i in images])
    boxes = engine.ground(images, "the star")
    assert [one["box_xyxy"] for one in found] == [[round(v, 1) for v in box] for box in boxes]
    engine = engines["pretraining"]
    found = ask(engine, "match", [([images[0]], {"text": text}) for text in ("a star", "a red")])
    scores = engine.match(images[0], ["a star", "a red"])
    assert [one["probability"] for one in found] == [round(score, 6) for score in scores]
    assert [one["text"] for one in found] == ["a star", "a red"]


def test_classes_and_embeddings(engines, images):
    engine, options = engines["vlmo"], {"labels": ["star", "circle", "square"], "top": 2}
    found = ask(engine, "classify", [([i],) for i in images], options)
    for one, shares in zip(found, engine.classify(images, options["labels"]), strict=True):
        assert one["labels"] == {k: round(v, 6) for k, v in list(shares.items())[:2]}
    found = ask(engine, "embed_image", [([i],) for i in images])
    np.testing.assert_array_equal([r["embedding"] for r in found], engine.embed_images(images))
    (text,) = ask(engine, "embed_text", [((), {"text": "a star"})])
    np.testing.assert_array_equal(text["embedding"], engine.embed_texts("a star"))


def test_masks_are_pngs_with_the_values_of_training(engines, images):
    engine = engines["segmentation"]
    mask = engine.segment(images[1])
    (plain,), (full,) = (
        ask(engine, "segment", [([images[1]],)], {"mask": m}) for m in (False, True)
    )
    shares = {name: (mask == k).mean() for k, name in enumerate(("sky", "sea", "land"))}
    assert plain["shares"] == {k: round(v, 6) for k, v in shares.items() if v > 0}
    assert full["shares"] == plain["shares"] and "mask_png" not in plain
    png = Image.open(io.BytesIO(base64.b64decode(full["mask_png"])))
    np.testing.assert_array_equal(np.asarray(png), mask)


def test_pairs_of_images_and_classifiers_of_texts(engines, images):
    items = [(images[:2], {"statement": "a star"}), (images[1:], {"statement": "a circle"})]
    found = ask(engines["nlvr2"], "judge", items)
    scores = engines["nlvr2"].judge(images[:2], images[1:], ["a star", "a circle"])
    assert [one["probability"] for one in found] == [round(score, 6) for score in scores]
    texts = {"hypothesis": "a star", "premise": "a red circle"}
    (found,) = ask(engines["entailment"], "entail", [([images[0]], texts)])
    shares = engines["entailment"].entail(images[0], "a star", premises="a red circle")
    assert found["label"] == next(iter(shares))
    assert found["probabilities"] == {k: round(v, 6) for k, v in shares.items()}
    (found,) = ask(engines["memes"], "label", [([images[0]], {"text": "a star"})])
    assert found["label"] == next(iter(engines["memes"].label(images[0], "a star")))
    pair = {"text": "a star", "second_text": "a circle"}
    found = ask(engines["texts"], "label_texts", [((), pair), ((), {"text": "a star"})])
    expected = engines["texts"].label_texts(["a star"], ["a circle"])
    assert found[0]["probabilities"] == {k: round(v, 6) for k, v in expected[0].items()}
    assert found[1]["probabilities"] != found[0]["probabilities"]
    (value,) = ask(engines["similarity"], "label_texts", [((), pair)])
    assert value.keys() == {"text", "value"}


def test_keys_of_answers_are_those_of_the_table(engines, images):
    asked = {
        "caption": ("pretraining", [images[0]], {}),
        "answer": ("vqa", [images[0]], {"question": "a star?"}),
        "ground": ("grounding", [images[0]], {"phrase": "a star"}),
        "match": ("vlmo", [images[0]], {"text": "a star"}),
        "classify": ("vlmo", [images[0]], {}),
        "segment": ("segmentation", [images[0]], {}),
        "judge": ("nlvr2", images[:2], {"statement": "a star"}),
        "entail": ("entailment", [images[0]], {"hypothesis": "a star"}),
        "label": ("memes", [images[0]], {"text": "a star"}),
        "label_texts": ("texts", [], {"text": "a star"}),
        "embed_image": ("vlmo", [images[0]], {}),
        "embed_text": ("vlmo", [], {"text": "a star"}),
    }
    options = {"classify": {"labels": ["star", "circle"]}, "segment": {"mask": True}}
    assert set(asked) == set(VERBS)
    for name, (model, shown, texts) in asked.items():
        (answer,) = ask(engines[model], name, [(shown, texts)], options.get(name))
        assert [key for key in VERBS[name].gives if key != "value"] == list(answer), name


@pytest.mark.parametrize(
    ("model", "can"),
    [
        ("pretraining", {"caption", "match", "classify", "embed_image", "embed_text"}),
        ("vlmo", {"match", "classify", "embed_image", "embed_text"}),
        ("vqa", {"answer"}),
        ("entailment", {"entail", "label"}),
        ("memes", {"label"}),
    ],
)
def test_what_a_model_can_be_asked(engines, model, can):
    assert set(verbs_of(engines[model])) == can
    refused = refusals_of(engines[model])
    assert set(refused) == set(VERBS) - can
    with pytest.raises(CapabilityError) as error:
        VERBS["judge"].check(engines[model])
    assert refused["judge"] == str(error.value)


@pytest.mark.parametrize(
    ("name", "images_given", "texts", "message"),
    [
        ("caption", 0, {}, "caption takes one image, not 0"),
        ("judge", 1, {"statement": "a"}, "judge takes 2 images, not 1"),
        ("embed_text", 1, {"text": "a"}, "embed_text takes no image, not 1"),
        ("answer", 1, {}, "answer needs a question: a question about the image"),
        ("answer", 1, {"question": None}, "answer needs a question"),
        ("answer", 1, {"question": 3}, "question is int 3: pass a string"),
        ("answer", 1, {"qestion": "a"}, "reads no text 'qestion'; did you mean 'question'"),
    ],
)
def test_items_that_are_none(images, name, images_given, texts, message):
    with pytest.raises(DataError, match=message):
        VERBS[name].item(images[:images_given], texts)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("caption", {"num_beam": 2}, "did you mean 'num_beams'"),
        ("caption", {"seed": "one"}, "seed = 'one': must be int"),
        ("caption", {"top_k": 2, "num_beams": 2}, "use beam search or sampling"),
        ("classify", {"top": -1}, "top = -1: must be at least 0"),
        ("classify", {"labels": "cat,dog"}, "labels = 'cat,dog': must be a list"),
        ("ground", {"top": 1}, "unknown field 'top'"),
    ],
)
def test_options_that_are_none(name, options, message):
    with pytest.raises(ConfigError, match=message):
        VERBS[name].read_options(options)


def test_equal_options_are_one_key_and_drawn_captions_do_not_mix():
    caption, classify = VERBS["caption"], VERBS["classify"]
    for verb, plain in ((caption, {"num_beams": 3}), (classify, {"labels": ["a", "b"]})):
        first, second = verb.read_options(plain), verb.read_options(dict(plain))
        assert first == second and hash(first) == hash(second) != hash(verb.read_options())
        assert verb.mixes(first)
    assert not caption.mixes(caption.read_options({"top_p": 0.9}))


def test_options_are_checked_before_items(engines):
    with pytest.raises(DataError, match="no classes of its own: name some as labels"):
        VERBS["classify"].check(engines["vlmo"])
    with pytest.raises(DataError, match="choice 0 is empty"):
        VERBS["answer"].check(engines["vqa"], VERBS["answer"].read_options({"choices": [" ", "a"]}))
    with pytest.raises(ConfigError, match="num_beams = 0"):
        VERBS["caption"].check(
            engines["pretraining"], VERBS["caption"].read_options({"num_beams": 0})
        )


def test_an_item_that_cannot_be_used_is_told_and_the_others_are_answered(engines, images):
    shown = [images[0], "absent.jpg", images[1], images[2]]
    texts = ["a star", "a star", "  ", "a red circle"]
    items = [([image], {"text": text}) for image, text in zip(shown, texts, strict=True)]
    found = ask(engines["vlmo"], "match", items, on_error="skip")
    assert found[1] == {"error": "absent.jpg: there is no such file"}
    assert found[2] == {"error": "text is empty: say something"}
    scores = engines["vlmo"].match([images[0], images[2]], [texts[0], texts[3]])
    assert [found[k]["probability"] for k in (0, 3)] == pytest.approx(scores, abs=1e-5)
    with pytest.raises(DataError, match=r"absent\.jpg"):
        ask(engines["vlmo"], "match", items[:2])
    with pytest.raises(DataError, match=r"question '\\ud800\?' holds broken characters"):
        ask(engines["vqa"], "answer", [([images[0]], {"question": "\ud800?"})])
    items = [([image],) for image in shown]
    found = ask(engines["vlmo"], "embed_image", items, on_error="skip")
    assert found[1] == {"error": "absent.jpg: there is no such file"}
    assert len(found[3]["embedding"]) == 8


def test_threads_share_an_engine(engines, images):
    """Eight threads ask several verbs at once; every answer is that of one thread alone."""
    asked = [
        ("caption", [([i],) for i in images]),
        ("match", [([i], {"text": "a red circle"}) for i in images]),
        ("embed_image", [([i],) for i in images]),
    ]
    engine = engines["pretraining"]
    expected = [ask(engine, *one) for one in asked]
    wrong = []

    def work(start):
        numbers = range(start, start + 9)
        wrong.extend(n for n in numbers if ask(engine, *asked[n % 3]) != expected[n % 3])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
