"""Whether a caption is English, and where its sentences end: rules of ours, without a model.

A caption has a few words, many of them names, so a rule can only ask for signs of another
language: letters that English lacks, and words that other languages need in most sentences. What
shows none is taken for English, as a caption of names alone ("Golden Gate Bridge") reads in any
language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mrs?|Ms|Dr|Prof|St|Sr|Jr|vs|No|approx)\.$")
MAX_FOREIGN_LETTERS = 0.1  # of all letters: "café" and "Zürich" are in English captions

ENGLISH = frozenset(
    """a about after all an and are as at be been before but by can did do does for from had has have
    he her here his how i in into is it its just like me more my no not of off on one or our out over
    she so some than that the their them there these they this those through to two under up very was
    we were what when where which while who with without you your""".split()
)
OTHERS = frozenset(
    """aber als auch auf aus bei beim das dem den der des ein eine einem einen einer eines es für
    hat ich im ist mein meine mit nach nicht noch oder sein sich sie sind über um und uns unser unter
    vom von vor war wir wird wurde zu zum zur zwischen
    au aux avec ce ces cette chez dans de depuis deux du elle est et été ils je la le les leur mais
    mes mon notre nous ou où par pas pour qui que sa sans ses son sont sur très un une vers vous
    al como con cuando de del desde donde el ella en entre es esta este esto fue hasta hay las
    lo los mi mis muy más no nos para pero por que se ser sin sobre su sus tiene una unos y
    ai alla alle anche che ci col come con da dal dalla degli dei del della delle di dopo e ed gli
    ha i il in io la le lo ma mia mio nel nella non nostra per più questa questo si sono sua sul
    sulla suo tra un una
    ao aos as até com da das depois do dos e ela ele em entre está foi isso mais mas meu minha muito
    na nas no nos não o os ou para pela pelo por quando que sem seu sua são também tem um uma
    aan als bij dat de deze die dit door een en er haar het hier hij ik is je maar met mijn naar niet
    nog nu ook om onder onze op over te tot uit van voor was we werd wij zijn
    och att det en ett för från han hon i inte jag med men min mitt mot någon när och om på
    ser sig som till under var vi är af at den der det efter en er et fra for ikke jeg med mellem men
    og om på som til under ved være å
    dan di dari dengan untuk yang pada ini itu ke oleh sebuah
    bir bu da de için ile ve çok
    i na nie się w z ze do jest po przy oraz od dla
    az egy és hogy nem""".split()
) - ENGLISH  # fmt: skip
"""Frequent words of German, French, Spanish, Italian, Portuguese, Dutch, Swedish, Danish,
Norwegian, Indonesian, Turkish, Polish and Hungarian that are no frequent words of English."""


def is_english(text: str) -> bool:
    """Return whether a caption shows no sign of another language.

    It is not English where it has no letter, more than a tenth of its letters are not a to z, or
    it has more frequent words of other languages than of English.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    letters = [letter for word in words for letter in word if letter not in "'’"]
    if not letters:
        return False
    foreign = sum(not letter.isascii() for letter in letters)
    if foreign > MAX_FOREIGN_LETTERS * len(letters):
        return False
    own = sum(word in ENGLISH for word in words)
    other = sum(word in OTHERS for word in words)
    return other <= own


def num_words(text: str) -> int:
    """Return how many words a text has: runs between spaces that hold a letter or a digit."""
    return sum(any(map(_is_word_character, part)) for part in text.split())


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def split_sentences(text: str) -> Iterator[str]:
    """Yield a text's sentences, without the space between them; nothing else is left out.

    A sentence ends at a full stop, question mark or exclamation mark before a space and a capital
    letter or a digit, but not after an initial or a title (`J.`, `Dr.`).
    """
    start = 0
    for found in _SENTENCE_END.finditer(text):
        sentence = text[start : found.end()].strip()
        if _ABBREVIATION.search(sentence) is None:
            yield sentence
            start = found.end()
    last = text[start:].strip()
    if last:
        yield last
