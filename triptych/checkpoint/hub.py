"""Model folders on the Hugging Face hub, or another server with the same HTTP API.

`released.find_folder` fetches what is written here. The token comes from where huggingface_hub
keeps it: HF_TOKEN, or the file that `hf auth login` writes. HF_ENDPOINT names another server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.checkpoint.model_folder import (
    CARD,
    CARD_FOLDER,
    FILES,
    load_model_folder,
)
from triptych.checkpoint.released import HUB_ID
from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.extras import import_extra

MAIN = "main"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What lies on the hub now.

    Attributes:
        url: Of the commit.
        commit: Its hash.
        files: Names of the files that were sent or were there already.
        num_bytes: Of these together.
    """

    url: str
    commit: str
    files: tuple[str, ...]
    num_bytes: int


def push_model(
    folder: Path,
    hub_id: str,
    *,
    private: bool = False,
    revision: str = MAIN,
    message: str = "A Triptych model",
) -> Pushed:
    """Put a model folder on the hub as one commit; the repository is made if there is none.

    All files of a model folder are sent and nothing else; those of an earlier model that this one
    does not have are removed. In the card, the hub id takes the place of the folder.

    Args:
        folder: A whole model folder.
        hub_id: OWNER/NAME.
        private: Make a new repository private; one that exists must be.
        revision: The branch; made if there is none.
        message: Of the commit.

    Raises:
        ConfigError: The id is none.
        CapabilityError: huggingface_hub is not installed.
        CheckpointError: It is not a whole model folder; there is no token, or its owner may not
            write there; the hub cannot be reached.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise ConfigError(f"hub id {hub_id!r} must be OWNER/NAME, such as my-name/my-model")
    if not message.strip():
        raise ConfigError("message is empty: say what the commit is")
    content = load_model_folder(folder)  # whole, undamaged, and as its sums say
    if not content.card:
        raise CheckpointError(
            f"{folder} has no {CARD}: write a model card, so that others know what the model is"
        )
    names = tuple(name for name in sorted(FILES) if (folder / name).is_file())
    hub = import_extra("huggingface_hub", "hf", "pushing a model")
    with _hub_errors(hub, hub_id):
        if hub.get_token() is None:
            raise hub.errors.LocalTokenNotFoundError("there is no token")
        api = hub.HfApi(library_name="triptych")
        api.create_repo(hub_id, private=private or None, exist_ok=True)
        if private and api.repo_info(hub_id).private is False:
            raise CheckpointError(
                f"{hub_id} is public: make it private on the hub first, or omit --private"
            )
        if revision != MAIN:
            api.create_branch(hub_id, branch=revision, exist_ok=True)
        card = content.card.replace(CARD_FOLDER, hub_id).encode()
        changes: list[Any] = [
            hub.CommitOperationAdd(name, card if name == CARD else str(folder / name))
            for name in names
        ]
        known = api.list_repo_files(hub_id, revision=revision)
        outdated = sorted((FILES & set(known)) - set(names))
        changes += [hub.CommitOperationDelete(name, is_folder=False) for name in outdated]
        made = api.create_commit(hub_id, changes, commit_message=message, revision=revision)
    size = sum((folder / name).stat().st_size for name in names)
    return Pushed(str(made.commit_url), str(made.oid), names, size)


@contextmanager
def _hub_errors(hub: Any, hub_id: str) -> Iterator[None]:
    """Say what went wrong on the way to the hub, and what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except hub.errors.LocalTokenNotFoundError as error:
        raise CheckpointError(
            f"there is no token to write to {hub_id} with: run `hf auth login`, or set HF_TOKEN"
        ) from error
    except hub.errors.HfHubHTTPError as error:
        raise CheckpointError(f"{hub_id}: {_refusal(error, hub.HfApi().endpoint)}") from error
    except Exception as error:  # those of the network, which each version has others of
        raise CheckpointError(
            f"{hub.HfApi().endpoint} cannot be reached or broke off ({_told(error)}): check the "
            "connection and push again; what was sent is not sent twice"
        ) from error


def _refusal(error: Any, endpoint: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know the token: run `hf auth login`, or set HF_TOKEN to another"
    if status in (403, 404):
        return (
            "the token may not write there: check the owner's name, and that the token has the "
            f"right to write ({_told(error)})"
        )
    return f"{endpoint} answered {status} ({_told(error)}): try again later"


def _told(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}"
