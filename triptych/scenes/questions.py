"""Questions about a scene, drawn so that the question alone tells little of the answer.

Where two answers are possible the answer is drawn before the words; a negative names only
colour-shape pairs that the split may show, so that a pair never gives the answer away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from triptych.scenes.config import SIZES, SceneConfig, pairs_of_split
from triptych.scenes.language import describe, fits
from triptych.scenes.world import Scene, SceneObject, differ_in_height, is_above, is_left_of

NUM_ANSWERS = 10
"""Human answers for each question in VQAv2; here all ten are equal."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its one right answer.

    Attributes:
        text: The question.
        answer: "yes", "no", a number in digits, or one word.
        question_type: "yes_no", "count", "color", "shape", "material" or "relation".
    """

    text: str
    answer: str
    question_type: str

    @property
    def answer_type(self) -> str:
        """The class of the answer in VQAv2: "yes/no", "number" or "other"."""
        return {"yes_no": "yes/no", "count": "number"}.get(self.question_type, "other")


def ask(scene: Scene, config: SceneConfig, rng: random.Random) -> Question | None:
    """Return a question of a type drawn from `config.question_mix`.

    Returns:
        None when the scene does not allow the draw, such as a relation in a scene of one object.
    """
    mix = config.question_mix
    weights = [getattr(mix, name) for name in _ASKERS]
    if not config.materials:
        weights[list(_ASKERS).index("material")] = 0.0
    name = rng.choices(list(_ASKERS), weights)[0]
    made = _ASKERS[name](scene, config, rng)
    return Question(*made, name) if made else None


def ask_variants(
    scene: Scene, config: SceneConfig, count: int, rng: random.Random
) -> list[Question]:
    """Return up to `count` questions of one scene with different words."""
    questions: dict[str, Question] = {}
    for _ in range(8 * count):
        question = ask(scene, config, rng)
        if question:
            questions.setdefault(question.text, question)
        if len(questions) == count:
            break
    return list(questions.values())


_Made = tuple[str, str] | None


def _ask_yes_no(scene: Scene, config: SceneConfig, rng: random.Random) -> _Made:
    way, yes = rng.random(), rng.random() < 0.5
    if way < 0.6:
        return _ask_existence(scene, config, rng, yes)
    item = rng.choice(scene.objects)
    if way < 0.8:
        said = describe(scene, item, rng, avoid=frozenset({"size"}))
        size = item.size if yes else SIZES[1 - SIZES.index(item.size)]
        return (f"is the {said} {size}?", _word(yes)) if said else None
    pair = _draw_pair(scene, rng)
    if not pair:
        return None
    first, second, first_said, second_said = pair
    sides = ["left of", "right of"] if is_left_of(first, second) else ["right of", "left of"]
    return f"is the {first_said} {sides[not yes]} the {second_said}?", _word(yes)


def _ask_existence(scene: Scene, config: SceneConfig, rng: random.Random, yes: bool) -> _Made:
    pairs = pairs_of_split(config, scene.split)
    way = rng.random()
    if way < 0.6:
        shown = {item.pair for item in scene.objects}
        choices = [f"{c} {s}" for c, s in pairs if ((c, s) in shown) == yes]
    elif way < 0.8:
        shapes = {item.shape for item in scene.objects}
        choices = [shape for shape in config.shapes if (shape in shapes) == yes]
    else:
        colors = {item.color for item in scene.objects}
        choices = [f"{color} object" for color in config.colors if (color in colors) == yes]
    return (f"is there {_with_article(rng.choice(choices))}?", _word(yes)) if choices else None


def _ask_count(scene: Scene, config: SceneConfig, rng: random.Random) -> _Made:
    way = rng.random()
    if way < 0.3:
        return "how many objects are there?", str(len(scene.objects))
    by_count: dict[int, list[str]] = {}
    for shape in config.shapes if way < 0.65 else ():
        count = sum(fits(item, shape=shape) for item in scene.objects)
        by_count.setdefault(count, []).append(plural(shape))
    for color in config.colors if way >= 0.65 else ():
        count = sum(fits(item, color=color) for item in scene.objects)
        by_count.setdefault(count, []).append(f"{color} objects")
    count = rng.choices(list(by_count), [3 if number > 1 else 1 for number in by_count])[0]
    return f"how many {rng.choice(by_count[count])} are there?", str(count)


def _ask_color(scene: Scene, config: SceneConfig, rng: random.Random) -> _Made:
    item = rng.choice(scene.objects)
    said = describe(scene, item, rng, avoid=frozenset({"color"}))
    return (f"what color is the {said}?", item.color) if said else None


def _ask_shape(scene: Scene, config: SceneConfig, rng: random.Random) -> _Made:
    item = rng.choice(scene.objects)
    said = describe(scene, item, rng, avoid=frozenset({"shape"}))
    return (f"what shape is the {said}?", item.shape) if said else None


def _ask_material(scene: Scene, config: SceneConfig, rng: random.Random) -> _Made:
    item = rng.choice(scene.objects)
    said = describe(scene, item, rng)
    return (f"what material is the {said}?", item.material) if said else None


def _ask_relation(scene: Scene, config: SceneConfig, rng: random.Random) -> _Made:
    pair = _draw_pair(scene, rng)
    if not pair:
        return None
    first, second, first_said, second_said = pair
    if rng.random() < 0.5:
        answer = "left" if is_left_of(first, second) else "right"
        return f"is the {first_said} left or right of the {second_said}?", answer
    if not differ_in_height(first, second):
        return None
    answer = "above" if is_above(first, second) else "below"
    return f"is the {first_said} above or below the {second_said}?", answer


_ASKERS: dict[str, Callable[[Scene, SceneConfig, random.Random], _Made]] = {
    "yes_no": _ask_yes_no,
    "count": _ask_count,
    "color": _ask_color,
    "shape": _ask_shape,
    "material": _ask_material,
    "relation": _ask_relation,
}


def plural(shape: str) -> str:
    """Return the plural of a shape."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _draw_pair(
    scene: Scene, rng: random.Random
) -> tuple[SceneObject, SceneObject, str, str] | None:
    """Draw two different objects, and a description of each."""
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, 2)
    first_said, second_said = describe(scene, first, rng), describe(scene, second, rng)
    return (first, second, first_said, second_said) if first_said and second_said else None


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _word(yes: bool) -> str:
    return "yes" if yes else "no"
