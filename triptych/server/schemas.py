"""What requests and answers look like, made from the table of verbs."""

from __future__ import annotations

import base64
import binascii
import inspect
from dataclasses import fields as dataclass_fields
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, create_model
from typing_extensions import TypedDict

from triptych.core.errors import DataError
from triptych.server.searching import SEARCH
from triptych.serving.verb import Verb

MAX_TEXT = 10_000
"""Characters of a text; models read the first few hundred."""

MAX_TEXTS = 1000
"""Texts in an option, such as classes to choose from."""

MAX_NUMBERS = {"num_beams": 16, "max_tokens": 512, "min_tokens": 512, "top": 1000, "rerank": 256}
"""Largest values of options that cost memory or time."""

BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "An encoded image, such as the bytes of a JPEG file, in base64.",
    "minLength": 4,
    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
FILE = {"type": "string", "format": "binary", "description": "An image file."}


class Strict(BaseModel):
    """What a client sends: no unknown field, no other type, no infinite number."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def image_field(verb: Verb) -> str | None:
    """Return what the images of an item are called; None where it has none."""
    return {0: None, 1: "image"}.get(verb.num_images, "images")


def request_model(verb: Verb, max_items: int) -> type[Strict]:
    """Return the schema of a JSON request.

    Args:
        verb: What is asked.
        max_items: Items of a request, at most.
    """
    fields: dict[str, Any] = {}
    image = Annotated[bytes, PlainValidator(_from_base64), WithJsonSchema(BASE64)]
    if verb.num_images > 1:
        several = Field(min_length=verb.num_images, max_length=verb.num_images)
        fields["images"] = (Annotated[list[image], several], ...)  # type: ignore[valid-type]
    elif verb.num_images:
        fields["image"] = (image | None, None) if verb is SEARCH else (image, ...)
    for text in verb.texts:
        told = Annotated[str, Field(max_length=MAX_TEXT, description=text.about)]
        fields[text.name] = (told, ...) if text.required else (told | None, None)
    title = _title(verb)
    item = create_model(f"{title}Item", __base__=Strict, **fields)
    options = options_model(verb)
    items = Annotated[list[item], Field(min_length=1, max_length=max_items)]  # type: ignore[valid-type]
    which = Annotated[str | None, Field(max_length=200, description="One of GET /v1/models.")]
    return create_model(
        f"{title}Request",
        __base__=Strict,
        items=(items, ...),
        options=(options, Field(default_factory=options)),
        model=(which, None),
    )


def options_model(verb: Verb) -> type[Strict]:
    """Return the schema of a verb's options; an absent one is as in the model folder."""
    hints = get_type_hints(verb.options)
    fields: dict[str, Any] = {}
    for field in dataclass_fields(verb.options):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        fields[field.name] = (_bounded(hints[field.name], field.name), default)
    about = (inspect.getdoc(verb.options) or "").partition("\n")[0]
    return create_model(f"{_title(verb)}Options", __base__=Strict, __doc__=about, **fields)


def answer_model(verb: Verb) -> type[BaseModel]:
    """Return the schema of the answers to a request."""
    gives: dict[str, Any] = {}
    for name, hint in verb.gives.items():
        present = tuple(part for part in get_args(hint) if part is not NoneType)
        is_optional = NoneType in get_args(hint)
        gives[name] = NotRequired[Union[present]] if is_optional else hint  # noqa: UP007
    answer = TypedDict(f"{_title(verb)}Answer", gives)  # type: ignore[misc]
    model = Annotated[str, Field(description="Which model answered.")]
    answers = Annotated[list[answer], Field(description="One an item, in order.")]  # type: ignore[valid-type]
    return create_model(f"{_title(verb)}Answers", model=(model, ...), answers=(answers, ...))


def form_schema(verb: Verb, max_items: int, options: str) -> dict[str, Any]:
    """Return the schema of a multipart request.

    Args:
        verb: What is asked.
        max_items: Items of a request, at most.
        options: Where the schema of its options is.
    """
    parts: dict[str, Any] = {}
    required = []
    name = image_field(verb)
    if name is not None:
        most = max_items * verb.num_images
        parts[name] = {"type": "array", "items": FILE, "minItems": 1, "maxItems": most}
        required += [name] * (verb is not SEARCH)
    for text in verb.texts:
        told = {"type": "string", "maxLength": MAX_TEXT, "description": text.about}
        parts[text.name] = {"type": "array", "items": told, "minItems": 1, "maxItems": max_items}
        required += [text.name] * text.required
    parts["model"] = {"type": "string", "description": "One of GET /v1/models."}
    parts["options"] = {"$ref": options}
    return {"type": "object", "properties": parts, "required": required}


def _from_base64(value: Any) -> bytes:
    if isinstance(value, bytes):  # of a multipart request
        return value
    if not isinstance(value, str):
        raise DataError("pass an image as base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            "no base64: pass the bytes of an image file; neither a path nor a URL is opened"
        ) from error


def _bounded(hint: Any, name: str) -> Any:
    """Return the type of an option with what limits its size."""
    if get_origin(hint) in (Union, UnionType):
        parts = tuple(_bounded(part, name) for part in get_args(hint))
        return Union[parts]  # noqa: UP007
    if hint is str:
        return Annotated[str, Field(max_length=MAX_TEXT)]
    if hint is int:
        return Annotated[int, Field(ge=0, le=MAX_NUMBERS.get(name, 2**63 - 1))]
    if get_origin(hint) is tuple:
        return Annotated[list[_bounded(get_args(hint)[0], name)], Field(max_length=MAX_TEXTS)]  # type: ignore[misc]
    return hint


def _title(verb: Verb) -> str:
    return "".join(part.title() for part in verb.name.split("_"))
