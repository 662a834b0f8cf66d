"""Captioning and question answering against plain loops, one image and one token at a time."""

from dataclasses import replace

import pytest
import torch

from tests.tasks.finetuning.tiny import (
    images,
    plain_log_probs,
    plain_memory,
    tiny_model,
    tiny_tokenizer,
)
from triptych.core.errors import ConfigError, DataError
from triptych.generation.search import BeamConfig
from triptych.tasks.finetuning import text_generator as text_generator_module
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.vqa import VQA, VQAConfig

GREEDY = BeamConfig(num_beams=1, min_tokens=3, max_tokens=4)  # ends at the last token or not
PROMPT = "a picture of"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer)


def _ids(tokenizer, text):
    return tokenizer.encode([text], max_tokens=16)[0]


def _caption_batch(tokenizer, captions):
    ids, mask = tokenizer.pad([_ids(tokenizer, text) for text in captions])
    return {
        "image": images(len(captions)),
        "target_token_ids": ids,
        "target_mask": mask,
        "index": torch.arange(len(captions)),
    }


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_caption_loss_is_the_mean_over_the_words_after_the_prompt(model, tokenizer, prompt):
    captions = ["red star", "is it a blue circle ?"]
    batch = _caption_batch(tokenizer, captions)
    found = Captioning(model, CaptioningConfig(prompt=prompt), tokenizer).losses(
        batch, active=frozenset({"caption"})
    )
    start = [tokenizer.cls_id, *(_ids(tokenizer, prompt)[1:-1] if prompt else [])]
    said = []
    for image, caption in zip(batch["image"], captions, strict=True):
        memory = plain_memory(model, image[None], [tokenizer.cls_id])
        said += plain_log_probs(model, memory, start, _ids(tokenizer, caption)[1:])
    assert found["caption"].item() == pytest.approx(-sum(said) / len(said), abs=1e-5)


def _greedy_text(model, tokenizer, memory, start):
    """Say the likeliest word at each step, the end at the last one only."""
    said, words = [], range(tokenizer.vocab_size)
    for position in range(GREEDY.max_tokens):
        scores = [plain_log_probs(model, memory, [*start, *said], [word])[0] for word in words]
        if position < GREEDY.min_tokens:
            scores[tokenizer.sep_id] = -1e9
        said.append(max(words, key=scores.__getitem__))
        if said[-1] == tokenizer.sep_id:
            break
    return tokenizer.decode(said)


@pytest.mark.parametrize("prompt_to", ["decoder", "encoder"])
def test_the_prompt_is_read_by_whom_it_is_for_and_not_returned(model, tokenizer, prompt_to):
    config = CaptioningConfig(beam=GREEDY, prompt=PROMPT, prompt_to=prompt_to)
    batch = {"image": images(3), "index": torch.arange(3)}
    found = Captioning(model, config, tokenizer).predict(batch).texts
    words = _ids(tokenizer, PROMPT)[:-1]
    for image, text in zip(batch["image"], found, strict=True):
        read, start = [tokenizer.cls_id], words
        if prompt_to == "encoder":
            read, start = words, [tokenizer.cls_id]
        memory = plain_memory(model, image[None], read)
        assert text == _greedy_text(model, tokenizer, memory, start)
    plain = Captioning(model, replace(config, prompt=""), tokenizer).predict(batch).texts
    assert plain != found


@pytest.mark.parametrize(("memory", "own"), [("image", "fused"), ("model", "image")])
def test_image_memory_reads_neither_text_encoder_nor_fusion(tokenizer, memory, own):
    model = tiny_model(tokenizer, memory=own)
    config = CaptioningConfig(beam=GREEDY, memory=memory)
    batch = _caption_batch(tokenizer, ["red star", "a blue star"])
    before = Captioning(model, config, tokenizer)
    loss, texts = before.losses(batch, active=frozenset())["caption"], before.predict(batch).texts
    loss.backward()
    unread = [p.grad for part in (model.text_encoder, model.fusion) for p in part.parameters()]
    assert all(gradient is None for gradient in unread)
    for image, text in zip(batch["image"], texts, strict=True):
        with torch.no_grad():
            states = model.encode_image(image[None]).tokens
            projected = model.decoder.project_memory(states, None)
        assert text == _greedy_text(model, tokenizer, projected, [tokenizer.cls_id])


def test_fused_memory_reads_both(tokenizer):
    model = tiny_model(tokenizer)
    batch = _caption_batch(tokenizer, ["red star"])
    task = Captioning(model, CaptioningConfig(memory="fused"), tokenizer)
    task.losses(batch, active=frozenset())["caption"].backward()
    read = [p.grad for p in model.text_encoder.blocks.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in read)


