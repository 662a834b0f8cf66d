"""`triptych push`: a model folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import FolderArgument, parse

HELP = """Put a model folder on the Hugging Face hub, with its card.

The repository is made if there is none. The token is the one of `hf auth login` or HF_TOKEN.
Whoever may read the repository can give HUB_ID instead of a folder: to `triptych.load` and to the
commands.

Examples:
  triptych push runs/mine/model my-name/my-model --private
  triptych push runs/mine/model my-name/my-model --revision v2 --message "Trained twice as long"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushOptions:
    """What to send, and where.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model.
        hub_id: OWNER/NAME of the repository.
        private: Make a new repository private; one that exists must be private already.
        revision: The branch; made if there is none.
        message: Of the commit.
    """

    folder: FolderArgument
    hub_id: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="HUB_ID")]]
    private: bool = False
    revision: str = "main"
    message: str = "A Triptych model"


def run(arguments: Sequence[str]) -> int:
    """Push, and print how the model is loaded."""
    options = parse(PushOptions, arguments, verb="push", description=HELP)
    from triptych.checkpoint.hub import MAIN, push_model

    found = push_model(
        Path(options.folder),
        options.hub_id,
        private=options.private,
        revision=options.revision,
        message=options.message,
    )
    size = found.num_bytes / 1e6
    print(f"{found.url}: {len(found.files)} files, {size:,.1f} MB")
    version = "" if options.revision == MAIN else f"@{options.revision}"
    print(f'load it: triptych.load("{options.hub_id}{version}")')
    return 0
