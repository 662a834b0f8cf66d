"""Whether a caption is English, by rules of ours, without a model.

A caption has a few words, many of them names, so a rule can only ask for signs of another
language: letters that English lacks, and words that other languages need in most sentences. What
shows none is taken for English, as a caption of names alone ("Golden Gate Bridge") reads in any
language.
"""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
MAX_FOREIGN_LETTERS = 0.1  # of all letters: "café" and "Zürich" are in English captions

_ENGLISH = """about after all and are be been before but by can did does from had has have he
here his how into is it its just like more my not of off or our out she some than that the their
them there these they this those through to two up very we were what when where which while who
with without you your"""
ENGLISH = frozenset(_ENGLISH.split())
"""Frequent words of English that are no frequent words of those below: so without `in` and `a`."""

_SHARED = "a an as at do for her i in me no on one over so under was"
_OTHERS = """aber als auch auf aus bei beim das dem der des ein eine einem einen einer eines es
für ich im ist mein meine mit nach nicht noch oder sein sich sie sind über um und uns unser
unter vom von vor wir wird wurde zu zum zur zwischen au aux avec ce ces cette chez dans de
depuis deux du elle est et été ils je la le les leur mais mes mon notre nous ou où par pas pour
qui que sa sans ses sont très un une vers vous como cuando del desde donde el ella en entre esta
este esto fue hasta hay las lo los mis muy más no nos pero por se ser sobre su sus tiene una
unos y ai alla alle anche che ci col da dal dalla degli dei della delle di dopo e gli i il in io
ma mia mio nel nella non nostra più questa questo si sono sua sul sulla suo tra ao aos as até
com depois do dos ela ele em está foi isso mas meu minha muito na nas não o os pela pelo quando
sem seu são também tem aan bij dat deze dit een er haar het hier hij ik is maar mijn naar niet
nog nu ook om onder onze op over te uit voor was we werd wij zijn och att det ett för från han
hon inte jag med min mitt mot någon när på sig som under var vi är af at efter fra for ikke jeg
mellem og til ved være å dari dengan untuk yang pada ini itu ke oleh sebuah bir bu için ile ve
çok nie się w z ze jest po przy oraz od dla az egy és hogy nem"""
OTHERS = frozenset(_OTHERS.split()) - ENGLISH - frozenset(_SHARED.split())
"""Frequent words of German, French, Spanish, Italian, Portuguese, Dutch, Swedish, Danish,
Norwegian, Indonesian, Turkish, Polish and Hungarian that are no frequent words of English."""

_IN_NAMES = "da de del den der des di do dos du el la las le les los van von"
IN_NAMES = frozenset(_IN_NAMES.split())
"""Those that stand in names: "Los Angeles", "Rio de Janeiro"."""


def is_english(text: str) -> bool:
    """Return whether a caption shows no sign of another language.

    It is not English where it has no letter, more than a tenth of its letters are not a to z, or
    it has more frequent words of other languages than of English. A word of `IN_NAMES` does not
    count before a capital letter if it has one itself, or the word before it has.
    """
    words = _WORD.findall(text)
    letters = [letter for word in words for letter in word if letter not in "'’"]
    foreign = sum(not letter.isascii() for letter in letters)
    if not letters or foreign > MAX_FOREIGN_LETTERS * len(letters):
        return False
    own = other = 0
    for number, word in enumerate(words):
        plain = word.lower()
        own += plain in ENGLISH
        other += plain in OTHERS and not (plain in IN_NAMES and _is_in_name(words, number))
    return other <= own


def _is_in_name(words: list[str], number: int) -> bool:
    follows = words[number + 1] if number + 1 < len(words) else ""
    before = words[number - 1] if number else ""
    begins = number == 0 or words[number][0].isupper() or before[:1].isupper()
    return begins and follows[:1].isupper()


def num_words(text: str) -> int:
    """Return how many words a text has: runs between spaces that hold a letter or a digit."""
    return sum(any(map(_is_word_character, part)) for part in text.split())


def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"
