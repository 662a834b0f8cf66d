import itertools
import random
from collections import Counter

import pytest

from triptych.scenes.config import SceneConfig, held_out_pairs
from triptych.scenes.questions import NLI_LABELS, NUM_FORMS, hypothesize, state_about_two
from triptych.scenes.world import generate_scene

from .oracle import entailment, is_true_of_two, things

CONFIG = SceneConfig()
SCENES = [generate_scene(CONFIG, "train", index) for index in range(120)]


@pytest.mark.parametrize("form", range(NUM_FORMS))
@pytest.mark.parametrize("truth", [True, False])
def test_statements_are_as_true_as_asked(form, truth):
    said = 0
    rng = random.Random(form)
    for left, right in itertools.pairwise(SCENES):
        statement = state_about_two(left, right, CONFIG, rng, form=form, truth=truth)
        if statement:
            assert is_true_of_two(statement, things(left), things(right)) is truth, statement
            said += 1
    assert said > 30


@pytest.mark.parametrize("label", NLI_LABELS)
def test_hypotheses_have_the_label_asked_for(label):
    rng = random.Random(label)
    texts = []
    for scene in SCENES:
        made = hypothesize(scene, CONFIG, rng, label=label)
        if made:
            assert made.label == label
            assert entailment(made.text, things(scene)) == label, made.text
            texts.append(made.text)
    assert len(texts) > 100
    pairs = [f"{color} {shape}" for color, shape in held_out_pairs(CONFIG)]
    assert not [text for text in texts if any(pair in text for pair in pairs)]


def test_a_hidden_property_does_not_give_the_label_away():
    rng = random.Random(0)
    labels = Counter()
    for scene in SCENES * 3:
        made = hypothesize(scene, CONFIG, rng, label=rng.choice(NLI_LABELS))
        if made and any(w in made.text for w in ("heavy", "expensive", "wooden", " new ")):
            labels[made.label] += 1
    assert set(labels) == {"neutral", "contradiction"}
    assert labels["neutral"] / sum(labels.values()) < 0.8  # two thirds expected
