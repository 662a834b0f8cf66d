"""The entry point: find the verb, run it, and turn errors into one message and an exit code."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych import __version__
from triptych.core.errors import ConfigError, TriptychError, nearest
from triptych.core.files import NotWritableError, is_full, refusal
from triptych.core.registry import load_plugins
from triptych.core.terminal import guarded
from triptych.train.interrupts import TrainingInterrupted

USER_ERROR = 2
PIXELS_FLAG = "--max-image-pixels"


@dataclass(frozen=True, slots=True)
class Verb:
    """A subcommand.

    Attributes:
        module: Where its `run` is, or "module:function".
        usage: Its arguments, shortened.
        help: What it does, in a few words.
    """

    module: str
    usage: str
    help: str


VERBS = {
    "demo": Verb("demo", "", "train and evaluate a model on built-in scenes"),
    "init": Verb("init", "MANIFEST", "write a documented config for your data"),
    "data check": Verb("data_check", "MANIFEST", "report what a dataset contains and what is bad"),
    "data list": Verb("data_list", "[NAME]", "list the formats of datasets, and what is missing"),
    "data scenes": Verb("data_scenes", "OUT --num-images N", "write the built-in scenes"),
    "data shard": Verb("data_shard", "MANIFEST --out SHARDS", "write a dataset as tar shards"),
    "data stats": Verb("data_stats", "PATH...", "count images, pairs and words by source"),
    "data tokenize-images": Verb(
        "data_tokenize_images",
        "MANIFEST --tokenizer FOLDER --out SHARDS",
        "write shards of images with their codes",
    ),
    "train": Verb("train", "RECIPE|CONFIG|RUN_FOLDER", "pre-train, fine-tune, or resume a run"),
    "doctor": Verb("doctor", "RUN", "tell what ails a run, and what to do"),
    "plan": Verb("plan", "RECIPE [--gpus N]", "measure memory, hours and disk before a run"),
    "eval": Verb("eval", "MODEL_FOLDER --task T --data PATH", "evaluate a model on held-out data"),
    "predict": Verb(
        "predict",
        "MODEL_FOLDER --task T --data PATH --out FILE",
        "predict data with or without labels to a file",
    ),
    "score": Verb("score", "FILE --data PATH", "score a file of predictions"),
    "probe": Verb(
        "probe",
        "MODEL_FOLDER --train A --validation B --test C",
        "probe its features",
    ),
    "suite": Verb(
        "suite", "flava|glue|vlmo|mplug MODEL --data ROOT", "score all benchmarks of a paper"
    ),
    "reproduce": Verb("reproduce", "[TABLE]", "put a table of a paper beside our numbers"),
    "caption": Verb("use", "MODEL_FOLDER IMAGE...", "describe images"),
    "answer": Verb("use", "MODEL_FOLDER IMAGE QUESTION", "answer a question about an image"),
    "ground": Verb("use", "MODEL_FOLDER IMAGE PHRASE", "find the object that a phrase names"),
    "classify": Verb("use", "MODEL_FOLDER IMAGE [--labels a,b,c]", "choose among classes"),
    "segment": Verb("use", "MODEL_FOLDER IMAGE --out mask.png", "find the class of each pixel"),
    "match": Verb("use", "MODEL_FOLDER IMAGE TEXT...", "score how well texts fit an image"),
    "judge": Verb("use", "MODEL_FOLDER IMAGE1 IMAGE2 STATEMENT...", "judge if texts are true"),
    "entail": Verb(
        "use", "MODEL_FOLDER IMAGE HYPOTHESIS...", "predict whether an image entails a text"
    ),
    "batch": Verb("batch", "VERB MODEL_FOLDER DATA --out FOLDER", "ask about a whole dataset"),
    "index": Verb("index", "MODEL_FOLDER DATA --out INDEX", "index images to be searched"),
    "search": Verb("search", "INDEX TEXT", "find images of an index by words or by an image"),
    "serve": Verb("serve", "MODEL... [--index INDEX]", "serve models and an index over HTTP"),
    "import": Verb(
        "import_checkpoint",
        "FAMILY SOURCE OUT --variant V",
        "convert released weights to a model folder",
    ),
    "export": Verb(
        "import_checkpoint:run_export",
        "FAMILY MODEL_FOLDER OUT",
        "write a model in the released layout",
    ),
    "export onnx": Verb("export_onnx", "MODEL_FOLDER OUT", "write image and text encoder as ONNX"),
    "compare": Verb(
        "compare", "STUDY --out FOLDER", "train variants at one budget and compare them"
    ),
    "interpolate": Verb(
        "interpolate",
        "BEFORE AFTER --data PATH",
        "choose weights between a model and its fine-tuned one",
    ),
    "merge": Verb("merge", "MODEL_FOLDER --out FOLDER", "put a LoRA adapter into the weights"),
    "export-model": Verb(
        "export_model", "RUN_FOLDER --out FOLDER", "make a model folder of a run's checkpoint"
    ),
    "push": Verb("push", "MODEL_FOLDER HUB_ID", "put a model folder on the Hugging Face hub"),
    "models": Verb("models", "", "list the model sizes that can be trained"),
    "tasks": Verb("tasks", "", "list which models can do which task, and why not"),
    "completion": Verb("completion", "bash|zsh|fish|tcsh", "print a shell completion script"),
}

EXAMPLES = """\
examples:
  triptych demo                                   train and evaluate on built-in data
  triptych data check my.jsonl                    check your data first
  triptych train mplug.pretrain --data my.jsonl --out runs/mine
  triptych caption runs/mine/model image.jpg

