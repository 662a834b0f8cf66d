"""Joint ITC and ITM of retrieval against both written out for two pairs."""

import math

import pytest
import torch

from tests.tasks.finetuning.tiny import images, tiny_model, tiny_tokenizer
from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.tasks.finetuning.retrieval import Retrieval, RetrievalConfig

CAPTIONS = ["red star", "is it a blue circle ?"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _batch(tokenizer):
    ids, mask = tokenizer.pad(tokenizer.encode(CAPTIONS, max_tokens=16))
    return {
        "image": images(2),
        "token_ids": ids,
        "text_mask": mask,
        "image_key": torch.tensor([1, 2]),
        "caption_key": torch.tensor([3, 4]),
        "index": torch.arange(2),
    }


@torch.no_grad()
def test_both_losses_of_two_pairs(tokenizer):
    """Each image's hardest wrong text is the other one, so ITM sees each wrong pair twice."""
    model, batch = tiny_model(tokenizer), _batch(tokenizer)
    task = Retrieval(model, RetrievalConfig(temperature=0.5, queue_size=0, momentum=0.0, alpha=0.0))
    found = task.losses(batch, active=frozenset({"itc", "itm", "mlm"}))
    assert set(found) == {"itc", "itm"}
    encoded = [model.encode_image(image[None]) for image in batch["image"]]
    texts = []
    for ids, mask in zip(batch["token_ids"], batch["text_mask"], strict=True):
        texts.append(model.encode_text(ids[mask][None], mask[mask][None]))
    vectors = [model.embed_image(i)[0] for i in encoded], [model.embed_text(t)[0] for t in texts]
    sims = [[float(i @ t) / 0.5 for t in vectors[1]] for i in vectors[0]]

    def cross_entropy(row, right):
        return math.log(sum(math.exp(value) for value in row)) - row[right]

    columns = [list(column) for column in zip(*sims, strict=True)]
    both_ways = [cross_entropy(rows[k], k) for rows in (sims, columns) for k in (0, 1)]
    assert found["itc"].item() == pytest.approx(sum(both_ways) / 4, abs=1e-5)

    def match(i, t):
        fused = model.fuse(
            ImageFeatures(encoded[i].tokens), TextFeatures(texts[t].tokens, texts[t].mask)
        )
        return model.match_logits(fused)[0].tolist()

    rows = [(match(k, k), 1) for k in (0, 1)]
    rows += 2 * [(match(k, 1 - k), 0) for k in (0, 1)]
    expected = sum(cross_entropy(scores, right) for scores, right in rows) / 6
    assert found["itm"].item() == pytest.approx(expected, abs=1e-5)
