"""The engine against direct calls of the model, lists against single calls, and its refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import triptych
from tests.serving.tiny_folder import IMAGE_SIZE, write_tiny_folder
from triptych.core.config import from_dict
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError, DataError
from triptych.core.outputs import ImageFeatures
from triptych.generation.sampling import SamplingConfig
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.model import MPLUG
from triptych.serving.batches import Texts
from triptych.serving.engine import Engine
from triptych.serving.inputs import read_image
from triptych.serving.loading import load_model
from triptych.text import Tokenizer

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # openai/CLIP, clip.py
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    names = ("pretraining", "captioning", "vqa", "grounding", "retrieval")
    return {name: write_tiny_folder(root / name, name) for name in names}


@pytest.fixture(scope="module")
def engines(folders):
    return {name: triptych.load(folder, precision="fp32") for name, folder in folders.items()}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((16, 16), (30, 20), (9, 40))]


@pytest.fixture(scope="module")
def plain_model(folders):
    """The network built by hand from the folder, with PyTorch's own loader."""
    folder = folders["pretraining"]
    sizes = json.loads((folder / "config.json").read_text())["model"]
    sizes.pop("kind")
    model = MPLUG(from_dict(MPLUGConfig, sizes))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def _normalised(image):
    """Return an image of the model's size as the network reads it: (1, 3, S, S)."""
    assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    values = (image / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    return torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None]


def _ids(folder, text):
    tokenizer = Tokenizer.load(folder)
    ids, _ = tokenizer.encode_words(text)
    ids = torch.tensor([[tokenizer.cls_id, *ids, tokenizer.sep_id]])
    return ids, torch.ones_like(ids, dtype=torch.bool)


def test_image_embedding_equals_the_models(engines, images, plain_model):
    with torch.no_grad():
        expected = plain_model.embed_image(plain_model.encode_image(_normalised(images[0])))[0]
    found = engines["pretraining"].embed_images(images[0])
    assert found.shape == (8,) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_text_embedding_equals_the_models_on_the_cleaned_text(engines, folders, plain_model):
    ids, mask = _ids(folders["pretraining"], "a red circle")
    with torch.no_grad():
        expected = plain_model.embed_text(plain_model.encode_text(ids, mask))[0]
    found = engines["pretraining"].embed_texts("A red, circle!")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_match_is_the_itm_heads_probability(engines, folders, images, plain_model):
    ids, mask = _ids(folders["pretraining"], "a blue square")
    with torch.no_grad():
        image = plain_model.encode_image(_normalised(images[0]))
        fused = plain_model.fuse(ImageFeatures(image.tokens), plain_model.encode_text(ids, mask))
        no, yes = plain_model.match_logits(fused)[0].double().tolist()
    expected = np.exp(yes) / (np.exp(no) + np.exp(yes))
    found = engines["pretraining"].match(images[0], "a blue square")
    assert found == pytest.approx(expected, abs=1e-5)


def test_greedy_caption_follows_the_uncached_decoder(folders, images, plain_model):
    """One beam without a length penalty is greedy; here by reading the whole text at each step."""
    tokenizer = Tokenizer.load(folders["captioning"])
    said = [tokenizer.cls_id]
    with torch.no_grad():
        image = plain_model.encode_image(_normalised(images[0]))
        empty = torch.tensor([[tokenizer.cls_id]])
        text = plain_model.encode_text(empty, torch.ones_like(empty, dtype=torch.bool))
        memory = plain_model.decoder_memory(image, plain_model.fuse(image, text))
        for position in range(6):
            states = plain_model.decode(torch.tensor([said]), memory)
            logits = plain_model.decoder.word_logits(states[:, -1])[0]
            if position == 0:
                logits[tokenizer.sep_id] = -torch.inf
            said.append(int(logits.argmax()))
            if said[-1] == tokenizer.sep_id:
                break
    engine = triptych.load(folders["captioning"], precision="fp32")
    assert engine.caption(images[0], num_beams=1) == tokenizer.decode(said[1:])


