"""Penn Treebank tokens as the COCO caption scripts use them, in pure Python.

The scripts tokenise with Stanford CoreNLP 3.4.1's `PTBTokenizer -preserveLines -lowerCase` (a Java
program) and then drop punctuation tokens. Caption metrics are defined on these tokens, so a
number is comparable with a published one only if the tokens are the same. This module is written
from the observed behaviour of that program: at each position the longest rule wins, and of rules
of equal length the first. The tests compare it with the program's output.

Two limits are known. The Java program reads on into the next caption when it decides on an
abbreviation at the end of one ("No." before a caption that begins with a digit); here a caption
stands alone. And characters of scripts and symbol blocks younger than Unicode 6 may be kept
where the Java program drops them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

# Word lists of the Penn Treebank tokeniser: facts about the Java program, found by asking it.


def _words(text: str) -> frozenset[str]:
    """Split a list of words at white space."""
    return frozenset(text.split())


ABBREVIATIONS = _words(
    """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bldg blvd brig bros
    calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec
    ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul
    jun kan kans ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms msgr
    mt natl neb nev nov oct okla penn pfc ph plc pres prof pvt rd rep reps rev rt sen sens sep
    sept sgt sq sr st ste supt tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm
    wyo ph.d
    """
)
"""Abbreviations that keep their full stop in any case, even at the end of a sentence."""

CASED_ABBREVIATIONS = _words(
    """
    Ark ARK Az AZ Del DEL Ill ILL La LA Mass MASS mfg Mfg Miss MISS Ore ORE Pa PA pty Pty Tex
    TEX Wash WASH
    """
)
"""Abbreviations that keep their full stop only when they are written like this."""

NUMBER_ABBREVIATIONS = _words("art ca fig figs no nos op pp prop")
"""Abbreviations that keep their full stop only before a number."""

SENTENCE_STARTERS = _words(
    """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last
    Many More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There
    These They This We When While What Yet You
    """
)
"""Words before which a single letter with a full stop ends its sentence."""

FILE_EXTENSIONS = _words(
    """
    bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl
    png ppt ps py sql tar txt wav x xml zip
    """
)
"""Endings of file names that are one token even if they begin with a digit."""

APOSTROPHE_WORDS = (
    "(?i:olQ|somethinQ|dunkinQ|capQn|Qem|Qtill?|Qcause|oQo)"
    "|(?i:cont'd\\.|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"
)
"""Pattern of words with an apostrophe that are one token; Q stands for any kind of apostrophe."""

PUNCTUATION = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
"""Tokens that the caption scripts drop. They also list `-LRB-` and other brackets, but tokens are
lower case by then, so that `-lrb-` stays."""

# Numbers that are neither letters nor digits, and what lies beyond the 16 bits that Java reads
_NO_LETTER = (
    "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2182\u2460-\u249b"
    "\U00010000-\U0010ffff"
)
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ef-\u036f\u0483-\u0487\u0591-\u05bd\u05c1\u05c2"
    "\u0610-\u061a\u064b-\u065e\u0670\u06d6-\u06ed\u0900-\u0903\u093c-\u0963\u0981-\u0983"
    "\u09bc-\u09cd\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
)
_L = rf"(?:(?![{_NO_LETTER}])[^\W\d_]|\u00ad)"  # a letter; soft hyphens are dropped afterwards
_LM = rf"(?:(?![{_NO_LETTER}])[^\W\d_]|[{_MARKS}\u00ad])"
_LD = rf"(?:(?![{_NO_LETTER}])[^\W_]|[{_MARKS}\u00ad])"
_Q = "['\u2019\u0092]"  # apostrophe
_QN = "['\u2019\u2018\u0091\u0092\u201b`]"  # apostrophe or quotation mark inside a word
_LATER_QUOTES = "\u0091-\u0094\u00ab\u00bb\u2018\u2019\u201b-\u201d\u2039\u203a"
_HYPHEN = "[-\u058a\u2010\u2011_]"
_REDUCED = "(?:'(?i:ll|re|ve|s|d|m)(?![A-Za-z])|[\u2019\u0092](?i:ll|re|ve|s|d|m))"  # it's, they're
_NUM = r"(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+)"
_WORD = rf"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_THING = rf"(?:(?:[dDoOlL]{_QN}{_LD})?{_LD}+(?:{_HYPHEN}(?:[dDoOlL]{_QN}{_LD})?{_LD}+)*)"
_URL_TAIL = r'(?:/[^\s"<>|()]+[^\s"<>|.!?(){},\-])?'
_SYMBOLS = (
    "\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589\u05be\u05c0\u05c3"
    "\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4"
    "\u0700-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e-\u2023"
    "\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101"
    "\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b"
    "\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)

_MAPPED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u2026": "...",
    "\u00a3": "#",
    "\u00a2": "cents",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
    "&apos;": "'",
    "&quot;": "''",
    "&nbsp;": "",
    "&mdash;": "--",
    "&ndash;": "--",
    "&md;": "--",
    "\u00ad": "-",
    **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$"),
    **dict.fromkeys("\u0096\u0097\u2013\u2014\u2015", "--"),
    **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
    **dict.fromkeys("\u0092\u2019\u203a", "'"),
    **dict.fromkeys("\u0093\u00ab\u201c", "``"),
    **dict.fromkeys('\u0094\u00bb\u201d"', "''"),
}


class _Rule(NamedTuple):
    """One kind of token.

    Attributes:
        pattern: Its whole match competes in length; its first group is the token, the rest is
            context that is read again.
        normalise: From the matched text (lower case) to the token.
    """

    pattern: re.Pattern[str]
    normalise: Callable[[str], str]


def _plain(text: str) -> str:
    """Drop soft hyphens and make spaces inside a token unbreakable."""
    return text.replace("\u00ad", "").replace(" ", "\u00a0").replace("\t", "\u00a0")


def _symbol(text: str) -> str:
    """Give a bracket, a dash, a quote, a currency sign or a fraction its ASCII form."""
    return _MAPPED.get(text, text)


def _apostrophe(text: str) -> str:
    """Write every kind of apostrophe as the ASCII one, except in n't with a backquote."""
    return re.sub("[\u2019\u0092]", "'", _plain(text))


