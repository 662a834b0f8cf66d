"""Word lists of the Penn Treebank tokeniser: facts about the Java program, found by asking it."""

from __future__ import annotations


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
