"""`triptych import` and `triptych export`, from the authors' file to answers and back."""

import dataclasses
import json
import os
import pickle
import re

import pytest
import torch
from safetensors.torch import load_file

import triptych
from tests.parity.mplug_golden import VOCABULARY
from tests.serving.tiny_folder import write_tiny_folder
from triptych.checkpoint.model_folder import save_model_folder
from triptych.cli.main import main
from triptych.core.config import to_dict
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.families import VARIANTS
from triptych.models.mplug.model import MPLUG
from triptych.text import Tokenizer

from .released import write_released


def arguments(checkpoint, out, sizes, words, *more):
    given = ["import", "mplug", checkpoint, out, "--variant", sizes, "--tokenizer", words, *more]
    return [str(word) for word in given]


@pytest.fixture
def released(tmp_path):
    return write_released(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["mplug_base_like", "mplug_large_like"])
@torch.no_grad()
def test_an_imported_folder_computes_what_the_authors_code_did(tmp_path, capsys, name):
    golden, checkpoint, sizes, words = write_released(tmp_path, name)
    out = tmp_path / "model"
    assert main(arguments(checkpoint, out, sizes, words, "--trained-for", "vqa")) == 0
    engine = triptych.load(out, precision="fp32", device="cpu")
    mask = golden.tensors["q_mask"].bool()
    fused = engine.model.fuse(
        engine.model.encode_image(golden.tensors["image"]),
        engine.model.encode_text(golden.tensors["q_ids"], mask),
    )
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(fused.image_tokens, golden.tensors["fusion_v"], **close)
    torch.testing.assert_close(fused.text_tokens[mask], golden.tensors["fusion_l"][mask], **close)
    assert engine.settings.trained_for == ("vqa",)
    assert engine.tokenizer.encode(["word3 cab"], max_tokens=9) == [
        [101, VOCABULARY.index("word3"), *map(VOCABULARY.index, ("c", "##a", "##b")), 102]
    ]
    assert engine.preprocess.image_size == 64
    assert engine.settings.limits.question == min(80, engine.model.config.text.max_positions) > 25
    image = torch.zeros(50, 40, 3, dtype=torch.uint8).numpy()
    assert isinstance(engine.answer(image, "word1 word2 ?"), str)
    assert f"model: {out}" in capsys.readouterr().out


def test_the_report_is_a_table_and_json(released, tmp_path, capsys):
    _, checkpoint, sizes, words = released
    told = tmp_path / "report.json"
    out = tmp_path / "model"
    assert main(arguments(checkpoint, out, sizes, words, "--json", told)) == 0
    said = " ".join(capsys.readouterr().out.split())
    report = json.loads(told.read_text())
    assert f"{len(report['loaded'])} │ loaded" in said
    dead = [n for n, why in report["dropped"].items() if why == "fusion layer that never runs"]
    assert f"{len(dead)} │ skipped: fusion layer that never runs" in said
    assert "not in the file, randomly initialised │ image_projection.weight" in said
    assert report["unexpected"] == []
    card = (out / "README.md").read_text()
    assert "sha256: " in card
    assert "imported from released.pth" in card


def test_import_then_export_gives_the_authors_tensors_back(released, tmp_path, capsys):
    golden, checkpoint, sizes, words = released
    out, back = tmp_path / "model", tmp_path / "back.pth"
    assert main(arguments(checkpoint, out, sizes, words)) == 0
    assert main(["export", "mplug", str(out), str(back)]) == 0
    written = torch.load(back, weights_only=True)
    assert list(written) == ["model"]
    live = set(golden.state) & set(written["model"])
    assert all(torch.equal(written["model"][k], golden.state[k]) for k in live)
    dead = set(golden.state) - live
    never_run = (
        r"visual_encoder\.(positional_embedding|text_projection|logit_scale|token_embedding\..*"
        r"|ln_final\..*|transformer\..*|visual\.proj)|fusion_encoder\.embeddings\..*"
        r"|.*position_ids|fusion_encoder\.encoder\.layer\.([01]\..*|5\.crossattention\..*)"
    )  # of 8 stored fusion layers 6 run; the fourth of them is connected
    assert all(re.fullmatch(never_run, name) for name in dead)
    new = set(written["model"]) - set(golden.state)
    heads = ("vision_proj.", "text_proj.", "itm_head.", "fusion_encoder.cls.")
    assert all(name.startswith(heads) for name in new)
    said = capsys.readouterr().out
    assert f"wrote {len(written['model'])} tensors" in said
    assert "stride_layer = 3" in said