def _not(text: str) -> str:
    """Write n't with an ASCII mark; an opening quote stays a backquote."""
    return re.sub("[\u2018\u0091\u201b]", "`", _apostrophe(text))


def _brackets(text: str) -> str:
    """Write parentheses inside a token (a smiley, a telephone number) as -lrb- and -rrb-."""
    return _plain(text.replace("(", "-lrb-").replace(")", "-rrb-"))


def _ampersand(text: str) -> str:
    """Write the entity of an ampersand inside a token as the character."""
    return text.replace("&amp;", "&")


def _alternatives(words: Iterable[str]) -> str:
    """Return a pattern that matches any of `words`, longest first."""
    return "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))


_STARTERS = _alternatives({*SENTENCE_STARTERS, *map(str.upper, SENTENCE_STARTERS)})
_STARTER = rf"\s+(?:{_STARTERS})(?:\s|$)"
_TAG = (
    r"<(?:[!?][A-Za-z\-][^>\n]*|/[A-Za-z][\w:.\-]*|[A-Za-z][A-Za-z0-9_:.\-]*"
    r"""(?:\s+[A-Za-z][A-Za-z0-9_:.\-]*(?:\s*=\s*(?:'[^'\n]*'|"[^"\n]*"))?)*\s*/?)\s*>"""
)
_DOMAIN = r"""(?:[^\s"`'<>|.!?(){},\-_$0-9A-Z/:;=@\[\\\]^]+\.)+(?:com|net|org|edu)"""
_FILE = rf"{_LD}+(?:\.{_LD}+)*\.(?i:{_alternatives(FILE_EXTENSIONS)})(?!{_LD})"
_PIECE = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+){0,2}"
_ANY_ABBREVIATION = (
    rf"(?:(?i:{_alternatives(ABBREVIATIONS)})|{_alternatives(CASED_ABBREVIATIONS)})\."
)
_LATER_SIGNS = "".join(sign for sign in _MAPPED if len(sign) == 1 and ord(sign) > 127)
_RULE_TABLE: tuple[tuple[str, Callable[[str], str]], ...] = (
    # Markup, entities, addresses
    (rf"({_TAG})", _plain),
    (r"(&(?i:lt|gt|amp|nbsp);|&(?:apos|quot|mdash|ndash|MD);)", _symbol),
    (r"(&(?:#\d+|HT|TL|UR|LR|QC|QL|QR|QUOT|odq|cdq);)", _plain),
    (r'((?i:https?)://[^\s"<>|()]+[^\s"<>|.!?(){},\-])', _plain),
    (rf'(www\.(?:[^\s"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_URL_TAIL})', _plain),
    (rf"({_DOMAIN}{_URL_TAIL})", _plain),
    (
        r"""(<?[a-zA-Z0-9][^\s"<>|()\u00a0{}]*@(?:[^\s"<>|(){}.\u00a0]+\.)*"""
        r"""[^\s"<>|(){}.\u00a0]+>?)""",
        _plain,
    ),
    (r"(@[A-Za-z_][A-Za-z0-9_]*)", _plain),
    (rf"(#{_L}+)", _plain),
    # Words
    (r"((?i:can))(?i:not)", _plain),
    (r"((?i:gon|wan))(?i:na)", _plain),
    (r"((?i:got))(?i:ta)", _plain),
    (r"((?i:lem|gim))(?i:me)", _plain),
    (r"('(?i:t))(?i:is|was)", _plain),
    (rf"([A-Za-z]+?)(?i:n){_QN}(?i:t)", _plain),
    (rf"({_L}{_LD}*){_REDUCED}", _plain),
    (rf"((?i:n){_QN}(?i:t))", _not),
    (rf"({_WORD})", _plain),
    (rf"({_THING})", _plain),
    (rf"({_PIECE}(?:\\?/{_PIECE}){{1,2}})", _plain),
    (r"([A-Z]+(?:(?:&amp;|&AMP;|[&+])[A-Z]+)+)", _ampersand),
    (r"([cC]\+\+|[cCfF]#)", _plain),
    (rf"({_FILE})", _plain),
    # Apostrophes
    (rf"({_REDUCED})", _apostrophe),
    (rf"({_Q}(?i:n){_Q})", _plain),
    (rf"('(?i:n)(?!{_LM})|[\u2019\u0092](?i:n))", _plain),
    (rf"({APOSTROPHE_WORDS.replace('Q', _Q)})", _plain),
    (rf"([A-HJ-XZn]{_QN}{_L}{{2}}{_L}*)", _plain),
    (rf"({_L}+[aeiouyAEIOUY]{_QN}[aeiouA-Z]{_L}*)", _plain),
    (rf"([lLdDjJyY]{_Q})(?={_L})", _plain),
    (rf"({_Q}[2-9]0[sS])(?!{_LD})", _plain),
    (rf"({_Q}\d\d)(?=\s|$)", _plain),
    # Numbers
    (rf"([-+]?{_NUM})", _plain),
    (rf"(\d+(?:[.,]\d+)*(?:-{_LD}+)+)", _plain),
    (r"((?:\d{1,4}[- ])?\d{1,4}\\?/\d{1,4})(?!\d)", _plain),
    (r"((?:\(\d{2,3}\)[ ]?|(?:\+\+?)?(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5})", _brackets),
    (r"([A-Z]*\$)", _plain),
    # Abbreviations
    (r"([A-Za-z](?:\.[A-Za-z])+\.)", _plain),
    (rf"({_ANY_ABBREVIATION})", _plain),
    (rf"((?i:{_alternatives(NUMBER_ABBREVIATIONS)})\.)(?=\s?\d)", _plain),
    (rf"([A-Za-z]\.)(?!{_STARTER}|\s+{_TAG})", _plain),
    (rf"({_THING}\.)(?=[,;:])", _plain),
    (rf"({_WORD}\.)(?=[,;:])", _plain),
    # Smileys
    (r"([<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])", _brackets),
    (
        r"([\-^x=~<>']_[\-^x=~<>']|\([\^x=~<>']-[\^x=~<>'`]\)|\([\-^x=~<>'][_.]?[\-^x=~<>']\))",
        _brackets,
    ),
    # Runs and single signs
    (r"(-(?i:[LR][RCS]B)-)", _plain),
    (r"(\.\.\.|\. \. \.)", lambda text: "..."),
    (r"([?!]+)", _plain),
    (r"(-{2,})", lambda text: "--"),
    (r"(''|``)", _plain),
    (rf"([`{_LATER_QUOTES}]{{2}})", lambda text: "".join(map(_symbol, text))),
    (r"(\*+|_+|#+|@+|<<|>>)", _plain),
    (r"([!-/:-@\[-`{-~])", _symbol),
    (f"([{_LATER_SIGNS}])", _symbol),
    (f"([{_SYMBOLS}])", _plain),
)
_RULES = tuple(_Rule(re.compile(pattern), normalise) for pattern, normalise in _RULE_TABLE)
_SPECIAL_WORDS = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])
_SIMPLE = re.compile(r"([A-Za-z]+)(?=[ ,]|$)")