def test_a_list_gives_what_single_calls_give(engines, images):
    captions = engines["captioning"].caption(images)
    assert captions == [engines["captioning"].caption(image) for image in images]
    question = "what color is the star?"
    answers = engines["vqa"].answer(images, question)
    assert answers == [engines["vqa"].answer(image, question) for image in images]
    phrases = ["the star", "a small red circle", "green"]
    boxes = engines["grounding"].ground(images, phrases)
    single = [engines["grounding"].ground(*pair) for pair in zip(images, phrases, strict=True)]
    np.testing.assert_allclose(boxes, single, atol=1e-3)
    scores = engines["retrieval"].match(images, phrases)
    single = [engines["retrieval"].match(*pair) for pair in zip(images, phrases, strict=True)]
    np.testing.assert_allclose(scores, single, atol=1e-5)
    assert len(set(scores)) == 3
    rows = engines["retrieval"].embed_texts(phrases)
    single = [engines["retrieval"].embed_texts(phrase) for phrase in phrases]
    np.testing.assert_allclose(rows, single, atol=1e-5)


def test_many_images_go_through_in_several_passes(engines, images, monkeypatch):
    whole = engines["retrieval"].embed_images(images)
    scores = engines["retrieval"].match(images, "a star")
    monkeypatch.setattr("triptych.serving.engine.IMAGES_PER_PASS", 2)
    monkeypatch.setattr("triptych.serving.batches.IMAGES_PER_PASS", 2)
    monkeypatch.setattr("triptych.serving.engine.PAIRS_PER_PASS", 2)
    np.testing.assert_allclose(engines["retrieval"].embed_images(images), whole, atol=1e-5)
    np.testing.assert_allclose(engines["retrieval"].match(images, "a star"), scores, atol=1e-5)


def test_one_image_goes_with_many_texts(engines, images):
    texts = ["a star", "a red circle"]
    scores = engines["retrieval"].match(images[1], texts)
    single = [engines["retrieval"].match(images[1], text) for text in texts]
    np.testing.assert_allclose(scores, single, atol=1e-5)


def test_the_width_of_no_embeddings_is_the_models_own(engines, monkeypatch):
    engine = engines["retrieval"]
    monkeypatch.setattr(engine.model, "config", None)  # other families name the width otherwise
    assert engine.embed_images([]).shape == engine.embed_texts([]).shape == (0, 8)


def test_empty_lists_give_empty_results(engines):
    assert engines["captioning"].caption([]) == []
    assert engines["retrieval"].embed_images([]).shape == (0, 8)
    assert engines["retrieval"].embed_texts([]).shape == (0, 8)
    assert engines["retrieval"].match([], []) == []


def test_a_prompt_begins_the_caption(engines, images):
    caption = engines["captioning"].caption(images[0], prompt="A small Red")
    assert caption.startswith("a small red")
    assert len(engines["captioning"].caption(images, prompt="a")) == 3