def test_memories_that_do_not_exist_are_refused(tokenizer):
    model = tiny_model(tokenizer, memory="image")
    with pytest.raises(ConfigError, match="memory = 'fused': must be 'model' or 'image'"):
        Captioning(model, CaptioningConfig(memory="fused"), tokenizer)
    with pytest.raises(ConfigError, match="prompt_to = 'encoder': must be 'decoder'"):
        Captioning(model, CaptioningConfig(prompt="a", prompt_to="encoder"), tokenizer)


QUESTION = "is it a star ?"
ANSWERS = [["red", "blue star"], ["circle"], ["a red star", "blue", "red"]]
WEIGHTS = [[0.3, 0.7], [1.0], [0.2, 0.5, 0.3]]


def _question_batch(tokenizer, count=3):
    ids, mask = tokenizer.pad([_ids(tokenizer, QUESTION)] * count)
    return {
        "image": images(count),
        "token_ids": ids,
        "text_mask": mask,
        "index": torch.arange(count),
    }


def test_vqa_loss_weighs_the_answers_of_each_question(model, tokenizer):
    flat = [answer for answers in ANSWERS for answer in answers]
    ids, mask = tokenizer.pad([_ids(tokenizer, answer) for answer in flat])
    batch = _question_batch(tokenizer) | {
        "answer_token_ids": ids,
        "answer_mask": mask,
        "answer_weight": torch.tensor([w for weights in WEIGHTS for w in weights]),
        "answer_row": torch.tensor([0, 0, 1, 2, 2, 2]),
    }
    total = 0.0
    for image, answers, weights in zip(batch["image"], ANSWERS, WEIGHTS, strict=True):
        memory = plain_memory(model, image[None], _ids(tokenizer, QUESTION))
        for answer, weight in zip(answers, weights, strict=True):
            said = plain_log_probs(model, memory, [tokenizer.cls_id], _ids(tokenizer, answer)[1:])
            total -= weight * sum(said)
    found = VQA(model, VQAConfig(), tokenizer).losses(batch, active=frozenset({"vqa"}))
    assert found["vqa"].item() == pytest.approx(total / 3, abs=1e-4)


CHOICES = ("red star", "blue star", "Blue circle", "star circle", "a red star", "what ?")


def _likeliest(model, tokenizer, image):
    memory = plain_memory(model, image[None], _ids(tokenizer, QUESTION))
    scores = {}
    for answer in CHOICES:
        said = plain_log_probs(model, memory, [tokenizer.cls_id], _ids(tokenizer, answer)[1:])
        scores[answer] = sum(said)
    return max(CHOICES, key=scores.__getitem__)


@pytest.mark.parametrize("list_search", ["rank", "beam"])
def test_a_closed_list_gives_its_likeliest_answer(tokenizer, monkeypatch, list_search):
    beam = BeamConfig(num_beams=len(CHOICES), max_tokens=5)
    config = VQAConfig(answer_list=CHOICES, list_search=list_search, beam=beam)
    batch, seen = _question_batch(tokenizer, 5), set()
    for seed in range(6):
        model = tiny_model(tokenizer, seed=seed)
        expected = [_likeliest(model, tokenizer, image) for image in batch["image"]]
        seen |= set(expected)
        assert VQA(model, config, tokenizer).predict(batch).texts == expected
        with monkeypatch.context() as patch:  # two images at a time
            patch.setattr(text_generator_module, "SCORES_AT_ONCE", 2 * 6 * tokenizer.vocab_size)
            assert VQA(model, config, tokenizer).predict(batch).texts == expected
    assert len(seen) > 2


@pytest.mark.parametrize("list_search", ["rank", "beam"])
def test_a_narrow_search_stays_in_the_list(tokenizer, list_search):
    narrow = BeamConfig(num_beams=1, max_tokens=5)
    config = VQAConfig(answer_list=CHOICES, list_search=list_search, beam=narrow, rank_top_k=2)
    for seed in range(4):
        task = VQA(tiny_model(tokenizer, seed=seed), config, tokenizer)
        assert set(task.predict(_question_batch(tokenizer, 8)).texts) <= set(CHOICES)


def test_answers_without_a_token_are_refused(model, tokenizer):
    task = VQA(model, VQAConfig(answer_list=("red", "\u200b")), tokenizer)
    with pytest.raises(DataError, match="answer 1 of the list has no token"):
        task.predict(_question_batch(tokenizer))
    with pytest.raises(ConfigError, match="rank_top_k = 0"):
        VQAConfig(rank_top_k=0)
