"""English captions, judged by hand."""

import pytest

from triptych.data.english import is_english, num_words

IN_ENGLISH = """Golden Gate Bridge at sunset|my cat on the sofa|IMG 0231 from our trip to Zürich|
de Young museum in San Francisco|A view over the Seine, Paris|sunset|Los Angeles skyline|
Café de Flore|La Jolla beach|El Capitan|Me and my brother in Rio de Janeiro|El Paso, Texas|
Rome 2007|Halloween costume contest|Las Vegas strip|a man in a hat|two men at the door|
a van on the road|Dan and Ed at war|son of a gun|Big Sur|miles per hour|
The red man in the den was a hat|we don't know|A child's drawing of a dog"""
IN_OTHERS = """le chat sur le canapé|Un chien dans la neige|Der Hund im Schnee|unser Haus am See|
La playa de noche|mi perro en la casa|Il mare di notte|casa da praia|kat op de bank|
På stranden i Skagen|夜の東京タワー|Москва ночью|vista do mar em Lisboa|
Fiesta de cumpleaños con los amigos|Schnee auf den Bergen|Gatto sul tetto che dorme|
Een mooie dag aan zee|widok z okna na morze|İstanbul'da bir gün|une journée à la plage|
Weihnachtsmarkt in Köln mit Freunden|Notre Dame de Paris vue de la Seine|2007|...||
日本 tokyo 2008"""


@pytest.mark.parametrize("text", IN_ENGLISH.replace("\n", "").split("|"))
def test_english_captions(text):
    assert is_english(text)


@pytest.mark.parametrize("text", IN_OTHERS.replace("\n", "").split("|"))
def test_captions_in_other_languages_and_none(text):
    assert not is_english(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("a", 1), ("a  b\nc", 3), ("a - b", 2), ("2 dogs!", 2), ("!!! ???", 0), ("東京", 1)],
)
def test_words_hold_a_letter_or_a_digit(text, count):
    assert num_words(text) == count