def _with_setting(folder, copy, **task):
    """Return an engine of a copy of a folder with other settings of its task."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["task"] |= task
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "SHA256SUMS").unlink()
    return triptych.load(copy, precision="fp32")


def test_the_folders_own_prompt_is_read_and_not_shown(engines, folders, images, tmp_path):
    own = _with_setting(folders["captioning"], tmp_path / "own", prompt="a small")
    asked = engines["captioning"].caption(images, prompt="a small")
    joined = [f"a small {text}".replace(" ", "") for text in own.caption(images)]
    assert joined == [text.replace(" ", "") for text in asked]  # "##ing" may follow the prompt
    assert own.caption(images, prompt="the star")[0].startswith("the star")


@pytest.mark.parametrize("precision", ["fp8", "bfloat16", "bf16-params"])
def test_an_unknown_precision_is_refused(folders, precision):
    with pytest.raises(ConfigError, match=f"precision = '{precision}': must be one of auto, bf16"):
        triptych.load(folders["captioning"], precision=precision)


def test_drawn_captions_depend_on_the_seed_alone(engines, images):
    engine, draw = engines["captioning"], SamplingConfig(max_tokens=6)
    many = images * 4
    first, same, other = (engine.caption(many, sampling=draw, seed=s) for s in (1, 1, 2))
    assert first == same != other
    likeliest = SamplingConfig(top_k=1, min_tokens=1, max_tokens=6)
    assert engine.caption(images, sampling=likeliest) == engine.caption(images, num_beams=1)
    text = engine.caption(images[0], sampling=draw, prompt="a star")
    assert text.startswith("a star")
    with pytest.raises(ConfigError, match=r"seed = \d+: must be a number of 64 bits"):
        engine.caption(images[0], sampling=draw, seed=2**64)
    with pytest.raises(ConfigError, match="num_samples = 2: must be 1 here"):
        engine.caption(images, sampling=SamplingConfig(num_samples=2))


def test_an_answer_out_of_choices(engines, folders, images, tmp_path):
    choices = ["a red circle", "no", "the square"]
    question = "what color is the star?"
    found = engines["vqa"].answer(images, question, choices=choices)
    assert set(found) <= set(choices)
    own = _with_setting(folders["vqa"], tmp_path / "own", answer_list=choices)
    assert own.answer(images, question) == found
    searched = _with_setting(
        folders["vqa"], tmp_path / "beam", answer_list=choices, list_search="beam"
    )
    assert set(searched.answer(images, question)) <= set(choices)
    with pytest.raises(DataError, match="choice 1 is empty"):
        own.answer(images[0], question, choices=["a", " "])


def test_words_seen_in_the_image_follow_the_question(engines, images, monkeypatch):
    seen = []
    plain = Texts.padded
    monkeypatch.setattr(Texts, "padded", lambda self, ids: (seen.append(ids), plain(self, ids))[1])
    engine, words = engines["vqa"], engines["vqa"].tokenizer
    engine.answer(images[:2], "the star", ocr_words=["a", ""], object_words="red circle")
    star, red = (words.encode([text], max_tokens=9)[0] for text in ("the star", "red circle"))
    a = words.encode(["a"], max_tokens=9)[0]
    assert seen == [[[*star, *a[1:], *red[1:]], [*star, *red[1:]]]]
    with pytest.raises(DataError, match="2 questions and 1 ocr_words"):
        engine.answer(images[:2], "the star", ocr_words=["a"])


def test_boxes_lie_in_the_original_image(engines, images):
    """Bins of 8 steps: a corner is a multiple of a sixteenth of the side, or the image's edge."""
    x0, y0, x1, y1 = engines["grounding"].ground(images[1], "the star")  # 30 high, 20 wide
    assert 0 <= x0 <= x1 <= 20 and 0 <= y0 <= y1 <= 30
    for value, side in ((x0, 20), (x1, 20), (y0, 30), (y1, 30)):
        assert (value / side * 32) % 1 == pytest.approx(0, abs=1e-4)


def test_path_pil_and_array_are_one_image(engines, images, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(images[1]).save(path)
    given = [path, str(path), Image.open(path), Image.fromarray(images[1]), images[1]]
    assert all(np.array_equal(read_image(image), images[1]) for image in given)
    rows = engines["retrieval"].embed_images(given)
    np.testing.assert_allclose(rows, np.repeat(rows[:1], 5, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("trained_for", "call", "recipe"),
    [
        ("pretraining", lambda e, p: e.answer(p, "a star?"), "mplug.vqa"),
        ("pretraining", lambda e, p: e.ground(p, "a star"), "mplug.grounding"),
        ("vqa", lambda e, p: e.caption(p), "mplug.caption"),
        ("captioning", lambda e, p: e.match(p, "a star"), "mplug.retrieval"),
        ("grounding", lambda e, p: e.embed_images(p), "mplug.retrieval"),
        ("vqa", lambda e, p: e.embed_texts("a star"), "mplug.retrieval"),
    ],
)
def test_what_was_not_trained_is_refused_with_the_command(
    engines, folders, images, trained_for, call, recipe
):
    command = f"triptych train {recipe} --data .* --init-from {folders[trained_for]}"
    with pytest.raises(CapabilityError, match=command):
        call(engines[trained_for], images[0])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("  ", "question is empty"),
        (["a star?", ""], "question 1 is empty"),
        (7, "question is int 7: pass a string"),
        ("\u200b", "holds no word"),
        (["a?", "b?", "c?"], "2 images and 3 questions"),
    ],
)
def test_questions_that_cannot_be_asked(engines, images, question, message):
    given = images[:2] if "images" in message else images[0]
    with pytest.raises(DataError, match=message):
        engines["vqa"].answer(given, question)


def test_a_bad_image_is_named(engines, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"broken.jpg: no image"):
        engines["captioning"].caption([path])
    with pytest.raises(DataError, match=r"absent.jpg: there is no such file"):
        engines["captioning"].caption("absent.jpg")
    with pytest.raises(DataError, match=r"image 1 is dict: pass a path"):
        engines["captioning"].caption([np.zeros((4, 4), np.uint8), {}])


