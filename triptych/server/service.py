"""Models, an index and the thread that computes for them, whoever asks: the API or the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from triptych.core.errors import CapabilityError, ConfigError, nearest
from triptych.index.search import ImageIndex
from triptych.server.searching import SEARCH
from triptych.server.settings import ServerSettings
from triptych.server.worker import Answers, Kind, Worker
from triptych.serving.engine import Engine
from triptych.serving.verb import Answer, Item, Verb
from triptych.serving.verbs import VERBS


class Service:
    """What is loaded, and one way to ask it that several threads may use.

    Attributes:
        engines: Models by name.
        index: What is searched; None if there is none.
        settings: Limits.
        worker: Computes.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        index: ImageIndex | None,
        settings: ServerSettings,
        observe: Callable[[str, int], None] = lambda verb, items: None,
    ) -> None:
        """Start to compute.

        Args:
            engines: Models by name; nobody else may ask them from now on.
            index: What is searched.
            settings: Limits.
            observe: Is told the verb and the items of each batch.
        """
        self.engines, self.index, self.settings = dict(engines), index, settings
        self._refusals: dict[str, dict[str, str]] = {
            verb.name: {
                name: reason
                for name, engine in self.engines.items()
                if (reason := verb.refusal(engine)) is not None
            }
            for verb in VERBS.values()
        }
        self.worker = Worker(
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1000,
            queue=settings.queue,
            max_pixels=settings.max_pixels,
            observe=observe,
        )

    @property
    def verbs(self) -> dict[str, Verb]:
        """What somebody can be asked here, by name."""
        found = {name: verb for name, verb in VERBS.items() if self.models_for(name)}
        return found if self.index is None else found | {SEARCH.name: SEARCH}

    def models_for(self, verb: str) -> list[str]:
        """Return the names of the models that can be asked a verb."""
        return [name for name in self.engines if name not in self._refusals[verb]]

    def why_not(self, model: str) -> dict[str, str]:
        """Return why a model cannot be asked the other verbs."""
        return {verb: told[model] for verb, told in self._refusals.items() if model in told}

    def submit(
        self,
        verb: Verb,
        prepare: Callable[[], list[Item]],
        *,
        size: int,
        pixels: int = 0,
        options: Any = None,
        model: str | None = None,
    ) -> tuple[str, Future[Answers]]:
        """Ask, and return the name of the model that will answer, and its answers to come.

        Args:
            verb: Of the table, or `SEARCH`.
            prepare: Called once by another thread: decodes images and returns the items.
            size: How many items.
            pixels: Of the images, decoded; 0 where there are none to decode.
            options: Made by the verb; None is the defaults.
            model: By name; None is the only one that can.

        Raises:
            Busy: There is no room now.
            CapabilityError: No model can, or the named one cannot.
            ConfigError: There is no such model, or several could answer.
        """
        name, asked = self._find(verb, model)
        chosen = verb.options() if options is None else options
        key = (name, verb.name, chosen) if verb.mixes(chosen) else object()
        kind = Kind(key, verb.name, lambda items: verb.ask(asked, items, chosen))
        return name, self.worker.submit(kind, prepare, size=size, pixels=pixels)

    def ask(
        self,
        verb: Verb,
        items: Sequence[Item],
        options: Any = None,
        model: str | None = None,
    ) -> list[Answer]:
        """Ask, and wait for the answers; images are arrays or PIL images.

        Raises:
            Busy: There is no room now.
            TriptychError: What `Verb.ask` raises, or what `submit` does.
        """
        return self.submit(
            verb, lambda: list(items), size=len(items), options=options, model=model
        )[1].result()

    def close(self, timeout_s: float) -> bool:
        """Answer what is here, take no more, and return whether this was done in time."""
        return self.worker.close(timeout_s)

    def _find(self, verb: Verb, model: str | None) -> tuple[str, Any]:
        """Return the name of what is asked, and it."""
        if verb is SEARCH:
            if self.index is None:
                raise CapabilityError(
                    "this server has no index: start it with `triptych serve MODEL --index INDEX`"
                )
            if model not in (None, SEARCH.name, self.index.folder.name):
                raise ConfigError(
                    f"model = {model!r}: the index is searched with its own model: omit it"
                )
            return self.index.folder.name, self.index
        if model is not None and model not in self.engines:
            clue = nearest(model, self.engines)
            raise ConfigError(f"model = {model!r}: this server has {', '.join(self.engines)}{clue}")
        refusals = self._refusals[verb.name]
        if model is None:
            able = self.models_for(verb.name)
            if len(able) > 1:
                raise ConfigError(f"model: name one, of {', '.join(able)} which all can")
            if not able:
                told = next(iter(refusals.values()), "this server has no model, only an index")
                raise CapabilityError(told)
            model = able[0]
        elif model in refusals:
            raise CapabilityError(refusals[model])
        return model, self.engines[model]
