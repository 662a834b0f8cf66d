"""`triptych train`: pre-train, fine-tune, and resume an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from triptych.cli.field_help import field_help
from triptych.cli.parsing import SourceGroup, SourceOptions, parse, refuse_repeats
from triptych.core.errors import ConfigError, nearest
from triptych.core.terminal import colours

if TYPE_CHECKING:
    from triptych.data.source import DataSourceConfig
    from triptych.recipes.config import RunConfig
    from triptych.train.trainer import TrainResult

HELP = """Train a model: TARGET is a recipe, a config that `triptych init` wrote, or a run folder.

Recipes: {recipes}, vlmo.stagewise, flava.stagewise

Examples:
  triptych train mplug.pretrain --data my.jsonl --out runs/mine
  triptych train mplug.vqa --data questions.jsonl --init-from runs/mine/model --out runs/vqa
  triptych train run.yaml --train.max-steps 500 --optim.learning-rate 3e-4
  triptych train runs/mine --resume
  torchrun --nproc-per-node 8 -m triptych train run.yaml --out runs/mine --resume auto

Every field of the config is a flag; `triptych train RECIPE --help` shows the defaults.
"""

STAGEWISE = ("vlmo.stagewise", "flava.stagewise")
"""Several runs in a row; they have options of their own."""

LABELS = ("recipe", "scale")
"""Fields of a RunConfig that only say where it came from."""

Scale = Literal["smoke", "tiny", "small", "base", "large"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationOptions:
    """How the data of --data.val is read, where it differs from --data.

    Attributes:
        reader: The format; if absent, that of --data.
        image_root: Folder that relative image paths start from; if absent, that of --data.
        split: The part to read if a file has several.
        annotations: VQAv2's annotations or RefCOCO's instances, if not next to the file.
    """

    reader: str | None = None
    image_root: str | None = None
    split: str | None = None
    annotations: str | None = None

    def source(self, path: str, train: SourceOptions) -> DataSourceConfig:
        """Return the data set at `path`, read like the training data where nothing else is said."""
        found = train.source(path)
        return replace(
            found,
            reader=self.reader or found.reader,
            image_root=self.image_root or found.image_root,
            split=self.split,
            annotations=self.annotations,
        )

    def flag(self) -> str | None:
        """Return a flag that is given, if any."""
        given = [name for name in self.__slots__ if getattr(self, name) is not None]
        return f"--data.val.{given[0].replace('_', '-')}" if given else None


ValidationGroup = Annotated[ValidationOptions, tyro.conf.arg(name="data.val")]


GuardGroup = Annotated[SourceOptions, tyro.conf.arg(name="guard")]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainOptions:
    """The options that are not fields of the configuration.

    Attributes:
        target: A recipe, a config file (.yaml), or with --resume a run folder.
        scale: Size of a recipe: smoke (seconds), tiny (minutes; the default), small (for a GPU),
            base, large (the paper's).
        config: A config file to start from, instead of a recipe's own values.
        out: The new run folder; if absent, runs/RECIPE-SCALE, or runs/ and the config file's name.
        resume: Continue from the last checkpoint of the run folder. `--resume auto`, with a recipe
            or a config, resumes the run in --out if there is one, else starts it.
        accept_changed_data: With --resume, go on although the data has changed since the last
            checkpoint; else such a run is refused, and the message says what has changed.
        sources: Training data, replaces data.train; if absent, the built-in scenes, which are
            written first.
        source: How that data is read.
        val_sources: Held-out data to validate on while training, replaces data.val; read as the
            training data, but for what --data.val.split and the like say.
        val: How that data is read, where it differs.
        guard_sources: Image-text pairs whose retrieval the fine-tuning should not harm: it is
            scored before and after.
        guard_source: How the data of --guard is read.
        init_from: A model folder to start from; short for model.init-from.
    """

    target: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="TARGET")]] = None
    scale: Scale | None = None
    config: Path | None = None
    out: Path | None = None
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    accept_changed_data: tyro.conf.FlagCreatePairsOff[bool] = False
    sources: Annotated[tuple[str, ...], tyro.conf.arg(name="data", metavar="PATH [PATH ...]")] = ()
    source: SourceGroup = field(default_factory=SourceOptions)
    val_sources: Annotated[
        tuple[str, ...], tyro.conf.arg(name="data.val", metavar="PATH [PATH ...]")
    ] = ()
    val: ValidationGroup = field(default_factory=ValidationOptions)
    guard_sources: Annotated[
        tuple[str, ...], tyro.conf.arg(name="guard", metavar="PATH [PATH ...]")
    ] = ()
    guard_source: GuardGroup = field(default_factory=SourceOptions)
    init_from: str | None = None


def run(arguments: Sequence[str]) -> int:
    """Train, and print where the model is."""
    if arguments and arguments[0] in STAGEWISE:
        from triptych.cli import train_stagewise
        from triptych.workflows.same_data import ACCEPT_FLAG

        auto, arguments = _take_auto(arguments)
        if auto:
            words = [word for word in arguments[1:] if word != ACCEPT_FLAG]
            return train_stagewise.run(
                arguments[0],
                words,
                resume_if_begun=True,
                accept_changed_data=ACCEPT_FLAG in arguments,
            )
        if "--resume" in arguments:
            raise ConfigError("name the folder of the stages: triptych train RUN_FOLDER --resume")
        return train_stagewise.run(arguments[0], arguments[1:])
    refuse_repeats(arguments, "--data", "--data.val", "--guard")
    auto, arguments = _take_auto(arguments)
    plain, rest = _read_plain(arguments)
    wants_help = "-h" in rest or "--help" in rest
    if wants_help and plain.target is None and plain.config is None:
        _parse(PlainOptions, arguments, None)  # shows the help and exits
    if plain.resume and not wants_help:
        return _resume(plain, rest)
    config = read_config(arguments, plain)
    out = plain.out or _default_folder(plain, config)
    from triptych.workflows.run import CONFIG_FILE, train_run
    from triptych.workflows.same_data import ACCEPT_FLAG

    if plain.accept_changed_data and not auto:
        raise ConfigError(f"{ACCEPT_FLAG} belongs to --resume: a new run takes data as it is")
    if not config.data.train and _config_file(plain) is None:
        config = _on_scenes(config, out, begun=auto and (out / CONFIG_FILE).is_file())
    resume: Literal[False, "auto"] = "auto" if auto else False
    return _report(
        train_run(config, out, resume=resume, accept_changed_data=plain.accept_changed_data), out
    )


def _on_scenes(config: RunConfig, out: Path, *, begun: bool) -> RunConfig:
    """Return a recipe's run on the built-in scenes, which are written first, and say so.

    Args:
        config: The recipe's run.
        out: The run folder.
        begun: Whether a run that goes on has them already.
    """
    from triptych.distributed.env import leads
    from triptych.workflows.run import check_unused
    from triptych.workflows.scene_data import scene_run

    if leads() and not begun:
        check_unused(out)
    return scene_run(config, out / "data", write=leads() and not begun)


def read_config(arguments: Sequence[str], plain: PlainOptions | None = None) -> RunConfig:
    """Return the run that a command line asks for.

    Args:
        arguments: What follows `triptych train`.
        plain: Its plain options, where they are known already.

    Raises:
        ConfigError: There is no such recipe or config, or a value is out of range.
        SystemExit: A flag is unknown or its value cannot be read; the message names the nearest.
    """
    from triptych.recipes.config import RunConfig

    if plain is None:
        plain, _ = _read_plain(arguments)
    base = _base_config(plain)

    helps = field_help(RunConfig)
    hints = get_type_hints(RunConfig) | {"task": type(base.task)}
    settings = [
        (name, Annotated[hint, tyro.conf.arg(help=helps.get(name))])
        for name, hint in hints.items()
        if name not in LABELS
    ]
    both: Any = make_dataclass("Train", settings, bases=(PlainOptions,), frozen=True, kw_only=True)
    values = {name: getattr(plain, name) for name in PlainOptions.__slots__}
    values["accept_changed_data"] = False  # where it is True, the flag could not be given again
    values |= {name: getattr(base, name) for name, _ in settings}
    options = _parse(both, arguments, both(**values))
    config = replace(base, **{name: getattr(options, name) for name, _ in settings})
    named = any(word.partition("=")[0] == "--model.name" for word in arguments)
    if named and config.model.init_from is not None:
        raise ConfigError(
            f"--model.name {config.model.name} has no effect on a run that starts from "
            f"{config.model.init_from}, whose sizes count: omit one of the two"
        )
    return config


def _read_plain(arguments: Sequence[str]) -> tuple[PlainOptions, list[str]]:
    """Return the plain options, and what else the command line holds."""
    first = [arguments[0]] if arguments and not arguments[0].startswith("-") else []
    with colours():
        plain, rest = tyro.cli(
            PlainOptions,
            args=list(arguments[len(first) :]),
            prog="triptych train",
            return_unknown_args=True,
            add_help=False,
        )
    stray = [word for word in rest[:1] if first and not word.startswith("-")]
    if stray:
        raise ConfigError(f"{stray[0]!r} follows {first[0]!r}: name one target")
    return replace(plain, target=first[0] if first else None), rest


def _parse(options: type[Any], arguments: Sequence[str], default: Any) -> Any:
    from triptych.recipes.registry import RECIPES

    description = HELP.format(recipes=", ".join(RECIPES))
    return parse(
        options,
        arguments,
        verb="train",
        description=description,
        default=default,
        flag_pairs=True,
    )


def _base_config(plain: PlainOptions) -> RunConfig:
    """Return the recipe's or the file's config, with --data and --init-from applied."""
    from triptych.core.config import load_yaml
    from triptych.recipes.config import RunConfig
    from triptych.recipes.registry import build_recipe

    file = _config_file(plain)
    if file is None:
        config = build_recipe(_recipe_name(plain.target), plain.scale or "tiny")
    else:
        if plain.scale is not None:
            raise ConfigError(f"--scale belongs to a recipe, but {file} sets every size itself")
        config = load_yaml(RunConfig, file)
        _check_same_recipe(plain, config, file)
    if plain.source.flags() and not plain.sources:
        flag = plain.source.flags().split()[0]
        raise ConfigError(f"{flag} says how to read --data: give --data, or set data.train")
    if plain.sources:
        sources = tuple(plain.source.source(path) for path in plain.sources)
        config = replace(config, data=replace(config.data, train=sources))
    if plain.val.flag() is not None and not plain.val_sources:
        raise ConfigError(f"{plain.val.flag()} says how to read --data.val: give --data.val too")
    if plain.val_sources:
        held_out = tuple(plain.val.source(path, plain.source) for path in plain.val_sources)
        config = replace(config, data=replace(config.data, val=held_out))
    if plain.guard_source.flags() and not plain.guard_sources:
        raise ConfigError("flags of --guard say how its data are read: name them with --guard PATH")
    if plain.guard_sources:
        pairs = tuple(plain.guard_source.source(path) for path in plain.guard_sources)
        config = replace(config, guard=replace(config.guard, data=pairs))
    if plain.init_from is not None:
        config = replace(config, model=replace(config.model, init_from=plain.init_from))
    return config


def _config_file(plain: PlainOptions) -> Path | None:
    target = Path(plain.target or "")
    if target.suffix not in (".yaml", ".yml"):
        return plain.config
    if plain.config is not None:
        raise ConfigError(f"two configs: {target} and --config {plain.config}; name one")
    return target


def _check_same_recipe(plain: PlainOptions, config: RunConfig, file: Path) -> None:
    if plain.config is not None and plain.target not in (None, config.recipe):
        raise ConfigError(
            f"{file} is a config of {config.recipe}, not of {plain.target}: "
            f"omit {plain.target}, or name another file"
        )


def _recipe_name(target: str | None) -> str:
    """Return the target, where it is a recipe."""
    from triptych.recipes.registry import RECIPES

    names = (*RECIPES, *STAGEWISE)
    known = ", ".join(names)
    if target is None:
        raise ConfigError(
            f"name what to train right after `triptych train`: a recipe ({known}), a config file "
            "that ends in .yaml, or a run folder with --resume"
        )
    if target not in RECIPES and Path(target).is_dir():
        raise ConfigError(
            f"{target} is a folder: continue a run in it with `triptych train {target} --resume`, "
            f"or train on data in it with `triptych train RECIPE --data {target}`"
        )
    if target not in RECIPES and Path(target).is_file():
        raise ConfigError(
            f"{target} is a file, but not a config that ends in .yaml: train on data in it with "
            f"`triptych train RECIPE --data {target}` (recipes: {known})"
        )
    if target not in RECIPES:
        raise ConfigError(
            f"there is no recipe {target!r}{nearest(target, names)} "
            f"(known: {known}; a config file ends in .yaml)"
        )
    return target


def _default_folder(plain: PlainOptions, config: RunConfig) -> Path:
    file = _config_file(plain)
    return Path("runs") / (f"{config.recipe}-{config.scale}" if file is None else file.stem)


def _resume(plain: PlainOptions, rest: Sequence[str]) -> int:
    """Resume a run; its config is fixed, except for how it is computed."""
    from triptych.workflows.run import MAY_CHANGE, change_run, resume_run
    from triptych.workflows.stagewise import is_stagewise

    changes, rest = _changes(rest, MAY_CHANGE)
    flags: dict[str, object] = {"scale": plain.scale, "config": plain.config, "out": plain.out}
    flags |= {"data": plain.sources or None, "init-from": plain.init_from}
    flags |= {"data.val": plain.val_sources or None, "guard": plain.guard_sources or None}
    given = [f"--{name}" for name, value in flags.items() if value is not None]
    given += plain.source.flags().split()[:1] + [flag for flag in [plain.val.flag()] if flag]
    given += [word for word in rest if word.startswith("-")]
    if plain.target is None:
        raise ConfigError("name the run folder: triptych train RUN_FOLDER --resume")
    if given:
        raise ConfigError(
            f"{given[0]} cannot be changed when a run is resumed: --resume takes the config of "
            f"{plain.target}; start a new run to change it"
        )
    folder = Path(plain.target)
    if changes:
        change_run(folder, changes)
    if is_stagewise(folder):
        from triptych.cli import train_stagewise

        return train_stagewise.resume(folder, accept_changed_data=plain.accept_changed_data)
    return _report(resume_run(folder, accept_changed_data=plain.accept_changed_data), folder)


def _take_auto(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether the command line holds `--resume auto`, and what else it holds."""
    words = [part for word in arguments for part in _split_flag(word, "--resume")]
    pairs = list(pairwise(words))
    if ("--resume", "auto") not in pairs:
        return False, list(arguments)
    index = pairs.index(("--resume", "auto"))
    return True, words[:index] + words[index + 2 :]


def _changes(rest: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Take the flags that may change when a run goes on out of a command line.

    Returns:
        The values by the names of their fields, and the other words.
    """
    flags = {"--" + name.replace("_", "-"): name for name in names}
    words = [part for word in rest for part in _split_flag(word, *flags)]
    found: dict[str, str] = {}
    others = []
    while words:
        word = words.pop(0)
        if word not in flags:
            others.append(word)
        elif not words or words[0].startswith("--"):
            raise ConfigError(f"{word} needs a value")
        else:
            found[flags[word]] = words.pop(0)
    return found, others


def _split_flag(word: str, *flags: str) -> list[str]:
    """Split `--flag=value` of one of these flags."""
    flag, equals, value = word.partition("=")
    return [flag, value] if equals and flag in flags else [word]


def _report(result: TrainResult, folder: Path) -> int:
    print(f"trained to step {result.step:,} in {result.elapsed_s:,.1f} s")
    if result.stopped_early:
        print("stopped early: the held-out data had no better model for too long")
    print(f"model: {folder / 'model'}")
    if result.best_step is not None:
        print(f"best by validation: {folder / 'best'} (step {result.best_step:,})")
    return 0