def test_a_long_prompt_is_cut_and_leaves_room(engines, images):
    caption = engines["captioning"].caption(images[0], prompt="a small red circle " * 30)
    assert caption.startswith("a small red circle a small")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folder = write_tiny_folder(tmp_path / "model", "vqa")
    weights = load_file(folder / "model.safetensors")
    weights.pop("itm_head.bias")
    save_file(weights, folder / "model.safetensors")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"itm_head.bias"):
        triptych.load(folder)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("config.json", "model", {"kind": "mplog"}, "unknown model kind 'mplog'; did you mean"),
        ("config.json", "model", None, "has no `model`"),
        ("preprocess.json", "image_size", 32, "images of 32 px but the model takes 16"),
        ("preprocess.json", "meen", 1, "unknown field 'meen'; did you mean 'mean'"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, file, key, value, message):
    folder = write_tiny_folder(tmp_path / "model", "vqa")
    content = json.loads((folder / file).read_text()) | {key: value}
    (folder / file).write_text(json.dumps(content))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=message):
        triptych.load(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = write_tiny_folder(tmp_path / "model", "vqa", vocab_size=40)
    with pytest.raises(CheckpointError, match=r"tokens but the model knows 40"):
        triptych.load(folder)


def test_bf16_is_near_fp32(folders, images):
    exact = triptych.load(folders["retrieval"], device="cpu", precision="fp32")
    rough = triptych.load(folders["retrieval"], device="cpu", precision="bf16")
    found, expected = rough.embed_images(images), exact.embed_images(images)
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_rounded_weights_answer_as_autocast_does(folders, images):
    rounded = triptych.load(folders["retrieval"], device="cpu", precision="bf16")
    plain = Engine(load_model(folders["retrieval"], device="cpu", precision="bf16"))
    kinds = [each.model.text_encoder.blocks[0].mlp.up.weight.dtype for each in (rounded, plain)]
    assert kinds == [torch.bfloat16, torch.float32]
    np.testing.assert_array_equal(rounded.embed_images(images), plain.embed_images(images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu(folders, images):
    calls = {
        "captioning": lambda engine: engine.caption(images, prompt="a"),
        "vqa": lambda engine: engine.answer(images, "what color is the star?"),
        "grounding": lambda engine: engine.ground(images, "the star"),
        "retrieval": lambda engine: engine.match(images, "a star"),
        "pretraining": lambda engine: engine.embed_images(images),
    }
    for name, call in calls.items():
        there = call(triptych.load(folders[name], device="cuda", precision="fp32"))
        here = call(triptych.load(folders[name], device="cpu", precision="fp32"))
        if isinstance(here[0], str):
            assert there == here
        else:
            np.testing.assert_allclose(there, here, atol=1e-3)


def test_images_that_cannot_be_used_are_skipped_where_this_is_asked_for(engines, images, caplog):
    """The answers of the others stay; None or NaN stands for the skipped ones."""
    shown = [images[0], "absent.jpg", images[1]]
    met = {}
    asked = {
        "captioning": lambda e, i, **k: e.caption(i, **k),
        "vqa": lambda e, i, **k: e.answer(i, "what color is the star?", **k),
        "grounding": lambda e, i, **k: e.ground(i, "the star", **k),
        "retrieval": lambda e, i, **k: e.match(i, "a red circle", **k),
    }
    for name, ask in asked.items():
        found = ask(engines[name], shown, on_error=met.__setitem__)
        assert found[1] is None and list(met) == [1]
        assert str(met.pop(1)) == "absent.jpg: there is no such file"
        for one, single in zip((found[0], found[2]), ask(engines[name], images[:2]), strict=True):
            assert one == (pytest.approx(single, abs=1e-4) if name != "captioning" else single)
        assert ask(engines[name], "absent.jpg", on_error="skip") is None
        with pytest.raises(DataError, match="absent"):
            ask(engines[name], shown)
    assert caplog.messages == ["skipped: absent.jpg: there is no such file"] * 4
    rows = engines["retrieval"].embed_images(shown, on_error=met.__setitem__)
    assert np.isnan(rows[1]).all() and list(met) == [1]
    np.testing.assert_allclose(rows[::2], engines["retrieval"].embed_images(images[:2]), atol=1e-5)
    many = engines["retrieval"].match("absent.jpg", ["a star", "a circle"], on_error="skip")
    assert many == [None, None]
    with pytest.raises(DataError, match="images and clips are given together"):
        clip = np.zeros((2, 8, 8, 3), np.uint8)
        engines["retrieval"].embed_images([images[0], clip], on_error="skip")
