"""Command lines from dataclasses, through tyro, and the options that several verbs share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from triptych.core.errors import ConfigError
from triptych.core.files import write_json
from triptych.core.reading import read_text
from triptych.core.terminal import colours
from triptych.data.source import DataSourceConfig, source_flags

if TYPE_CHECKING:
    from triptych.serving.engine import Engine
    from triptych.tasks.finetuning.text_generator import GenerationSettings

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".tar", ".parquet", ".arrow")
"""How a path of a dataset may end."""

O = TypeVar("O")  # noqa: E741 - options

FolderArgument = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL_FOLDER")]]
ImageArgument = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="IMAGE")]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How the model computes.

    Attributes:
        device: Device; `auto` takes the GPU if there is one.
        precision: Precision of the forward pass; `auto` is bf16 if the processor supports it.
        json: Print JSON, one object per line.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    json: bool = False

    def load(self, folder: Path) -> Engine:
        """Load a model folder with these options."""
        from triptych.serving.engine import load

        return load(folder, device=self.device, precision=self.precision)


EngineGroup = Annotated[EngineOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How a dataset is read.

    Attributes:
        reader: The format; `auto` recognises it by extension and content.
        image_root: Folder that relative image paths start from; if absent, the manifest's own.
        split: The part to read if a file has several.
        annotations: VQAv2's annotations or RefCOCO's instances, if not next to the file.
        class_names: A file of lines `<label> <name>`, or JSON: what the classes are called.
        index: Whether records are kept in columns on disk, in the cache folder: auto, which does
            so for large data, always, or never.
    """

    reader: str = "auto"
    image_root: str | None = None
    split: str | None = None
    annotations: str | None = None
    class_names: str | None = None
    index: Literal["auto", "always", "never"] = "auto"

    def source(self, path: str) -> DataSourceConfig:
        """Return the dataset at `path`, read with these options."""
        return DataSourceConfig(
            path=path,
            reader=self.reader,
            image_root=self.image_root,
            split=self.split,
            annotations=self.annotations,
            class_names=self.class_names,
            index=self.index,
        )

    def flags(self) -> str:
        """Return the flags that say this, each with a space before it; empty for the defaults."""
        return source_flags(self)


