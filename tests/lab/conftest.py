"""A study of seconds: two small VLMo recipes on a few scenes."""

import pytest

MINE = """
title: With and without ITM
question: Does ITM help retrieval?
scale: smoke
base: {recipe: vlmo.pretrain}
budget: {samples: 16}
worlds:
  - {name: scenes, train: 24, test: 8, val: 4}
variants:
  - {name: with_itm, about: all objectives}
  - {name: without_itm, without: [itm]}
scores:
  - {name: recall, task: retrieval, metrics: [i2t_r1, t2i_r1]}
comparisons:
  - first: with_itm
    second: without_itm
    score: recall
    paper: {says: better with ITM, source: nobody, predicts: higher}
  - {first: with_itm, second: without_itm, score: flops_per_sample}
"""


@pytest.fixture
def mine(tmp_path):
    """Return a function that writes the study with other words, and gives its path."""

    def write(*changes):
        text = MINE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
