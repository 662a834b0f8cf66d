"""Configs of runs and of models, in YAML and JSON."""

import json
import random
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import yaml

from tests.fuzz.kind import Kind
from tests.fuzz.mutators import (
    changed,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_plain,
    special,
)
from tests.serving.tiny_folder import WORDS
from triptych.core.config import from_dict, load_yaml, save_yaml, to_dict
from triptych.core.reading import read_yaml
from triptych.models.families import CONVERTERS, build_model, model_config, model_config_of
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.text import Tokenizer
from triptych.workflows import importing
from triptych.workflows.importing import ImportSettings

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(12)
)
"""Aliases that stand for 10^12 values."""

HOSTILE = (
    BOMB,
    "a: &a [*a]\n",
    "!!python/object/apply:tests.fuzz.canary.ran ['x']\n",
    "!!python/name:tests.fuzz.canary.ran\n",
    "? [a]\n: 1\n",
    "{" * 5000,
    "a: " + "9" * 5000 + "\n",
    "recipe: 2024-02-30\n",
    "a: 1\na: 2\n",
    "1: 2\n",
    "\x00",
)


def mutate_yaml(rng: random.Random, data: bytes) -> bytes:
    """Change a value of a YAML file, or put a hostile one in its place."""
    if rng.random() < 0.2:
        return rng.choice(HOSTILE).encode()
    try:
        plain = yaml.safe_load(data)
        return yaml.safe_dump(mutate_plain(rng, plain), allow_unicode=True).encode(
            errors="surrogatepass"
        )
    except Exception:  # an earlier mutator has been there
        return data


MUTATORS = (
    changed("*.yaml", mutate_yaml),
    changed("*.yaml", mutate_yaml),
    changed("*.yaml", mutate_lines),
    changed("*", mutate_bytes),
    special(),
)


def _run(folder: Path) -> None:
    for recipe in ("mplug.vqa", "vlmo.pretrain"):
        save_yaml(build_recipe(recipe, "smoke"), folder / f"{recipe}.yaml")


def _read_runs(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        config = load_yaml(RunConfig, path)
        assert from_dict(RunConfig, to_dict(config)) == config


def _model(folder: Path) -> None:
    for name in ("mplug_tiny", "vlmo_tiny", "flava_tiny"):
        plain = yaml.safe_dump(to_dict(model_config(name)), sort_keys=False)
        (folder / f"{name}.yaml").write_text(plain)


def _read_models(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        model_config_of(path.name.partition("_")[0], read_yaml(path))


def _released(folder: Path) -> None:
    """Write what the released code would, with few weights."""
    tokenizer = Tokenizer.train(WORDS, vocab_size=120, num_unused=12)
    config = model_config("mplug_base_patch16_256", vocab_size=tokenizer.vocab_size)
    config = replace(
        config,
        vision=replace(config.vision, image_size=32, embed_dim=16, depth=1, num_heads=2),
        text=replace(config.text, embed_dim=16, num_heads=2, max_positions=24),
        text_depth=1,
        fusion_depth=1,
        connected_layers=(),
        decoder_depth=1,
        proj_dim=8,
    )
    torch.manual_seed(0)
    state = CONVERTERS.get("mplug").export_state(build_model(config))
    torch.save({"model": state}, folder / "released.pth")
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    (folder / "sizes.json").write_text(json.dumps(to_dict(config)))


def _import(folder: Path) -> None:
    words, sizes = folder / "tokenizer.json", folder / "sizes.json"
    settings = ImportSettings(variant=str(sizes), tokenizer=words, trained_for="captioning")
    with mock.patch.object(importing, "current_commit", lambda: None):  # it asks git
        importing.import_checkpoint("mplug", folder / "released.pth", folder / "model", settings)


def _mutate_sizes(rng: random.Random, data: bytes) -> bytes:
    try:
        plain = json.loads(data)
        part = rng.choice([plain, plain["vision"], plain["text"]])
        name = rng.choice([k for k, v in part.items() if isinstance(v, int | float)])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return data
    part[name] = rng.choice((0, -1, 10**12, 2**24, 1000, 1e308, float("nan"), 10**400, 3))
    return json.dumps(plain).encode()


KINDS = [
    Kind(name="run_config", build=_run, mutators=MUTATORS, use=_read_runs),
    Kind(name="model_config", build=_model, mutators=MUTATORS, use=_read_models),
    Kind(
        name="import_mplug",
        build=_released,
        mutators=(
            changed("*", mutate_bytes),
            changed("sizes.json", _mutate_sizes),
            changed("sizes.json", _mutate_sizes),
            changed("tokenizer.json", mutate_json),
            special(),
        ),
        use=_import,
    ),
]
