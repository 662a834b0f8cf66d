"""The body of a request, as JSON or as a multipart form, to items and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from triptych.core.errors import DataError
from triptych.server.images import count_pixels, decode
from triptych.server.problems import Problem
from triptych.server.schemas import Strict, image_field
from triptych.server.searching import SEARCH
from triptych.serving.verb import Item, Verb

JSON = "application/json"
MULTIPART = "multipart/form-data"
ALWAYS_IN_MEMORY = 2**62
MAX_PARTS = 1000
"""Of a form."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read and measured.

    Attributes:
        verb: What is asked.
        model: Of which model; None is the only one that can.
        options: Made by the verb.
        items: With images as bytes.
        pixels: Of all images, each counted once.
    """

    verb: Verb
    model: str | None
    options: Any
    items: tuple[Item, ...]
    pixels: int

    def prepare(self) -> list[Item]:
        """Return the items with decoded images; equal images become the same object."""
        decoded: dict[Any, Any] = {}
        found = []
        for number, item in enumerate(self.items):
            for data in item.images:
                if data not in decoded:
                    decoded[data] = decode(data, _name(number))  # type: ignore[arg-type]
            images = tuple(decoded[data] for data in item.images)
            found.append(Item(images, item.texts))
        return found


def read_request(
    verb: Verb, schema: type[Strict], content_type: str, body: bytes, max_pixels: int
) -> Asked:
    """Read a request; nothing is decoded.

    Args:
        verb: What is asked.
        schema: Of its JSON.
        content_type: Header of the request.
        body: Its bytes.
        max_pixels: Of all images together.

    Raises:
        Problem: The body is neither JSON nor a form, or does not fit the schema.
        DataError: An image is none, or they have too many pixels.
        ConfigError: An option is out of range.
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == MULTIPART:
            given: Any = schema.model_validate(_read_form(verb, schema, content_type, body))
        elif kind == JSON:
            given = schema.model_validate_json(body)
        else:
            raise Problem(415, f"Content-Type is {kind!r}: send {JSON} or {MULTIPART}")
    except ValidationError as error:
        raise _problem(error) from error
    options = verb.read_options(given.options.model_dump(exclude_unset=True, exclude_none=True))
    items = tuple(_item(verb, item) for item in given.items)
    return Asked(verb, given.model, options, items, _count(items, max_pixels))


def _item(verb: Verb, given: Any) -> Item:
    name = image_field(verb)
    value = None if name is None else getattr(given, name)
    images = [] if value is None else value if isinstance(value, list) else [value]
    texts = {text.name: getattr(given, text.name) for text in verb.texts}
    if verb is SEARCH:  # may have either
        return Item(tuple(images), {name: text for name, text in texts.items() if text})
    return verb.item(images, texts)


def _count(items: tuple[Item, ...], max_pixels: int) -> int:
    """Return the pixels of all images, equal ones counted once."""
    seen: set[Any] = set()
    pixels = 0
    for number, item in enumerate(items):
        for data in item.images:
            if data in seen:
                continue
            seen.add(data)
            pixels += count_pixels(data, _name(number))  # type: ignore[arg-type]
            if pixels > max_pixels:
                raise DataError(
                    f"{_name(number)}: the images of the request claim {pixels:,} pixels and more, "
                    f"and {max_pixels:,} are allowed: send smaller or fewer images"
                )
    return pixels


def _name(number: int) -> str:
    return f"items[{number}].image"


def _problem(error: ValidationError) -> Problem:
    """Return what does not fit, and where."""
    told = error.errors(include_url=False, include_input=False, include_context=False)
    if any(part["type"] == "json_invalid" for part in told):
        return Problem(400, f"the body cannot be read: {told[0]['msg']}")
    first = told[0]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return Problem(422, f"{where}: {message}{more}" if where else f"{message}{more}")


def _read_form(verb: Verb, schema: type[Strict], content_type: str, body: bytes) -> Any:
    """Return what a form says in the shape of the JSON request.

    The k-th item has the k-th value of each field; a field with one value has it for all.
    """
    parts = _parse_form(content_type, body)
    image = image_field(verb)
    known = {"model", "options", *(text.name for text in verb.texts)}
    if image is not None:
        known.add(image)
    for name in parts:
        if name not in known:
            names = ", ".join(sorted(known))
            raise Problem(422, f"{name}: there is no such field, only {names}")
    given: dict[str, Any] = {}
    for name in ("model", "options"):
        said = [_text(name, value) for value in parts.pop(name, [])]
        if len(said) > 1:
            raise Problem(422, f"{name}: is given {len(said)} times: give it once")
        if said:
            given[name] = said[0]
    if "options" in given:
        options = schema.model_fields["options"].annotation
        assert options is not None
        given["options"] = options.model_validate_json(given["options"])
    columns: dict[str, list[Any]] = {}
    for name, values in parts.items():
        columns[name] = [value if name == image else _text(name, value) for value in values]
    if image is not None and verb.num_images > 1 and image in columns:
        files, each = columns[image], verb.num_images
        columns[image] = [files[k : k + each] for k in range(0, len(files), each)]
    number = max(map(len, columns.values()), default=0)
    for name, values in columns.items():
        if len(values) not in (1, number):
            raise Problem(
                422, f"{name}: is given {len(values)} times for {number} items: give one or all"
            )
    given["items"] = [
        {name: values[row if len(values) > 1 else 0] for name, values in columns.items()}
        for row in range(number)
    ]
    return given


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(422, f"{name}: is no UTF-8 text: {error}") from error


def _parse_form(content_type: str, body: bytes) -> dict[str, list[bytes]]:
    """Return the values of each field, of files their content.

    Raises:
        Problem: The body is no form, or is cut short.
    """
    from python_multipart import FormParser
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem(400, "Content-Type names no boundary between the parts of the form")
    parts: dict[str, list[bytes]] = {}
    ended = []

    def take(name: bytes | None, value: bytes) -> None:
        if sum(map(len, parts.values())) >= MAX_PARTS:
            raise Problem(413, f"the form has more than {MAX_PARTS} parts: send fewer items")
        parts.setdefault((name or b"").decode("utf-8", "replace"), []).append(value)

    def take_file(file: Any) -> None:
        file.file_object.seek(0)
        take(file.field_name, file.file_object.read())
        file.close()

    try:
        parser = FormParser(
            MULTIPART,
            lambda field: take(field.field_name, field.value or b""),
            take_file,
            lambda: ended.append(True),
            boundary=boundary,
            config={"MAX_MEMORY_FILE_SIZE": ALWAYS_IN_MEMORY},
        )
        parser.write(body)
        parser.finalize()
    except Problem:
        raise
    except Exception as error:  # its parser asserts, too
        raise Problem(400, f"the form cannot be read: {error}") from error
    if not ended:
        raise Problem(400, f"the form is cut short: {len(body)} bytes without its end")
    return parts
