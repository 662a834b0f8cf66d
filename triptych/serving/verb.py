"""What a verb is: what its items and options consist of, and how it asks a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from triptych.core.config import from_dict
from triptych.core.errors import CapabilityError, DataError, nearest
from triptych.serving.batches import OnError, tell_skipped
from triptych.serving.engine import Engine
from triptych.serving.inputs import ImageInput

Answer = dict[str, Any]
DIGITS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """Nothing can be chosen."""


@dataclass(frozen=True, slots=True)
class TextField:
    """A text of an item.

    Attributes:
        name: Its key, such as "question".
        about: What it is, in a few words.
        required: Whether every item has it.
    """

    name: str
    about: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to ask about: as many images as the verb takes, and its texts.

    Items that are asked together and share an image should hold the same object: it is then read
    and encoded once where the model allows it.

    Attributes:
        images: Each an `ImageInput`.
        texts: By the names of the verb's text fields.
    """

    images: tuple[ImageInput, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One thing that a model can be asked.

    Attributes:
        name: Of the command, the HTTP path and the kind of batch job.
        about: What it does, in a few words.
        capability: What a model must have been trained for, as `Engine.check_trained` is asked.
        num_images: Images of an item: 0, 1 or 2.
        texts: Text fields of an item; the first, if any, is what is asked about.
        options: The dataclass of what holds for a whole call; hashable, so that items with equal
            options can be asked together.
        gives: Keys of an answer, and their types; a type with None is not always there.
        find: Asks the engine, and returns what it found of each item.
        tell: Makes an answer of that, with exact numbers.
        digits: Digits after the point that are told; None tells all.
        refuse: Raises a CapabilityError where a model that was trained for it still cannot do it.
        draws: Whether answers with these options come from one stream of random numbers.
    """

    name: str
    about: str
    capability: str
    num_images: int
    texts: tuple[TextField, ...] = ()
    options: type[Any] = NoOptions
    gives: Mapping[str, Any]
    find: Callable[[Engine, Sequence[Item], Any, OnError], Any]
    tell: Callable[[Engine, Item, Any, Any], Answer]
    digits: int | None = DIGITS
    refuse: Callable[[Engine], object] | None = None
    draws: Callable[[Any], bool] | None = None

    @property
    def text(self) -> str | None:
        """Name of the text that is asked about; None where images are all there is."""
        return self.texts[0].name if self.texts else None

    def read_options(self, plain: Mapping[str, Any] | None = None) -> Any:
        """Return the options of a call from JSON values; absent ones take their defaults.

        Raises:
            ConfigError: One is unknown, of another type, or out of range.
        """
        return from_dict(self.options, dict(plain or {}))

    def item(
        self, images: Sequence[ImageInput] = (), texts: Mapping[str, Any] | None = None
    ) -> Item:
        """Return an item; an optional text that is empty counts as absent.

        Raises:
            DataError: There are too few or too many images, or a text is missing, unknown or none.
        """
        if len(images) != self.num_images:
            raise DataError(f"{self.name} takes {_counted(self.num_images)}, not {len(images)}")
        known = {text.name: text for text in self.texts}
        said: dict[str, str] = {}
        for name, text in (texts or {}).items():
            if name not in known:
                raise DataError(f"{self.name} reads no text {name!r}{nearest(name, known)}")
            if text is None or (text == "" and not known[name].required):
                continue
            if not isinstance(text, str):
                raise DataError(f"{name} is {type(text).__name__} {text!r}: pass a string")
            said[name] = text
        for name, needed in known.items():
            if needed.required and name not in said:
                raise DataError(f"{self.name} needs a {name}: {needed.about}")
        return Item(tuple(images), said)

    def refusal(self, engine: Engine) -> str | None:
        """Return why a model cannot be asked this; None if it can."""
        try:
            engine.check_trained(self.capability)
            if self.refuse is not None:
                self.refuse(engine)
        except CapabilityError as error:
            return str(error)
        return None

    def mixes(self, options: Any) -> bool:
        """Return whether an answer does not depend on what else is asked in the same call.

        Items of several requests may be asked together only then. Captions that are drawn come
        from one stream of random numbers, so that theirs may not.
        """
        return self.draws is None or not self.draws(options)

    def check(self, engine: Engine, options: Any = None) -> None:
        """Raise what is wrong with the options or the model, before any item is looked at.

        Raises:
            CapabilityError: The model cannot be asked this.
            ConfigError: An option is out of range, or has no meaning for the model.
            DataError: An option holds texts that cannot be used, such as two equal labels.
        """
        self.answers(engine, [], options)

    def answers(
        self,
        engine: Engine,
        items: Sequence[Item],
        options: Any = None,
        *,
        on_error: OnError = "raise",
    ) -> list[Answer]:
        """Ask a model, and return its answers with exact numbers, one an item, in order.

        Args:
            engine: The model.
            items: Made by `item`.
            options: Made by `read_options`; None is the defaults.
            on_error: What is done about an image that cannot be used; a function is called with
                the place of its item. The answer is then {}.

        Raises:
            CapabilityError: The model cannot be asked this.
            ConfigError: An option is out of range, or has no meaning for the model.
            DataError: An image cannot be read, or a text or an option cannot be used.
        """
        options = self.options() if options is None else options
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, item in enumerate(items):  # the engine takes an optional text of all or of none
            groups.setdefault(tuple(sorted(item.texts)), []).append(place)
        answers: list[Answer] = [{} for _ in items]
        for places in groups.values() or [[]]:  # of no items too: the options are checked
            skipped: set[int] = set()
            part = [items[place] for place in places]
            found = self.find(engine, part, options, _placed(on_error, places, skipped))
            for place, item, one in zip(places, part, found, strict=True):
                if place not in skipped:
                    answers[place] = self.tell(engine, item, one, options)
        return answers

    def ask(
        self,
        engine: Engine,
        items: Sequence[Item],
        options: Any = None,
        *,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[Answer]:
        """Ask a model, and return its answers as JSON values, one an item, in order.

        Args:
            engine: The model.
            items: Made by `item`.
            options: Made by `read_options`; None is the defaults.
            on_error: Whether an item that cannot be used ends the call, or has the answer
                {"error": what is wrong with it} while the others are answered.

        Raises:
            CapabilityError: The model cannot be asked this.
            ConfigError: An option is out of range, or has no meaning for the model.
            DataError: An image cannot be read, or a text or an option cannot be used.
        """
        if on_error == "raise":
            return [self.told(answer) for answer in self.answers(engine, items, options)]
        self.check(engine, options)
        return self._ask_each(engine, items, options)

    def told(self, answer: Answer) -> Answer:
        """Return an exact answer as it is told: with its numbers rounded."""
        return answer if self.digits is None else _rounded(answer, self.digits)

    def _ask_each(self, engine: Engine, items: Sequence[Item], options: Any) -> list[Answer]:
        """Ask, and halve what a text keeps from being asked together until it stands alone."""
        errors: dict[int, DataError] = {}
        try:
            answers = self.answers(engine, items, options, on_error=errors.__setitem__)
        except (CapabilityError, DataError) as error:  # of an item: the call itself was checked
            if len(items) <= 1:
                return [{"error": str(error)} for _ in items]
        else:
            return [
                {"error": str(errors[place])} if place in errors else self.told(answer)
                for place, answer in enumerate(answers)
            ]
        half = len(items) // 2
        parts = (items[:half], items[half:])
        return [answer for part in parts for answer in self._ask_each(engine, part, options)]


def _counted(number: int) -> str:
    return {0: "no image", 1: "one image"}.get(number, f"{number} images")


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {name: _rounded(part, digits) for name, part in value.items()}
    return [_rounded(part, digits) for part in value] if isinstance(value, list) else value


def _placed(on_error: OnError, places: Sequence[int], skipped: set[int]) -> OnError:
    """Return what is done about an image in a part of the items; the skipped ones are remembered.

    Args:
        on_error: What is done about it in the whole.
        places: Of the part's items in the whole.
        skipped: Is given the places of those that are skipped.
    """
    if on_error == "raise":
        return on_error

    def skip(number: int, error: DataError) -> None:
        skipped.add(places[number])
        tell_skipped(on_error, places[number], error)

    return skip
