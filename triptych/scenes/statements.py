"""Statements about two images, and hypotheses that an image entails, contradicts or leaves open.

Truth is drawn before the words, so that half of the statements of every form are true. A
hypothesis that is left open names a property that no image shows ("heavy"); as many false
hypotheses name one too, so that the word alone does not decide.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from triptych.scenes.config import SIZES, Pair, SceneConfig, pairs_of_split
from triptych.scenes.language import describe, fits
from triptych.scenes.questions import plural
from triptych.scenes.world import Scene, is_left_of

HIDDEN_PROPERTIES: tuple[str, ...] = ("heavy", "expensive", "wooden", "new")
"""What no image shows."""

NLI_LABELS: tuple[str, ...] = ("entailment", "neutral", "contradiction")

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sentence about one image, and what the image says to it.

    Attributes:
        text: The sentence.
        label: One of `NLI_LABELS`.
    """

    text: str
    label: str


def state_about_two(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, *, form: int, truth: bool
) -> str | None:
    """Return a statement about two images that is true, or false, as asked.

    Args:
        left: The left image.
        right: The right image, of the same split.
        config: The world.
        rng: Chooses the words.
        form: Which form of sentence, modulo their number.
        truth: Whether the statement shall be true.

    Returns:
        The statement; None when these two images allow none of this form and truth.
    """
    return _FORMS[form % len(_FORMS)](left, right, config, rng, truth)


def hypothesize(
    scene: Scene, config: SceneConfig, rng: random.Random, *, label: str
) -> Hypothesis | None:
    """Return a hypothesis with the label asked for; None when the chosen form allows none."""
    hidden = label == "neutral" or (label == "contradiction" and rng.random() < 0.5)
    if hidden:
        choice = _draw_pair(scene, config, rng, shown=label == "neutral")
        said = f"{rng.choice(HIDDEN_PROPERTIES)} {' '.join(choice)}" if choice else None
        return Hypothesis(f"there is {_with_article(said)}", label) if said else None
    made = rng.choice(_HYPOTHESES)(scene, config, rng, label == "entailment")
    return Hypothesis(made, label) if made else None


_Form = Callable[[Scene, Scene, SceneConfig, random.Random, bool], str | None]


def _both_have(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    return _have("both pictures have", {2}, {0, 1}, left, right, config, rng, truth)


def _one_has(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    return _have("exactly one picture has", {1}, {0, 2}, left, right, config, rng, truth)


def _neither_has(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    return _have("neither picture has", {0}, {1, 2}, left, right, config, rng, truth)


def _have(
    start: str,
    true_counts: set[int],
    false_counts: set[int],
    left: Scene,
    right: Scene,
    config: SceneConfig,
    rng: random.Random,
    truth: bool,
) -> str | None:
    """Say a shape or a colour whose number of images makes the sentence true or false."""
    named: list[tuple[str, Pair | tuple[None, str] | tuple[str, None]]] = []
    named += [(_with_article(shape), (None, shape)) for shape in config.shapes]
    named += [(_with_article(f"{color} object"), (color, None)) for color in config.colors]
    wanted = true_counts if truth else false_counts
    choices = []
    for words, (color, shape) in named:
        holders = sum(
            any(fits(item, color=color, shape=shape) for item in scene.objects)
            for scene in (left, right)
        )
        if holders in wanted:
            choices.append(words)
    return f"{start} {rng.choice(choices)}" if choices else None


def _side_has_pair(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    side = rng.randrange(2)
    choice = _draw_pair((left, right)[side], config, rng, shown=truth)
    if not choice:
        return None
    return f"the {('left', 'right')[side]} picture has {_with_article(' '.join(choice))}"


def _more_objects(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    difference = len(left.objects) - len(right.objects)
    if difference == 0:
        return None
    more = "left" if (difference > 0) == truth else "right"
    less = "right" if more == "left" else "left"
    return f"there are more objects in the {more} picture than in the {less} picture"


def _total_one(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    return _total(1, left, right, config, rng, truth)


def _total_two(
    left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    return _total(2, left, right, config, rng, truth)


def _total(
    said: int, left: Scene, right: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    """Say a fixed number, so that the number does not tell the truth."""
    items = (*left.objects, *right.objects)
    counts = {shape: sum(fits(item, shape=shape) for item in items) for shape in config.shapes}
    choices = [shape for shape, count in counts.items() if count and (count == said) == truth]
    if not choices:
        return None
    return f"there {_say_count(said, rng.choice(choices))} in the two pictures together"


_FORMS: tuple[_Form, ...] = (
    _both_have,
    _one_has,
    _neither_has,
    _side_has_pair,
    _more_objects,
    _total_one,
    _total_two,
)
NUM_FORMS = len(_FORMS)


def _suppose_pair(scene: Scene, config: SceneConfig, rng: random.Random, truth: bool) -> str | None:
    choice = _draw_pair(scene, config, rng, shown=truth)
    return f"there is {_with_article(' '.join(choice))}" if choice else None


def _suppose_count(
    scene: Scene, config: SceneConfig, rng: random.Random, truth: bool
) -> str | None:
    right = len(scene.objects)
    most = len(config.object_count_weights)
    counts = [number for number in range(1, most + 1) if (number == right) == truth]
    return f"there {_say_count(rng.choice(counts), 'object')}" if counts else None


def _suppose_size(scene: Scene, config: SceneConfig, rng: random.Random, truth: bool) -> str | None:
    item = rng.choice(scene.objects)
    said = describe(scene, item, rng, avoid=frozenset({"size"}))
    size = item.size if truth else SIZES[1 - SIZES.index(item.size)]
    return f"the {said} is {size}" if said else None


def _suppose_side(scene: Scene, config: SceneConfig, rng: random.Random, truth: bool) -> str | None:
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, 2)
    side = "left" if is_left_of(first, second) == truth else "right"
    first_said, second_said = describe(scene, first, rng), describe(scene, second, rng)
    return f"the {first_said} is {side} of the {second_said}"


_HYPOTHESES = (_suppose_pair, _suppose_count, _suppose_size, _suppose_side)


def _draw_pair(
    scene: Scene, config: SceneConfig, rng: random.Random, *, shown: bool
) -> Pair | None:
    """Draw a colour-shape pair that the scene shows, or one of its split that it does not."""
    present = {item.pair for item in scene.objects}
    pairs = [pair for pair in pairs_of_split(config, scene.split) if (pair in present) == shown]
    return rng.choice(pairs) if pairs else None


def _say_count(count: int, noun: str) -> str:
    return f"is one {noun}" if count == 1 else f"are {_NUMBERS[count]} {plural(noun)}"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
