"""`triptych serve`: models over HTTP, and a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import parse
from triptych.core.errors import CapabilityError, ConfigError
from triptych.core.extras import import_extra
from triptych.server.settings import ServerSettings, read_tokens

if TYPE_CHECKING:
    from fastapi import FastAPI

HELP = """Serve models over HTTP, and a web page: captions, answers, boxes, scores, search.

MODEL is a model folder, or NAME=FOLDER to choose what clients call it. The server listens on this
machine alone unless --host says otherwise; TRIPTYCH_TOKENS, or a file of --tokens, says who may
ask.

Examples:
  triptych serve runs/mine/model
  triptych serve runs/mine/model vqa=runs/vqa/model --index photos.index --port 9000
  curl -F image=@image.jpg http://127.0.0.1:8000/v1/caption
"""

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What to serve, to whom, and within which limits.

    Attributes:
        models: Model folders, each FOLDER or NAME=FOLDER.
        index: What `triptych index` wrote, to be searched.
        tokens: A file of bearer tokens, one a line; TRIPTYCH_TOKENS in the environment adds some.
        device: Device; `auto` takes the GPU if there is one.
        precision: Precision of the forward pass; `auto` is bf16 if the processor supports it.
        page: Also serve the web page, at /.
        settings: Where the server listens, and its limits.
    """

    models: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL...")]] = ()
    index: Path | None = None
    tokens: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    page: bool = True
    settings: Annotated[ServerSettings, tyro.conf.arg(name="")] = field(
        default_factory=ServerSettings
    )


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal arrives."""
    options = parse(ServeOptions, arguments, verb="serve", description=HELP)
    if not options.models and options.index is None:
        raise ConfigError("name a model folder, or an index: triptych serve MODEL [--index INDEX]")
    for name in NEEDED:
        import_extra(name, "serve", "triptych serve")
    from triptych.server.app import build_app
    from triptych.server.run import leave_a_core, load_index, load_models, name_models, serve

    tokens = read_tokens(options.tokens)
    leave_a_core()
    engines = load_models(name_models(options.models), options.device, options.precision)
    index = None if options.index is None else load_index(options.index, engines)
    app = build_app(engines, index, options.settings, tokens)
    if options.page:
        _add_page(app)
    return serve(app, options.settings, has_tokens=bool(tokens))


def _add_page(app: FastAPI) -> None:
    """Add the web page, or say what is missing."""
    try:
        import_extra("gradio", "serve", "it")
    except CapabilityError as error:
        print(f"no web page: {error}", file=sys.stderr)
        return
    from triptych.server.page import mount_page

    mount_page(app)
