"""The part of the page that shows what the model said about single images."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.report.data import RIGHT_IOU, Answer, Grounding, ImageCard, ImageSource, Neighbour
from triptych.report.images import EXACT_SIDE_PX, RGBArray, encode_image, load_image
from triptych.report.markup import Markup, element
from triptych.report.svg import draw_boxes

_THUMBNAIL_PX = 128


def render_images(cards: Sequence[ImageCard], note: str) -> Markup:
    """Return the note, how many answers on the cards are right, and the cards."""
    answers = [answer[3] for card in cards for answer in card.questions]
    boxes = [phrase[3] >= RIGHT_IOU for card in cards for phrase in card.phrases]
    counts = [
        f"{sum(marks)} of {len(marks)} {name} are right"
        for name, marks in (("answers", answers), ("boxes", boxes))
        if marks
    ]
    lead = f"{note} On this page {' and '.join(counts)}." if counts else note
    parts = [element("p", {"class": "lead"}, lead)]
    if boxes:
        parts.append(_box_legend())
    numbered = [render_card(card, number) for number, card in enumerate(cards, start=1)]
    return Markup("".join(parts) + element("div", {"class": "cards"}, *numbered))


def render_card(card: ImageCard, number: int) -> Markup:
    """Return one image with all that the model said about it.

    Args:
        card: The image.
        number: Its place on the page, from 1.
    """
    pixels = load_image(card.image)
    view = element("div", {"class": "view"}, _image(pixels, card), _overlay(card, pixels))
    heading = element("h3", {}, f"Image {number}")
    shown, said = [heading, view], [_render_caption(card)]
    asked = _render_asked(card)
    if asked:
        shown, said = shown + said, asked
    columns = [
        element("div", {"class": "shown"}, *shown),
        element("div", {"class": "said"}, *said),
    ]
    if card.neighbours:
        columns.append(_render_neighbours(card.neighbours))
    return element("article", {"class": "card"}, *columns)


def mark(is_right: bool) -> Markup:
    """Return the word right or wrong, with a sign and a colour."""
    css_class, sign, word = ("is-right", "✓", "right") if is_right else ("is-wrong", "✗", "wrong")
    sign_element = element("span", {"aria-hidden": "true"}, f"{sign} ")
    return element("span", {"class": f"mark {css_class}"}, sign_element, word)


def _image(pixels: RGBArray, card: ImageCard) -> Markup:
    attributes: dict[str, str | float] = {
        "src": encode_image(pixels),
        "alt": card.caption_truth,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }
    if max(pixels.shape[:2]) <= EXACT_SIDE_PX:
        attributes["class"] = "pixels"
    return element("img", attributes)


def _overlay(card: ImageCard, pixels: RGBArray) -> Markup:
    if not card.phrases:
        return Markup("")
    return draw_boxes(card.phrases, pixels.shape[1], pixels.shape[0])


def _render_caption(card: ImageCard) -> Markup:
    rows = [
        element("dt", {}, "Model"),
        element("dd", {"class": "model"}, card.caption_model or "(nothing)"),
        element("dt", {}, "Truth"),
        element("dd", {}, card.caption_truth),
    ]
    chip = Markup("")
    if card.caption_right_objects is not None:
        right, total = card.caption_right_objects
        chip = element("p", {"class": "objects"}, _object_mark(right, total))
    return Markup(element("dl", {"class": "captions"}, *rows) + chip)


def _render_asked(card: ImageCard) -> list[Markup]:
    parts = []
    if card.questions:
        answers = [_render_answer(answer) for answer in card.questions]
        parts += [element("h4", {}, "Questions"), element("ul", {"class": "answers"}, *answers)]
    if card.phrases:
        phrases = [_render_phrase(phrase) for phrase in card.phrases]
        parts += [element("h4", {}, "Find"), element("ol", {"class": "phrases"}, *phrases)]
    return parts


def _object_mark(right: int, total: int) -> Markup:
    css_class = "is-right" if right == total else "is-wrong" if right == 0 else "is-partly"
    noun = "object" if total == 1 else "objects"
    return element("span", {"class": f"mark {css_class}"}, f"{right} of {total} {noun} right")


def _render_answer(answer: Answer) -> Markup:
    question, answer_model, answer_truth, is_right = answer
    said: list[str] = [element("b", {}, answer_model or "(nothing)"), " ", mark(is_right)]
    if not is_right:
        said += [" ", element("span", {"class": "truth"}, f"truth: {answer_truth}")]
    asked = element("span", {"class": "question"}, question)
    return element("li", {}, asked, " ", element("span", {"class": "answer"}, *said))


def _render_phrase(phrase: Grounding) -> Markup:
    words, box_model, _, iou = phrase
    found = f"IoU {iou:.2f}" if box_model is not None else "no box"
    said = element("span", {"class": "answer"}, found, " ", mark(iou >= RIGHT_IOU))
    return element("li", {}, element("span", {"class": "question"}, words), " ", said)


def _render_neighbours(neighbours: Sequence[Neighbour]) -> Markup:
    figures = [
        _render_neighbour(image, is_right, rank)
        for rank, (image, is_right) in enumerate(neighbours, start=1)
    ]
    heading = element("h4", {}, "Images retrieved for the true caption, the best first")
    row = element("div", {"class": "row"}, *figures)
    return element("div", {"class": "neighbours"}, heading, row)


def _render_neighbour(image: ImageSource, is_right: bool, rank: int) -> Markup:
    pixels = load_image(image)
    attributes: dict[str, str | float] = {
        "src": encode_image(pixels, max_side_px=_THUMBNAIL_PX, exact=False),
        "alt": f"retrieved image {rank}",
        "loading": "lazy",
    }
    if max(pixels.shape[:2]) <= EXACT_SIDE_PX:
        attributes["class"] = "pixels"
    caption = mark(True) if is_right else Markup(f"{rank}")
    css_class = "is-right" if is_right else "other"
    figure = element("img", attributes), element("figcaption", {}, caption)
    return element("figure", {"class": css_class}, *figure)


def _box_legend() -> Markup:
    items = (
        ("key-right", f"model's box, IoU at least {RIGHT_IOU:g} (right)"),
        ("key-wrong", "model's box, wrong"),
        ("key-truth", "true box"),
    )
    parts = [element("li", {"class": css_class}, text) for css_class, text in items]
    return element("ul", {"class": "legend"}, *parts)
