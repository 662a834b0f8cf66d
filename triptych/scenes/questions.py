"""Questions on a scene; statements about two; hypotheses that one entails, contradicts or neither.

The words alone tell little: the answer, or whether a statement is true, is drawn before them, each
possible outcome equally often. A negative question names only colour-shape pairs that the split may
show. A hypothesis that is neutral names a property that no image shows ("heavy"); as many false
ones name such a property too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from triptych.scenes.config import SIZES, Pair, SceneConfig, pairs_of_split
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
        truth: Whether the statement should be true.

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
        choice = _draw_kind_pair(scene, config, rng, shown=label == "neutral")
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
    choice = _draw_kind_pair((left, right)[side], config, rng, shown=truth)
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
    choice = _draw_kind_pair(scene, config, rng, shown=truth)
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


def _draw_kind_pair(
    scene: Scene, config: SceneConfig, rng: random.Random, *, shown: bool
) -> Pair | None:
    """Draw a colour-shape pair that the scene shows, or one of its split that it does not."""
    present = {item.pair for item in scene.objects}
    pairs = [pair for pair in pairs_of_split(config, scene.split) if (pair in present) == shown]
    return rng.choice(pairs) if pairs else None


def _say_count(count: int, noun: str) -> str:
    return f"is one {noun}" if count == 1 else f"are {_NUMBERS[count]} {plural(noun)}"