def test_a_model_that_was_trained_here_is_exported_bit_by_bit(tmp_path, released):
    # import(export(model)) == model for a model that never was a released file
    golden, _, sizes, words = released
    torch.manual_seed(3)
    model = MPLUG(golden.config)
    save_model_folder(
        tmp_path / "mine",
        config={"model": to_dict(model.config, tagged=True), "trained_for": ["pretraining"]},
        state_dict=model.state_dict(),
        tokenizer_json=Tokenizer.load(words).to_json(),
        preprocess=to_dict(ImageTransformConfig(image_size=64)),
        card="",
    )
    for name in ("mine.pth", "mine.safetensors"):
        assert main(["export", "mplug", str(tmp_path / "mine"), str(tmp_path / name)]) == 0
        out = tmp_path / f"from_{name}"
        assert main(arguments(tmp_path / name, out, sizes, words)) == 0
        stored = load_file(out / "model.safetensors")
        mine = model.state_dict()
        assert set(stored) == set(mine)
        assert all(torch.equal(stored[k], mine[k]) for k in mine)
    for left in tmp_path.iterdir():
        assert not left.name.startswith(".")


@torch.no_grad()
def test_another_image_size_resizes_positions(released, tmp_path):
    golden, checkpoint, sizes, words = released
    out = tmp_path / "model"
    assert main(arguments(checkpoint, out, sizes, words, "--image-size", 96)) == 0
    model = triptych.load(out, device="cpu").model
    assert model.image_size == 96
    table = golden.state["visual_encoder.visual.positional_embedding"]
    grid = table[1:].T.reshape(1, 64, 4, 4)
    expected = torch.nn.functional.interpolate(grid, (6, 6), mode="bilinear", align_corners=False)
    found = model.visual_encoder.position_embedding
    torch.testing.assert_close(found[1:].T.reshape(1, 64, 6, 6), expected, atol=1e-6, rtol=0)
    assert torch.equal(found[0], table[0])


def test_captioning_files_read_image_states_alone(released, tmp_path):
    _, checkpoint, sizes, words = released
    assert main(arguments(checkpoint, tmp_path / "m", sizes, words)) == 0
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    # the golden file is a VQA file without a teacher, which is what a captioning file looks like
    assert stored["trained_for"] == ["captioning"]
    assert stored["model"]["decoder_memory"] == "image"
    assert main(arguments(checkpoint, tmp_path / "v", sizes, words, "--trained-for", "vqa")) == 0
    stored = json.loads((tmp_path / "v" / "config.json").read_text())
    assert stored["model"]["decoder_memory"] == "fused"


def test_fresh_heads_are_the_same_each_time(released, tmp_path):
    _, checkpoint, sizes, words = released
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        assert main(arguments(checkpoint, tmp_path / name, sizes, words)) == 0
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert torch.equal(one["itm_head.weight"], two["itm_head.weight"])
    assert one["itm_head.weight"].std() > 0.01


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _truncated(checkpoint, state):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-3000])


def _with_code(checkpoint, state):
    torch.save({"model": state, "hook": Attack(checkpoint.parent / "broken_in")}, checkpoint)


def _other_family(checkpoint, state):
    block = "transformer.blocks.0."
    torch.save({f"{block}mlp_imag.fc1.weight": torch.zeros(4, 4)}, checkpoint)


def _plain_pickle(checkpoint, state):
    checkpoint.write_bytes(pickle.dumps({"model": os.getcwd}))


def _no_family(checkpoint, state):
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4)}, checkpoint)


def _extra(checkpoint, state):
    torch.save({"model": state | {"adapter.weight": torch.zeros(2)}}, checkpoint)


def _lacking(checkpoint, state):
    part = {k: v for k, v in state.items() if not k.startswith("text_decoder.bert.encoder.layer.1")}
    torch.save({"model": part}, checkpoint)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncated, "is truncated, damaged or no torch file"),
        (_with_code, "without running code"),
        (_plain_pickle, "damaged or no torch file; copy it again$"),
        (_other_family, "is no checkpoint of mPLUG; its names are those of vlmo"),
        (_no_family, r"is no checkpoint of mPLUG \(such as layer1\.0\.conv1\.weight\)"),
        (_extra, r"1 tensor is not understood \(such as adapter\.weight\)"),
        (_lacking, r"tensors are not in the file \(such as decoder\.blocks\.1\."),
    ],
)
def test_bad_files_are_named_and_leave_nothing(released, tmp_path, capsys, damage, says):
    golden, checkpoint, sizes, words = released
    damage(checkpoint, golden.state)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments(checkpoint, tmp_path / "model", sizes, words)) == 2
    told = capsys.readouterr()
    assert re.search(says, " ".join(told.err.split()))
    assert "Traceback" not in told.err
    assert str(checkpoint) in told.err
    assert sorted(tmp_path.rglob("*")) == before


