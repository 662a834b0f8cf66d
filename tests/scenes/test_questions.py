import random
from collections import Counter, defaultdict

import pytest

from triptych.core.errors import ConfigError
from triptych.scenes.config import QuestionMix, SceneConfig, held_out_pairs
from triptych.scenes.questions import ask_variants
from triptych.scenes.world import generate_scene

from .oracle import answer, things


def asked(config, split="train", num_scenes=800, each=3):
    for index in range(num_scenes):
        scene = generate_scene(config, split, index)
        for question in ask_variants(scene, config, each, random.Random(f"{split}{index}")):
            yield scene, question


@pytest.mark.parametrize("split", ["train", "compositional"])
@pytest.mark.parametrize("materials", [False, True])
def test_answers_follow_from_the_scene(split, materials):
    config = SceneConfig(materials=materials)
    types = set()
    for scene, question in asked(config, split, num_scenes=300, each=4):
        assert answer(question.text, things(scene)) == question.answer, question.text
        types.add(question.question_type)
    expected = {"yes_no", "count", "color", "shape", "relation"}
    assert types == (expected | {"material"} if materials else expected)


def test_the_question_alone_tells_little():
    config = SceneConfig()
    by_type, by_words = defaultdict(Counter), defaultdict(Counter)
    for _, question in asked(config):
        by_type[question.question_type][question.answer] += 1
        by_words[question.text][question.answer] += 1
    unseen = [question for _, question in asked(config, "val")]
    majority = {name: counts.most_common(1)[0][0] for name, counts in by_type.items()}
    by_type_right = sum(majority[q.question_type] == q.answer for q in unseen)
    assert by_type_right / len(unseen) < 0.40
    words = {text: counts.most_common(1)[0][0] for text, counts in by_words.items()}
    words_right = sum(words.get(q.text, majority[q.question_type]) == q.answer for q in unseen)
    assert words_right / len(unseen) < 0.45


def test_yes_is_as_frequent_as_no_for_each_form():
    mix = QuestionMix(count=0, color=0, shape=0, relation=0)
    counts = defaultdict(Counter)
    for _, question in asked(SceneConfig(question_mix=mix)):
        form = "exists" if "there" in question.text else question.text.split("?")[0].split()[-1]
        form = form if form in ("exists", "small", "large") else "relation"
        counts[form][question.answer] += 1
    assert set(counts) == {"exists", "small", "large", "relation"}
    for form, answers in counts.items():
        assert set(answers) == {"yes", "no"}
        error = 0.5 / sum(answers.values()) ** 0.5
        assert answers["yes"] / sum(answers.values()) == pytest.approx(0.5, abs=4 * error), form


def test_counts_are_spread():
    mix = QuestionMix(yes_no=0, color=0, shape=0, relation=0)
    answers = Counter(q.answer for _, q in asked(SceneConfig(question_mix=mix), num_scenes=400))
    assert set(answers) == {"0", "1", "2", "3", "4"}
    assert max(answers.values()) / sum(answers.values()) < 0.4


def test_training_questions_never_say_a_held_out_pair():
    pairs = [f"{color} {shape}" for color, shape in held_out_pairs(SceneConfig())]
    texts = [question.text for _, question in asked(SceneConfig(), num_scenes=500)]
    assert not [text for text in texts if any(pair in text for pair in pairs)]


def test_questions_of_one_scene_differ():
    scene = generate_scene(SceneConfig(), "train", 0)
    questions = ask_variants(scene, SceneConfig(), 6, random.Random(0))
    assert len({question.text for question in questions}) == 6


def test_answer_types_are_those_of_vqa():
    types = {q.question_type: q.answer_type for _, q in asked(SceneConfig(), num_scenes=100)}
    expected = {"yes_no": "yes/no", "count": "number"}
    assert types == expected | dict.fromkeys(("color", "shape", "relation"), "other")


def test_a_mix_needs_a_weight():
    with pytest.raises(ConfigError, match="above 0"):
        QuestionMix(yes_no=0, count=0, color=0, shape=0, material=0, relation=0)
    with pytest.raises(ConfigError, match=r"count = -1"):
        QuestionMix(count=-1)
