"""A fourth family and a new task: a folder and a file, one registration each, no other edit.

The family has CoCa's shape (Yu et al. 2022): an image encoder, a text encoder, contrastive
embeddings, and a decoder that reads image states. The task trains it by contrast and captions.
"""

import json
import re
import sys
from pathlib import Path

import pytest

import triptych
from triptych.cli.main import main
from triptych.models.families import CONVERTERS, FAMILIES, VARIANTS
from triptych.tasks import spec
from triptych.tasks.registry import TASKS

FAMILY = '''
from dataclasses import dataclass, replace

from torch import nn
from torch.nn import functional as F

from triptych.core.errors import CapabilityError
from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.models.base import Family, FeatureDims, ModelSizes
from triptych.nn.decoder import TextDecoder
from triptych.nn.encoder import TextConfig, TextEncoder
from triptych.nn.init import init_weights
from triptych.nn.positions import resize_position_table
from triptych.nn.vision import VisionConfig, VisionTransformer


@dataclass(frozen=True, kw_only=True, slots=True)
class CocaConfig:
    images: VisionConfig
    words: TextConfig
    depth: int = 1


class CoCa(nn.Module):
    capabilities = frozenset({"itc", "decode"})
    decoder_reads = "image"

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.words.embed_dim
        self.image_encoder = VisionTransformer(config.images)
        self.text_encoder = TextEncoder(config.words, config.depth)
        self.decoder = TextDecoder(config.words, config.depth)
        self.image_projection, self.text_projection = nn.Linear(width, 8), nn.Linear(width, 8)
        init_weights(self, 0.02)

    @property
    def image_size(self):
        return self.config.images.image_size

    @property
    def feature_dims(self):
        width = self.config.words.embed_dim
        return FeatureDims(width, width, width)

    def encode_image(self, image, *, hidden_patches=None):
        return ImageFeatures(self.image_encoder(image))

    def encode_text(self, token_ids, text_mask):
        return TextFeatures(self.text_encoder(token_ids, text_mask), text_mask)

    def embed_image(self, features):
        return F.normalize(self.image_projection(features.pooled).float(), dim=-1)

    def embed_text(self, features):
        return F.normalize(self.text_projection(features.pooled).float(), dim=-1)

    def fuse(self, image, text, *, image_index=None):
        raise CapabilityError("CoCa has no fusion network: its decoder reads the image")

    def decoder_memory(self, image, fused=None):
        return self.decoder.project_memory(image.tokens, None)

    def decode(self, token_ids, memory):
        return self.decoder(token_ids, memory)


def coca_tiny(*, image_size=None, vocab_size=None):
    """A size for tests."""
    return CocaConfig(
        images=VisionConfig(
            image_size=image_size or 32, patch_size=16, embed_dim=16, depth=1, num_heads=2
        ),
        words=TextConfig(
            vocab_size=vocab_size or 256, embed_dim=16, num_heads=2, max_positions=64, dropout=0.0
        ),
    )


def resize(state, config, image_size):
    images = replace(config.images, image_size=image_size)
    name = "image_encoder.position_embedding"
    table = resize_position_table(state[name], images.num_patches)
    return {**state, name: table}, replace(config, images=images)


FAMILY = Family(
    title="CoCa",
    config_class=CocaConfig,
    build=CoCa,
    variants={"coca_tiny": coca_tiny},
    resize=resize,
    sizes=lambda c: ModelSizes(c.words.vocab_size, c.words.max_positions, c.images.patch_size),
    vision_parameters=("image_encoder.",),
)
'''

TASK = '''
from dataclasses import dataclass, replace

import torch

from triptych.data.collate import CaptioningCollator
from triptych.evaluation.metrics import CaptionMetric
from triptych.objectives.contrastive import itc_loss, similarity
from triptych.recipes.config import ModelSource, RunConfig, TokenizerConfig
from triptych.recipes.scales import PLAIN_IMAGE, small_train
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.spec import Evaluation, TaskConfig, TaskRecipe, TaskSpec, TrainedModels


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastiveCaptioningConfig(TaskConfig):
    """Settings of the task.

    Attributes:
        temperature: Of the contrastive loss.
    """

    temperature: float = 0.07


class ContrastiveCaptioning(Captioning):
    objective_names = frozenset({"itc", "caption"})

    def __init__(self, model, config, tokenizer):
        super().__init__(model, CaptioningConfig(), tokenizer)
        self.temperature = torch.tensor(config.temperature)

    def losses(self, batch, *, active):
        found = super().losses(batch, active=active)
        image = self.model.embed_image(self.model.encode_image(batch["image"]))
        text = self.model.embed_text(
            self.model.encode_text(batch["target_token_ids"], batch["target_mask"])
        )
        scores = similarity(image, text, self.temperature)
        own = torch.eye(len(scores))
        return found | {"itc": itc_loss(scores, scores.T, own, own)}


def references(config, records, all_records):
    texts = {}
    for record in all_records:
        texts.setdefault(record.image, []).append(record.caption)
    return [CaptionMetric({index: texts[r.image] for index, r in enumerate(records)})]


def pretrain(scale):
    return RunConfig(
        recipe="coca.pretrain",
        scale=scale,
        model=ModelSource(name="coca_tiny"),
        tokenizer=TokenizerConfig(vocab_size=256),
        image=PLAIN_IMAGE,
        task=ContrastiveCaptioningConfig(),
        train=replace(small_train(scale, 4), checkpoint_every_steps=4),
    )


SPEC = TaskSpec(
    config=ContrastiveCaptioningConfig,
    trained_for="contrastive_captioning",
    build=lambda config, model, tokenizer, _: ContrastiveCaptioning(model, config, tokenizer),
    collator=lambda config, inputs: CaptioningCollator(
        inputs.tokenizer, max_text_tokens=30, train=inputs.train
    ),
    needs=("caption",),
    models=TrainedModels(capabilities=("itc", "decode")),
    recipes=(TaskRecipe("coca.pretrain", "coca", build=pretrain),),
    serves=("caption", "embed"),
    evaluations=(
        Evaluation("coca_captions", "caption", references, one_per_image=True),
    ),
    also_scored=("caption", "retrieval"),
    pretrains=True,
)
'''