def test_faults_that_are_allowed_are_reported(released, tmp_path, capsys):
    golden, checkpoint, sizes, words = released
    _extra(checkpoint, golden.state)
    out = tmp_path / "model"
    assert main(arguments(checkpoint, out, sizes, words, "--allow", "unexpected")) == 0
    assert "not understood │ adapter.weight" in " ".join(capsys.readouterr().out.split())
    assert "adapter.weight" not in load_file(out / "model.safetensors")


@pytest.fixture
def two_variants(monkeypatch, released):
    """Register the golden file's sizes as the base variant, and wider ones as the large."""
    golden, *_ = released
    config = golden.config
    text = dataclasses.replace(config.text, embed_dim=128)
    wide = dataclasses.replace(config, text=text)
    for name, sizes in (("mplug_base_patch16_256", config), ("mplug_large_patch14_224", wide)):

        def build(*, image_size=None, vocab_size=None, sizes=sizes):
            return sizes

        monkeypatch.setitem(VARIANTS._entries, name, build)


def test_the_wrong_variant_names_the_right_one(released, two_variants, tmp_path, capsys):
    _, checkpoint, _, words = released
    wrong = arguments(checkpoint, tmp_path / "model", "mplug_large_patch14_224", words)
    assert main(wrong) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "of another shape" in told
    assert "The file fits mplug_base_patch16_256" in told
    assert not (tmp_path / "model").exists()
    assert main([*wrong[:5], "mplug_base_patch16_256", *wrong[6:]]) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"family": "mplgu"}, "unknown model family 'mplgu'; did you mean 'mplug'?"),
        ({"variant": "mplug_bas"}, "did you mean"),
        ({"variant": "vlmo_tiny"}, "is no variant of mplug (its variants: mplug_tiny"),
        ({"variant": "absent.json"}, "absent.json: there is no such file"),
        ({"more": ["--trained-for", "captionin"]}, "did you mean 'captioning'?"),
        ({"more": ["--image-size", "65"]}, "image_size = 65: must be a multiple of patch_size"),
    ],
)
def test_wrong_words_are_named(released, tmp_path, capsys, change, says):
    _, checkpoint, sizes, words = released
    given = arguments(checkpoint, tmp_path / "m", change.get("variant", sizes), words)
    given[1] = change.get("family", "mplug")
    assert main([*given, *change.get("more", [])]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "m").exists()


def test_the_temperature_of_a_file_is_told_and_given_back(released, tmp_path, capsys):
    golden, checkpoint, sizes, words = released
    torch.save({"model": golden.state | {"temp": torch.tensor(0.0123)}}, checkpoint)
    assert main(arguments(checkpoint, tmp_path / "m", sizes, words)) == 0
    assert "--task.temperature 0.0123" in capsys.readouterr().out
    assert main(["export", "mplug", str(tmp_path / "m"), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert torch.equal(back["temp"], torch.tensor(0.0123))


def test_a_model_folder_need_not_be_imported(released, tmp_path, capsys):
    _, checkpoint, sizes, words = released
    assert main(arguments(checkpoint, tmp_path / "m", sizes, words)) == 0
    assert main(arguments(tmp_path / "m", tmp_path / "again", sizes, words)) == 2
    assert "is a model folder already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_tokenizer_that_is_absent_or_another_is_refused(released, tmp_path, capsys):
    _, checkpoint, sizes, words = released
    given = arguments(checkpoint, tmp_path / "m", sizes, words)
    assert main(given[:-2]) == 2
    assert "comes without its vocabulary" in capsys.readouterr().err
    words.write_text("\n".join(VOCABULARY[:800]) + "\n")
    assert main(given) == 2
    assert "has 800 tokens, but the token table" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "m").exists()


def test_nothing_is_overwritten(released, tmp_path, capsys):
    _, checkpoint, sizes, words = released
    out = tmp_path / "model"
    assert main(arguments(checkpoint, out, sizes, words)) == 0
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert main(arguments(checkpoint, out, sizes, words)) == 2
    assert "exists: choose another folder" in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    assert main(["export", "mplug", str(out), str(checkpoint)]) == 2
    assert "exists: choose another name" in capsys.readouterr().err


def test_what_the_layout_cannot_hold_is_not_exported(tmp_path, capsys):
    folder = write_tiny_folder(tmp_path / "tiny", "pretraining")
    assert main(["export", "mplug", str(folder), str(tmp_path / "x.pth")]) == 2
    assert "the released layout" in capsys.readouterr().err
    assert main(["export", "vlmo", str(folder), str(tmp_path / "x.pth")]) == 2
    assert "holds a model of mplug, not of vlmo" in capsys.readouterr().err
    assert main(["export", "mplug", str(tmp_path / "absent"), str(tmp_path / "x.pth")]) == 2
    assert "no model folder at" in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()