`triptych VERB --help` shows the options of a verb."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        0; 1 where a check failed; 2 where the user must change something; 130 or 143 where a
        signal stopped a run that was saved; 141 where nobody reads the output. Errors of the
        program itself keep their traceback.
    """
    with guarded():
        return _guarded_main(list(sys.argv[1:] if argv is None else argv))


def _guarded_main(arguments: list[str]) -> int:
    try:
        load_plugins()
        code = _dispatch(arguments)
        sys.stdout.flush()  # now, so that a reader who has left is met here
        return code
    except TriptychError as error:
        print(f"triptych: error: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return 141
    except OSError as error:
        if not (is_full(error) or isinstance(error, NotWritableError)):
            raise
        print(f"triptych: error: {refusal(error.filename or 'a file', error)}", file=sys.stderr)
        return USER_ERROR
    except TrainingInterrupted as stop:
        print(f"triptych: {stop}", file=sys.stderr)
        command = _resume_command(stop.checkpoint.parent.parent)
        print(f"triptych: continue with `{command}`", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("triptych: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # the parser has printed what is wrong, or the help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _resume_command(run_folder: Path) -> str:
    """Return the command that continues a run, or the stages that it is one of."""
    from triptych.demo.state import resume_command
    from triptych.workflows.stagewise import is_stagewise

    demo = resume_command(run_folder.parent)
    if demo is not None:
        return demo
    whole = run_folder.parent if is_stagewise(run_folder.parent) else run_folder
    return f"triptych train {whole} --resume"


def _dispatch(arguments: list[str]) -> int:
    if len(arguments) > 1 and arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == PIXELS_FLAG:
        number = arguments[1] if len(arguments) > 1 else ""
        if not re.fullmatch("[0-9]{1,18}", number):
            raise ConfigError(f"{PIXELS_FLAG} {number!r}: must be a whole number")
        from triptych.data.images import pixels_allowed  # here: the help needs no OpenCV

        with pixels_allowed(int(number)):
            return _dispatch(arguments[2:])
    if arguments[0] == "--version":
        print(f"triptych {__version__}")
        return 0
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    name = " ".join(arguments[:words])
    if name not in VERBS:
        return _not_a_verb(name, arguments)
    module_name, _, function = VERBS[name].module.partition(":")
    module = importlib.import_module(f"triptych.cli.{module_name}")
    run = module.RUNS[name] if module_name == "use" else getattr(module, function or "run")
    return int(run(arguments[words:]) or 0)


def _not_a_verb(name: str, arguments: list[str]) -> int:
    """Show the verbs that begin with `name`, or raise an error that names the nearest."""
    family = [verb for verb in VERBS if verb.startswith(f"{name} ")]
    if family and len(arguments) > 1 and arguments[1] not in ("-h", "--help"):
        second = [verb.removeprefix(f"{name} ") for verb in family]
        clue = nearest(arguments[1], second) or f": choose one of {', '.join(second)}"
        raise ConfigError(f"`triptych {name}` has no {arguments[1]!r}{clue}")
    if family:
        print(f"usage: triptych {name} VERB ...\n\n{_table(family)}")
        return 0
    clue = (
        nearest(name, {verb.split()[0] for verb in VERBS}) or ": `triptych --help` lists the verbs"
    )
    what = "option" if name.startswith("-") else "verb"
    raise ConfigError(f"there is no {what} {name!r}{clue}")


def overview() -> str:
    """Return the text of `triptych --help`."""
    head = "Pre-train, fine-tune, evaluate and use vision-language models on your own data."
    usages = ("VERB ...", f"{PIXELS_FLAG} N VERB ...", "--version")
    usage = "usage: " + "\n       ".join(f"triptych {form}" for form in usages)
    head += f"\n{PIXELS_FLAG} lets images have more than 89,478,485 pixels, or fewer."
    return f"{usage}\n\n{head}\n\n{_table(VERBS)}\n\n{EXAMPLES}"


def _table(names: Sequence[str] | dict[str, Verb]) -> str:
    rows = [(f"{name} {VERBS[name].usage}".strip(), VERBS[name].help) for name in names]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)


if __name__ == "__main__":
    sys.exit(main())