REGISTRATION = """
from triptych.models.families import register_family
from triptych.tasks.registry import register_task
from coca_plugin.coca.model import FAMILY
from coca_plugin.contrastive_captioning import SPEC

register_family(FAMILY)
register_task(SPEC)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """Write the package, name it as a plugin, and take back at the end what it registered."""
    root = tmp_path_factory.mktemp("plugin")
    folder = root / "coca_plugin"
    (folder / "coca").mkdir(parents=True)
    (folder / "coca" / "__init__.py").write_text("")
    (folder / "coca" / "model.py").write_text(FAMILY)
    (folder / "contrastive_captioning.py").write_text(TASK)
    (folder / "__init__.py").write_text(REGISTRATION)
    tables = [TASKS, spec.CONFIGS, *(r._entries for r in (FAMILIES, VARIANTS, CONVERTERS))]
    before = [dict(table) for table in tables]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        patch.setenv("TRIPTYCH_PLUGINS", "coca_plugin")
        yield folder
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)
    for name in [name for name in sys.modules if name.startswith("coca_plugin")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "scenes"
    assert main(["data", "scenes", str(out), "--num-images", "16", "--image-size", "32"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(plugin, scenes, tmp_path_factory):
    """Train on the scenes; return the model folder, data flags and an image."""
    out, images = tmp_path_factory.mktemp("runs") / "coca", scenes / "images" / "train"
    data = ["--data", str(scenes / "captions" / "captions_train.json"), "--image-root", str(images)]
    quiet = ["--scale", "smoke", "--train.progress", "off", "--train.num-threads", "1"]
    assert main(["train", "coca.pretrain", *data, "--out", str(out), *quiet]) == 0
    return out / "model", data, str(sorted(images.iterdir())[0])


def test_one_registration_each(plugin):
    lines = (plugin / "__init__.py").read_text().splitlines()
    edits = {
        what: len([line for line in lines if line.startswith(f"register_{what}(")])
        for what in ("family", "task")
    }
    assert edits == {"family": 1, "task": 1}
    own = {path.relative_to(plugin).parts[0] for path in plugin.rglob("*.py")}
    assert own == {"__init__.py", "coca", "contrastive_captioning.py"}


def test_models_and_help_know_them(plugin, capsys):
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row["name"] == "coca_tiny"]
    assert (row["image_size"], row["vocab_size"]) == (32, 256)
    assert main(["train", "--help"]) == 0
    assert "coca.pretrain" in capsys.readouterr().out
    assert main(["train", "coca.pretrain", "--help"]) == 0
    assert "--task.temperature" in capsys.readouterr().out
    assert "coca_tiny" in triptych.list_models()
    assert type(triptych.create_model("coca_tiny")).__name__ == "CoCa"


def test_it_trains_and_is_stored(trained):
    folder, _, _ = trained
    stored = json.loads((folder / "config.json").read_text())
    assert stored["model"]["kind"] == "coca"
    assert stored["trained_for"] == ["contrastive_captioning"]
    assert stored["task"]["kind"] == "contrastive_captioning"
    log = (folder.parent / "metrics.jsonl").read_text()
    assert "loss/itc" in log
    assert "loss/caption" in log


@pytest.mark.parametrize("task", ["coca_captions", "caption", "retrieval"])
def test_eval_scores_it(trained, capsys, task):
    folder, data, _ = trained
    capsys.readouterr()
    assert main(["eval", str(folder), "--task", task, *data, "--limit", "8", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores[0]["metrics"]


def test_it_captions(trained, capsys):
    folder, _, image = trained
    capsys.readouterr()
    assert main(["caption", str(folder), image]) == 0
    assert capsys.readouterr().out.strip()


def test_a_recipe_of_the_library_fine_tunes_it(trained, tmp_path, capsys):
    folder, data, image = trained
    start = ["--init-from", str(folder), "--scale", "smoke", "--out", str(tmp_path / "tuned")]
    quiet = ["--train.max-steps", "1", "--train.progress", "off", "--train.num-threads", "1"]
    assert main(["train", "mplug.caption", *data, *start, *quiet]) == 0
    assert main(["caption", str(tmp_path / "tuned" / "model"), image, "--num-beams", "1"]) == 0


def test_what_it_cannot_do_is_said(trained, capsys):
    folder, _, image = trained
    assert main(["answer", str(folder), image, "what is it?"]) == 2
    assert "was trained for contrastive_captioning" in capsys.readouterr().err


def test_a_plugin_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setenv("TRIPTYCH_PLUGINS", "no_such_package")
    assert main(["models"]) == 2
    assert "TRIPTYCH_PLUGINS names the plugin 'no_such_package'" in capsys.readouterr().err


def test_no_module_beyond_the_families_asks_for_one():
    asks = re.compile(r"isinstance\([^)]*\b((MPLUG|VLMo|FLAVA)\b|(MPLUG|VLMo|FLAVA|DVAE)Config\b)")
    package = Path(triptych.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if path.relative_to(package).parts[0] != "models" and asks.search(line)
    ]
    assert found == []
