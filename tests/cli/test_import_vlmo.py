"""`triptych import vlmo` and `triptych export vlmo`: every tensor of a released file comes back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import triptych
from tests.parity.mplug_golden import VOCABULARY
from tests.parity.test_vlmo_golden import Golden
from triptych.cli.main import main
from triptych.core.config import to_dict
from triptych.models.vlmo.convert import TEXT_POSITIONS
from triptych.serving.loading import load_model

ANSWERS = ["yes", "two", "red star", "no"]


def add_classifier(state, name, inputs, classes):
    """Add a classifier as the released code builds it, with random weights."""
    shapes = {
        "0.weight": (128, inputs), "0.bias": (128,), "1.weight": (128,), "1.bias": (128,),
        "3.weight": (classes, 128), "3.bias": (classes,),
    }  # fmt: skip
    torch.manual_seed(3)
    heads = ("itm_score.", "itc_", "mlm_score.", "logit_")
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(heads)}
    return kept | {f"{name}.{key}": 0.1 * torch.randn(shape) for key, shape in shapes.items()}


def released_classifier(state, name, pooled):
    """What the released code computes from pooled states."""
    weights = [state[f"{name}.{key}"] for key in ("0.weight", "0.bias", "1.weight", "1.bias")]
    hidden = F.layer_norm(F.linear(pooled, *weights[:2]), (128,), *weights[2:])
    return F.linear(F.gelu(hidden), state[f"{name}.3.weight"], state[f"{name}.3.bias"])


@pytest.fixture
def write(tmp_path):
    """Write a file of the golden weights or of changed ones, and what must be said of it."""

    def written(golden, state, *more, out="model"):
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        sizes = tmp_path / "sizes.json"
        sizes.write_text(json.dumps(to_dict(golden.model.config)))
        torch.save(state, tmp_path / "released.pt")
        given = ["import", "vlmo", tmp_path / "released.pt", tmp_path / out]
        given += ["--variant", sizes, "--tokenizer", tmp_path / "vocab.txt", *more]
        return [str(word) for word in given]

    return written


def assert_given_back(found, state):
    assert state.keys() <= found.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        if name == TEXT_POSITIONS and "relative_position_bias_table" in state:
            assert found[name].shape == tensor.shape  # owned and never read: written as zeros
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["vlmo_relative", "vlmo_absolute"])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_every_tensor_of_the_authors_comes_back_bit_by_bit(name, wrapper, write, tmp_path):
    golden = Golden(name)
    # temperatures that no rounding to a τ and back would keep
    moved = {"logit_scale": torch.tensor(3.1415927), "logit_vl_scale": torch.tensor(1.2345679)}
    state = golden.state | moved
    file = state if wrapper is None else {wrapper: {f"module.{k}": t for k, t in state.items()}}
    assert main(write(golden, file)) == 0
    for file_name in ("back.pt", "back.safetensors"):
        assert main(["export", "vlmo", str(tmp_path / "model"), str(tmp_path / file_name)]) == 0
    assert_given_back(torch.load(tmp_path / "back.pt", weights_only=True), state)


def test_a_temperature_of_a_run_is_exported(write, tmp_path):
    golden = Golden("vlmo_relative")
    assert main(write(golden, golden.state)) == 0
    lines = [{"image": "a.png", "caption": f"word{i}"} for i in range(8)]
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["train", "vlmo.retrieval", "--scale", "smoke", "--data", tmp_path / "my.jsonl"]
    given += ["--init-from", tmp_path / "model", "--out", tmp_path / "run"]
    given += ["--train.num-threads", 1, "--train.progress", "off", "--task.temperature", 0.05]
    assert main([str(word) for word in given]) == 0
    kept = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["contrast"]
    assert set(kept) == {"logit_scale"}
    assert kept["logit_scale"] == pytest.approx(-np.log(0.05), abs=0.05)
    assert kept["logit_scale"] != pytest.approx(-np.log(0.05), abs=1e-7)  # it has learned
    out = tmp_path / "run.pt"
    assert main(["export", "vlmo", str(tmp_path / "run" / "model"), str(out)]) == 0
    found = torch.load(out, weights_only=True)
    assert float(found["logit_scale"]) == kept["logit_scale"]
    assert "logit_vl_scale" not in found


def test_captions_are_read_as_they_are(write, tmp_path):
    golden = Golden("vlmo_relative")
    assert main(write(golden, golden.state)) == 0
    loaded = load_model(tmp_path / "model")
    assert loaded.captions().max_words is None
    assert loaded.captions().max_text_tokens == min(40, loaded.model.config.max_text_tokens)


@torch.no_grad()
def test_an_nlvr2_file_judges_and_comes_back(write, tmp_path, capsys):
    golden = Golden("vlmo_relative")
    types = golden.state["token_type_embeddings.weight"]
    state = add_classifier(golden.state, "nlvr2_classifier", 128, 2)
    state["token_type_embeddings.weight"] = torch.cat([types, types[1:] + 1])
    assert main(write(golden, state)) == 0
    assert "classifier" not in capsys.readouterr().out
    folder = tmp_path / "model"
    images = torch.randn(3, 2, 3, 64, 64)
    ids, mask = golden["batch/text_ids"], golden.mask
    loaded = load_model(folder)
    task = loaded.build_task("nlvr2")
    task.modules.eval()
    found = task.pair_scores({"image": images, "token_ids": ids, "text_mask": mask})
    states = [loaded.model.pair_state(images[:, i], ids, mask, i) for i in (0, 1)]
    expected = released_classifier(state, "nlvr2_classifier", torch.cat(states, dim=1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    engine = triptych.load(folder, device="cpu", precision="fp32")
    assert 0 < engine.judge(black, black + 200, "word1 word2") < 1
    assert main(["export", "vlmo", str(folder), str(tmp_path / "back.pt")]) == 0
    assert "skipped" not in capsys.readouterr().out
    assert_given_back(torch.load(tmp_path / "back.pt", weights_only=True), state)


@pytest.mark.parametrize("name", ["answers.txt", "answers.json"])
@torch.no_grad()
def test_a_vqa_file_answers_from_the_list_and_comes_back(name, write, tmp_path, capsys):
    golden = Golden("vlmo_relative")
    state = add_classifier(golden.state, "vqa_classifier", 64, len(ANSWERS))
    answers = tmp_path / name
    answers.write_text(json.dumps(ANSWERS) if name.endswith("json") else "\n".join(ANSWERS) + "\n")
    assert main(write(golden, state, "--answers", answers)) == 0
    folder = tmp_path / "model"
    loaded = load_model(folder)
    task = loaded.build_task("vqa")
    task.modules.eval()
    assert list(task.config.answers) == ANSWERS
    batch = {"image": torch.randn(3, 3, 64, 64), "token_ids": golden["batch/text_ids"]}
    batch["text_mask"] = golden.mask
    found = task.pair_scores(batch)
    pooled = loaded.model.pair_state(batch["image"], batch["token_ids"], batch["text_mask"])
    expected = released_classifier(state, "vqa_classifier", pooled)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    engine = triptych.load(folder, device="cpu", precision="fp32")
    assert engine.answer(np.zeros((64, 64, 3), dtype=np.uint8), "word1 ?") in ANSWERS
    capsys.readouterr()
    assert main(["export", "vlmo", str(folder), str(tmp_path / "back.pt")]) == 0
    assert "answers stand in config.json" in " ".join(capsys.readouterr().out.split())
    assert_given_back(torch.load(tmp_path / "back.pt", weights_only=True), state)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("yes\nno\n", "has 2 answers"),
        ("yes\nno\nyes\ntwo\n", "'yes' is repeated"),
        ("yes\n\nno\ntwo\n", "none of them empty"),
        (None, "there is no such file"),
    ],
)
def test_a_list_of_answers_that_does_not_fit_is_refused(content, says, write, tmp_path, capsys):
    golden = Golden("vlmo_relative")
    state = add_classifier(golden.state, "vqa_classifier", 64, 4)
    answers = tmp_path / "answers.txt"
    if content is not None:
        answers.write_text(content)
    assert main(write(golden, state, "--answers", answers)) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "model").exists()


def test_what_has_no_classifier_or_no_answers_says_so(write, tmp_path, capsys):
    golden = Golden("vlmo_relative")
    answers = tmp_path / "answers.txt"
    answers.write_text("\n".join(ANSWERS))
    assert main(write(golden, golden.state, "--answers", answers)) == 2
    assert "has no classifier of answers" in " ".join(capsys.readouterr().err.split())
    state = add_classifier(golden.state, "vqa_classifier", 64, 4)
    assert main(write(golden, state)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "skipped: classifier" in said
    assert not (tmp_path / "model" / "head.safetensors").exists()


def test_a_classifier_of_another_width_is_refused(write, tmp_path, capsys):
    golden = Golden("vlmo_relative")
    state = add_classifier(golden.state, "nlvr2_classifier", 64, 2)  # of one pair, not of two
    assert main(write(golden, state)) == 2
    assert "its classifier's 0.weight is (128, 64)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "model").exists()


def test_a_head_that_the_layout_lacks_is_named(write, tmp_path, capsys):
    golden = Golden("vlmo_relative")
    state = add_classifier(golden.state, "nlvr2_classifier", 128, 2)
    assert main(write(golden, state)) == 0
    config = tmp_path / "model" / "config.json"
    stored = json.loads(config.read_text())
    stored["task"]["kind"] = "image_text_classification"
    config.write_text(json.dumps(stored))
    (config.parent / "SHA256SUMS").unlink()
    assert main(["export", "vlmo", str(tmp_path / "model"), str(tmp_path / "x.pt")]) == 0
    assert "cannot be stored there and is skipped" in " ".join(capsys.readouterr().out.split())
    written = torch.load(tmp_path / "x.pt", weights_only=True)
    assert not any("classifier" in name for name in written)