SourceGroup = Annotated[SourceOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How texts are generated; what is absent is as in the model folder.

    Attributes:
        prompt: Words that every text begins with; what is predicted and scored goes without them.
        num_beams: Width of the beam search.
        min_tokens: Tokens before a text may end.
        max_tokens: Longest text, in tokens.
        length_penalty: Exponent of the search's length divisor; more favours longer texts.
        stop: When the search of an image is done: none_better, or top_ended as in the released
            code.
        top_p: Sample from the likeliest words whose probabilities add up to this.
        top_k: Sample from the k likeliest words.
        temperature: Sample; values below 1 favour likely words.
        seed: Seed of the samples; another seed gives other texts.
    """

    prompt: str | None = None
    num_beams: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    length_penalty: float | None = None
    stop: Literal["none_better", "top_ended"] | None = None
    top_p: float | None = None
    top_k: int | None = None
    temperature: float | None = None
    seed: int = 0

    def settings(self) -> GenerationSettings:
        """Return them for a task."""
        from triptych.tasks.finetuning.text_generator import GenerationSettings

        return GenerationSettings(**asdict(self))


GenerationGroup = Annotated[GenerationOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultOptions:
    """Where the numbers go.

    Attributes:
        json: Print JSON instead of a table.
        out: Also write the JSON to this file.
    """

    json: bool = False
    out: Path | None = None

    def report(self, content: dict[str, Any]) -> None:
        """Print the content where JSON is asked for, and write it where a file is named."""
        if self.json:
            print(json.dumps(content, ensure_ascii=False))
        if self.out is not None:
            write_json(self.out, content)
            print(f"wrote {self.out}", file=sys.stderr if self.json else sys.stdout)


ResultGroup = Annotated[ResultOptions, tyro.conf.arg(name="")]


def json_as_out(arguments: Sequence[str], flag: str = "--out") -> list[str]:
    """Return a command line with `--json FILE.json`, as earlier versions had it, as `--out FILE`.

    Args:
        arguments: What follows the verb.
        flag: The flag that names a file now.
    """
    words: list[str] = []
    for word in arguments:
        name, _, value = word.partition("=")
        if words and words[-1] == "--json" and word.endswith(".json"):
            words[-1:] = [flag, word]
        elif name == "--json" and value:
            words += [flag, value]
        else:
            words.append(word)
    return words


def parse(
    options: type[O],
    arguments: Sequence[str],
    *,
    verb: str,
    description: str,
    default: O | None = None,
    flag_pairs: bool = False,
) -> O:
    """Fill a dataclass from arguments.

    Args:
        options: The dataclass; its documented fields become flags.
        arguments: What follows the verb.
        verb: For the usage line.
        description: First part of the help text, examples included.
        default: Values where no flag is given.
        flag_pairs: Whether a bool also has a `--no-` form.

    Raises:
        SystemExit: With 0 after `--help`, with 2 after a message on what is wrong; an unknown
            flag's message names the nearest.
    """
    markers: list[Any] = [tyro.conf.AvoidSubcommands]
    if not flag_pairs:
        markers.append(tyro.conf.FlagCreatePairsOff)
    try:
        with colours():
            return tyro.cli(
                options,
                args=list(arguments),
                prog=f"triptych {verb}",
                description=description,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=tuple(markers),
            )
    except SystemExit as stop:
        stray = stray_path(arguments) if stop.code else None
        if stray is not None:
            print(
                f"triptych: {stray} is a path that belongs to no flag: name all datasets after "
                "one --data, with spaces between them, such as --data a.jsonl b.jsonl",
                file=sys.stderr,
            )
        raise


def stray_path(arguments: Sequence[str]) -> str | None:
    """Return a path of a command line that follows the value of another flag than --data.

    Only the commands that have --data are looked at: elsewhere, paths stand without flags.
    """
    if "--data" not in arguments:
        return None
    flag, values = "", 0
    for word in arguments:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            values = int(bool(value))
            continue
        values += 1
        looks_like_data = Path(word).suffix in DATA_SUFFIXES or "/" in word
        if looks_like_data and values > 1 and flag not in ("--data", "--data.val"):
            return word
    return None


def refuse_repeats(arguments: Sequence[str], *flags: str) -> None:
    """Raise where a flag that takes several values is given twice: the last would win.

    Raises:
        ConfigError: It is.
    """
    for flag in flags:
        if sum(word == flag or word.startswith(f"{flag}=") for word in arguments) > 1:
            raise ConfigError(
                f"{flag} is given more than once: name all values after one {flag}, with spaces "
                "between them"
            )


@contextmanager
def continued_when_repeated() -> Iterator[None]:
    """Say after Ctrl-C that the same command does the rest."""
    try:
        yield
    except KeyboardInterrupt:
        print("triptych: the same command goes on where this one stopped", file=sys.stderr)
        raise


def shows_progress() -> bool:
    """Return whether a person watches the error stream, where progress is drawn."""
    return sys.stderr.isatty()


def read_names(flag: str, given: str | None) -> tuple[str, ...]:
    """Return names from a text file with one a line, or separated by commas.

    Args:
        flag: What they are names of, as the flag is called.
        given: Its value; absent, there are none.

    Raises:
        ConfigError: The file cannot be read, or there are fewer than two names, or one twice.
    """
    if given is None:
        return ()
    path = Path(given)
    try:
        is_file = "," not in given and path.exists() and not path.is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL character
        is_file = False
    parts = read_text(path, error=ConfigError).splitlines() if is_file else given.split(",")
    names = tuple(name.strip() for name in parts if name.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"--{flag} {given}: must name two {flag} or more, each once, separated by commas, or "
            "a text file with one a line"
        )
    return names