def _longest(text: str, position: int) -> tuple[str, int]:
    """Return the token at `position` (empty if the character is dropped) and its end."""
    best_length, best_end, best_rule = 0, position + 1, None
    for rule in _RULES:
        match = rule.pattern.match(text, position)
        if match is not None and match.end() - position > best_length:
            best_length, best_end, best_rule = match.end() - position, match.end(1), rule
    if best_rule is None:
        return "", best_end
    return best_rule.normalise(text[position:best_end].lower()), best_end


@functools.lru_cache(maxsize=65536)
def tokenize_with_punctuation(text: str) -> tuple[str, ...]:
    """Split one line into lower-case Penn Treebank tokens, punctuation included.

    Args:
        text: One caption. Line breaks count as spaces.

    Returns:
        The tokens. A token may hold a no-break space (a mixed number such as "1 1/2").
    """
    text = re.sub(r"[\s\u0085\u2028\u2029]", " ", text)
    tokens, position = [], 0
    while position < len(text):
        if text[position] in " \u00a0\u3000":
            position += 1
            continue
        simple = _SIMPLE.match(text, position)
        if simple is not None and (word := simple[1].lower()) not in _SPECIAL_WORDS:
            tokens.append(word)
            position = simple.end()
            continue
        token, position = _longest(text, position)
        if token:
            tokens.append(token)
    return tuple(tokens)


def tokenize(text: str) -> str:
    """Return the tokens that the COCO caption scripts score, joined by single spaces.

    Args:
        text: One caption.

    Returns:
        Lower-case tokens without the tokens of `PUNCTUATION`.
    """
    return " ".join(t for t in tokenize_with_punctuation(text) if t not in PUNCTUATION)
