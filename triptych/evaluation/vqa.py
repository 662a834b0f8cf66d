"""VQA accuracy as the official script computes it (Antol et al., 2015; GT-Vision-Lab/VQA).

The script's habits are kept, also where they look like slips: answers are normalised only where
the ten answers differ, a comma between digits changes how every sign is treated, and at most 32
full stops are removed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from triptych.core.errors import DataError

OFFICIAL_NUM_ANSWERS = 10
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32
_NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTION_TABLE = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
    couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't
    hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've
    he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd
    itd've=it'd've it'dve=it'd've itll=it'll maam=ma'am mightnt=mightn't
    mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't
    mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
    ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've
    she'dve=she'd've shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've
    shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
    somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd
    someoned've=someone'd've someone'dve=someone'd've someonell=someone'll someones=someone's
    somethingd=something'd somethingd've=something'd've something'dve=something'd've
    somethingll=something'll thats=that's thered=there'd thered've=there'd've
    there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
    they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't
    wed've=we'd've we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're
    whats=what's whatve=what've whens=when's whered=where'd wheres=where's whereve=where've
    whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've
    whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
    wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll
    y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd
    youd've=you'd've you'dve=you'd've youll=you'll youre=you're youve=you've
    """
_CONTRACTIONS = dict(pair.split("=") for pair in _CONTRACTION_TABLE.split())


def normalize_punctuation(answer: str) -> str:
    """Remove or blank out signs (the script's processPunctuation).

    A sign is removed where it touches a space anywhere in the answer, or where the answer holds a
    comma between digits; otherwise it becomes a space. A full stop goes unless a digit follows.
    """
    comma = _COMMA_IN_NUMBER.search(answer) is not None
    result = answer
    for sign in _PUNCTUATION:
        touches_space = f"{sign} " in answer or f" {sign}" in answer
        result = result.replace(sign, "" if comma or touches_space else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def normalize_words(answer: str) -> str:
    """Lower the case, write small numbers as digits, drop articles, restore apostrophes.

    The script's processDigitArticle.
    """
    words = (_NUMBER_WORDS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize_answer(answer: str) -> str:
    """Apply both normalisers of the official script."""
    return normalize_words(normalize_punctuation(_strip(answer)))


def _strip(answer: str) -> str:
    """Turn line breaks and tabs into spaces and trim the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of one answer.

    Each human answer is excluded once; the prediction scores min(1, matches / 3) against the
    others, and the mean is the accuracy. With ten answers this is the official number.

    The official rule says nothing about other counts, which one's own data may have. Then answers
    are always normalised, and with n < 4 answers n - 1 matches (one for a single answer, which is
    not excluded) are enough for 1.

    Args:
        prediction: The model's answer.
        answers: The human answers, at least one.

    Returns:
        A share in [0, 1].

    Raises:
        DataError: There is no answer.
    """
    if not answers:
        raise DataError("a question has no answer to compare with; exclude it")
    expected = [_strip(answer) for answer in answers]
    given = _strip(prediction)
    if len(expected) != OFFICIAL_NUM_ANSWERS or len(set(expected)) > 1:
        expected = [normalize_answer(answer) for answer in expected]
        given = normalize_answer(given)
    matches = sum(answer == given for answer in expected)
    others = len(expected) - 1
    if others == 0:
        return float(matches)
    enough = min(3, others)
    match_excluded = matches * min(1.0, (matches - 1) / enough)
    other_excluded = (len(expected) - matches) * min(1.0, matches / enough)
    return (match_excluded + other_excluded) / len(expected)


def compute_vqa_accuracies(
    predictions: Mapping[int, str], answers: Mapping[int, Sequence[str]]
) -> npt.NDArray[np.float64]:
    """Return the accuracy of each predicted question, in the order of `predictions`.

    Args:
        predictions: The model's answer by question.
        answers: The human answers by question.

    Raises:
        DataError: A predicted question has no answers.
    """
    return np.array([vqa_accuracy(text, answers.get(key, ())) for key, text in predictions.items()])
