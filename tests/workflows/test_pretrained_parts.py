"""Pre-training that starts from CLIP and BERT folders, through the whole run."""

import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from triptych.checkpoint.model_folder import load_model_folder
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError, DataError
from triptych.models.families import VARIANTS
from triptych.models.mplug.config import MPLUGConfig
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig
from triptych.recipes.config import ModelSource
from triptych.text import SPECIAL_TOKENS
from triptych.workflows.new_model import load_published_tokenizer
from triptych.workflows.run import prepare_model, prepare_tokenizer, train_run

from .small_runs import small_run, source_of

transformers = pytest.importorskip("transformers")
WORDS = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnop")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT folder as transformers writes it, with its vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5}
    config = transformers.BertConfig(
        **sizes, num_attention_heads=4, vocab_size=len(WORDS), max_position_embeddings=64
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    config = transformers.CLIPVisionConfig(
        **sizes, num_attention_heads=4, image_size=32, patch_size=16
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def post_norm(monkeypatch):
    """Register a small model with the norms of BERT and the tower of CLIP."""

    def build(*, image_size=None, vocab_size=None):
        size = image_size or 64
        return MPLUGConfig(
            vision=VisionConfig(
                image_size=size, patch_size=16, embed_dim=128, depth=4, num_heads=4
            ),
            text=TextConfig(vocab_size=vocab_size, embed_dim=128, num_heads=4, max_positions=64),
            text_depth=2,
            fusion_depth=3,
            connected_layers=(1,),
            decoder_depth=2,
            proj_dim=32,
        )

    monkeypatch.setitem(VARIANTS._entries, "mplug_post_norm", build)


def run_from(scenes, **source):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"), max_steps=1)
    model = ModelSource(name=source.pop("name", "mplug_post_norm"), **source)
    return dataclasses.replace(config, model=model)


def test_a_run_starts_from_both_and_keeps_berts_words(scenes, bert, clip, post_norm, tmp_path):
    config = run_from(scenes, init_vision_from=str(clip), init_text_from=str(bert))
    names = (f"{kind}learning_rate" for kind in ("", "vision_", "warmup_", "min_"))
    least = dict.fromkeys(names, 1e-30)
    frozen = dataclasses.replace(config.optim, **least)  # a step moves by nothing
    told = io.StringIO()
    train_run(
        dataclasses.replace(config, optim=frozen),
        tmp_path / "run",
        console=Console(file=told, width=200),
    )
    folder = load_model_folder(tmp_path / "run" / "model")
    state = folder.state_dict
    theirs = load_file(bert / "model.safetensors")
    words = theirs["bert.embeddings.word_embeddings.weight"]
    exact = {"atol": 1e-20, "rtol": 0.0}
    torch.testing.assert_close(state["text_encoder.embedding.word.weight"], words, **exact)
    torch.testing.assert_close(state["decoder.embedding.word.weight"], words, **exact)
    tower = load_file(clip / "model.safetensors")
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in tower.items()}
    torch.testing.assert_close(
        state["visual_encoder.patch_embedding.weight"],
        tower["embeddings.patch_embedding.weight"],
        **exact,
    )
    vocab = json.loads(folder.tokenizer_path.read_text())["model"]["vocab"]
    assert vocab == {word: number for number, word in enumerate(WORDS)}
    said = told.getvalue()
    assert f"vision weights from {clip}: loaded 55 tensors, 1 of them resized" in said
    assert f"text weights from {bert}: loaded" in said


def test_a_tokenizer_of_ones_own_goes_before_berts(scenes, bert, post_norm, tmp_path):
    config = run_from(scenes, init_text_from=str(bert))
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "dog"]) + "\n")
    tokenizer = dataclasses.replace(config.tokenizer, path=str(tmp_path / "vocab.txt"))
    config = dataclasses.replace(config, tokenizer=tokenizer)
    found = prepare_tokenizer(config, [])
    assert found.vocab_size == len(WORDS) + 1
    with pytest.raises(CheckpointError, match=rf"init_text_from = {bert}.*for \({len(WORDS) + 1},"):
        prepare_model(config, found)


def test_a_whole_model_and_a_part_contradict_each_other(clip):
    with pytest.raises(ConfigError, match=r"model\.init_vision_from.*init_from gives a whole"):
        ModelSource(init_from="runs/x/model", init_vision_from=str(clip))


def test_a_model_of_other_sizes_is_told_which_file(scenes, clip, bert, post_norm):
    tokenizer = load_published_tokenizer(bert)
    config = run_from(scenes, name="mplug_small", init_vision_from=str(clip))
    with pytest.raises(CapabilityError, match=rf"init_vision_from = {clip}: .*without a stem"):
        prepare_model(config, tokenizer)
    config = run_from(scenes, name="mplug_tiny", init_text_from=str(bert))
    with pytest.raises(CapabilityError, match="post-norm"):
        prepare_model(config, tokenizer)


def test_text_weights_without_words_ask_for_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.path"):
        load_published_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        load_published_tokenizer(tmp_path / "model.safetensors")


def test_a_vocabulary_with_capitals_is_refused(bert, tmp_path):
    (tmp_path / "vocab.txt").write_text((bert / "vocab.txt").read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(DataError, match="is case-sensitive"):
        load_published_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_published_tokenizer(tmp_path).vocab_size == len(WORDS)
