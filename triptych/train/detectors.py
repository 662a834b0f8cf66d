"""The detectors of the run doctor: pure functions of a run's history, and their table.

Thresholds come from chance values and from what a number means, and are the same for all tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

from triptych.train.doctor import Detector, Finding
from triptych.train.history import Curve, History, middle

AT_CHANCE = 0.95
"""Share of the chance value: a loss above it has gained less than a twentieth from its input."""

LEARNED = 0.8
"""Share of its chance value, or of its first one, below which a loss has learned something."""

COLLAPSED_COSINE, COLLAPSED_RANK = 0.98, 1.5
"""Beyond these, embeddings have one direction, or differ along one line."""

FEW = 5
"""Lines that a state must last before it is told."""

SPIKE, BURST = 10.0, 100.0
"""A gradient norm so many times the median of the lines before it: thrice, or once."""

EXPLODED = 30.0
"""Gradient norm relative to its level before, while the loss does not fall."""

STARVED = 0.4
"""Share of the time that is spent waiting for data: the run could be 1.7 times as fast."""

REWRITTEN = 0.1
"""Change of the weights in one step, relative to their norm: ten steps replace them."""

UNMOVED = 0.01
"""Change of the weights in a whole run, if all steps went the same way, relative to their norm."""

GAP = 1.1
"""A validation loss relative to its best, from which on training harms more than it helps."""

ADVICE = {
    "contrastive": (
        "Check first that each caption belongs to its image (`triptych data check`); then try "
        "another learning rate, or a larger batch"
    ),
    "matching": (
        "ITM needs embeddings that can tell pairs apart: look at the contrastive loss first, and "
        "give it a head start with `weights` if it is still high"
    ),
    "labels": (
        "The loss is what label frequencies alone give: check that the image and the text reach "
        "the model, and try another learning rate"
    ),
}


def not_finite(history: History) -> Iterator[Finding]:
    """Tell of numbers that are NaN or infinite."""
    if history.not_finite is not None:
        step, name = history.not_finite
        yield Finding(
            name="not_finite",
            where=name,
            evidence=f"{name} is NaN or infinite at step {step:,}",
            value=step,
            next_step="Go back to the last checkpoint with a lower learning rate, a longer "
            "warm-up, a smaller train.max_grad_norm, or train.precision fp32",
        )


def at_chance(history: History) -> Iterator[Finding]:
    """Tell of losses that are what a model gets which ignores its input."""
    for name, curve in history.objectives().items():
        chance = history.chance(name)
        if not chance or not history.is_judged(curve) or curve.level() < AT_CHANCE * chance:
            continue
        source = history.facts.chances.get(name)
        kind, what = "labels", f"{chance:.3f}, the entropy of its labels"
        if source is not None and source.columns:
            columns = f"ln {round(math.exp(chance)):,}"
            kind, what = "contrastive", f"{chance:.3f} = {columns}, that of equal similarities"
        elif source is not None and source.match_share is not None:
            share = f"{source.match_share:.0%} are matches"
            kind, what = "matching", f"{chance:.3f} where {share}; ln 2 = 0.693 for equal scores"
        elif source is not None and source.outputs is not None:
            what = f"{chance:.3f}, that of equal outputs"
        yield Finding(
            name="at_chance",
            where=name,
            evidence=f"the loss is {curve.level():.3f}; by chance it is {what}",
            value=curve.level(),
            chance=chance,
            next_step=ADVICE[kind],
        )


def unrelated_pairs(history: History) -> Iterator[Finding]:
    """Tell of pairs that do not belong together: texts are learned, their images are not."""
    if any(True for cause in (*_INPUT_CAUSES, learning_rate_high) for _ in cause(history)):
        return  # these explain it
    stuck = {finding.where: finding for finding in at_chance(history)}
    learned = {
        name: curve
        for name, curve in history.objectives().items()
        if _is_of_words(history, name) and history.is_judged(curve) and _has_learned(history, name)
    }
    for name in history.contrastive().keys() & stuck.keys() if learned else ():
        word, curve = next(iter(learned.items()))
        yield Finding(
            name="unrelated_pairs",
            where=name,
            evidence=f"{stuck[name].evidence}, while {word} fell from {curve.values[0]:.3f} to "
            f"{curve.level():.3f}: the texts can be learned, but not which image they belong to",
            value=stuck[name].value,
            chance=stuck[name].chance,
            next_step="Look at some pairs of the data: captions that moved by a line, a wrong "
            "image_root or a wrong join of two files pair images with the captions of others",
        )


def collapsed(history: History) -> Iterator[Finding]:
    """Tell of embeddings that are all the same.

    In a run that learns, they may well differ along few lines for a while.
    """
    stuck = any(finding.where in history.contrastive() for finding in at_chance(history))
    for side in ("image", "text"):
        cosine = history.curve(f"embedding/{side}_cosine")
        rank = history.curve(f"embedding/{side}_rank")
        if len(cosine) < FEW or len(rank) < FEW:
            continue
        equal = min(cosine.recent()) > 1 - 1e-4
        flat = cosine.level() > COLLAPSED_COSINE or (stuck and rank.level() < COLLAPSED_RANK)
        if equal or (flat and history.is_judged(cosine)):
            yield Finding(
                name="collapsed_embeddings",
                where=side,
                evidence=f"two {side}s have a mean cosine of {cosine.level():.4f}, and the "
                f"embeddings an effective rank of {rank.level():.1f}",
                value=cosine.level(),
                chance=0.0,
                next_step=f"Check that the {side}s of a batch differ and reach the encoder; else "
                "lower the learning rate, or lengthen the warm-up",
            )


def constant_images(history: History) -> Iterator[Finding]:
    """Tell of batches whose images are all equal."""
    spread = history.curve("input/image_spread")
    if len(spread) >= FEW and max(spread.recent()) < 1e-6:
        yield Finding(
            name="constant_images",
            evidence=f"the pixels of a batch's images differ by {spread.level():.1g}",
            value=spread.level(),
            next_step="Open some images as training reads them: a wrong column, a placeholder for "
            "missing files, or a transform that leaves nothing makes them equal",
        )


def equal_texts(history: History) -> Iterator[Finding]:
    """Tell of batches whose texts are all equal."""
    distinct = history.curve("input/distinct_texts")
    if history.contrastive() and len(distinct) >= FEW and max(distinct.recent()) <= 1:
        yield Finding(
            name="equal_texts",
            evidence="all captions of a batch are the same text",
            value=1.0,
            next_step="Name the right column with the captions; a template without the part that "
            "differs, or a cleaning that removes all, makes them equal",
        )


def frozen_images(history: History) -> Iterator[Finding]:
    """Tell of an image encoder that reads images and never changes."""
    image, rest = history.curve("update/image"), history.curve("update/rest")
    reads = len(history.curve("input/image_spread")) >= FEW and not history.facts.has_frozen
    if reads and len(image) >= FEW and max(image.values) == 0 and middle(rest.recent()) > 0:
        yield Finding(
            name="frozen_image_encoder",
            evidence=f"no weight of the image encoder has changed in {history.step:,} steps, while "
            f"others change by {middle(rest.recent()):.1e} a step",
            value=0.0,
            next_step="Check optim.vision_learning_rate, and what sets requires_grad or detaches",
        )


def temperature(history: History) -> Iterator[Finding]:
    """Tell of a temperature at its clamp, or one that never moves."""
    tau = history.curve("temperature")
    if len(tau) < FEW:
        return
    low, high = (history.curve(f"temperature/{end}") for end in ("min", "max"))
    recent = tau.recent(FEW)
    for end, bound in (("lowest", low), ("highest", high)):
        if bound and all(abs(t - bound.values[-1]) <= 1e-3 * bound.values[-1] for t in recent):
            yield Finding(
                name="temperature_at_clamp",
                evidence=f"the temperature is {recent[-1]:.4g}, the {end} that is allowed",
                value=recent[-1],
                chance=bound.values[-1],
                next_step="Widen task.min_temperature and task.max_temperature (FLAVA: "
                "task.max_logit_scale); at the lowest, look for repeated captions that make "
                "negatives of positives",
            )
            return
    if len(set(tau.values)) == 1 and _has_steps(tau):
        yield Finding(
            name="temperature_stuck",
            evidence=f"the temperature has been exactly {recent[-1]:.4g} since the first step",
            value=recent[-1],
            next_step="Check that it is in the optimizer and has a gradient",
        )


def stale_queue(history: History) -> Iterator[Finding]:
    """Tell of a feature queue that gets nothing new."""
    filled, newest = history.curve("queue/filled"), history.curve("queue/newest")
    if len(filled) < FEW or not history.contrastive():
        return
    if max(filled.values) == 0 or len(set(newest.recent(FEW))) == 1:
        state = f"still holds {filled.values[-1]:,.0f} pairs, none of them new"
        yield Finding(
            name="stale_queue",
            evidence=f"after {history.step:,} steps the feature queue {state}",
            value=filled.values[-1],
            next_step="The embeddings of each step must be pushed in `after_step`; without new "
            "negatives set task.queue_size 0",
        )


def stale_teacher(history: History) -> Iterator[Finding]:
    """Tell of a momentum teacher that does not follow the model."""
    norm, distance = history.curve("teacher/norm"), history.curve("teacher/distance")
    if len(norm) < FEW or history.is_at_rest() or len(set(norm.recent(FEW))) > 1:
        return
    yield Finding(
        name="stale_teacher",
        evidence=f"the teacher's weights have not changed over {FEW} lines; they are "
        f"{distance.level():.1%} away from the model's",
        value=distance.level(),
        next_step="The teacher must be moved in `after_step`; check task.momentum",
    )


def gradients(history: History) -> Iterator[Finding]:
    """Tell of gradient norms that jump, or that grow without a gain."""
    largest = history.curve("grad_norm_max") or history.curve("grad_norm")
    jumps = _jumps(largest, history.curve("loss/total"))
    if len(jumps) >= 3 or any(ratio >= BURST for _, ratio in jumps):
        step, ratio = max(jumps, key=lambda jump: jump[1])
        yield Finding(
            name="gradient_spikes",
            evidence=f"{len(jumps)} lines with a gradient norm {SPIKE:.0f} times the median before "
            f"it or more; the largest, {ratio:,.0f} times, by step {step:,}",
            value=ratio,
            chance=1.0,
            next_step="Lower train.max_grad_norm or the learning rate, raise optim.warmup_steps; "
            "if they recur at the same samples, look at these",
        )
    norm, total = history.curve("grad_norm"), history.curve("loss/total")
    if len(norm) < 3 * FEW or not total:
        return
    before, now = middle(norm.values[: len(norm) // 2]), middle(norm.recent(FEW))
    best = min(_means(total.values[: len(total) // 2]))
    if before > 0 and now > EXPLODED * before and fmean(total.recent(FEW)) >= best:
        yield Finding(
            name="exploding_gradient",
            evidence=f"the gradient norm has grown from {before:.3g} to {now:.3g}, and the loss "
            "has not fallen below what it was",
            value=now,
            chance=before,
            next_step="Set train.max_grad_norm 1, lower the learning rate; look for a loss or a "
            "layer scale that grows without bound",
        )


def dead_losses(history: History) -> Iterator[Finding]:
    """Tell of losses that never change, and of sources that teach nothing."""
    curves = {f"loss/{name}": curve for name, curve in history.objectives().items()}
    of_sources = history.under("source/")
    curves |= {
        f"source/{name}": curve
        for name, curve in of_sources.items()
        if not name.endswith(("/steps", "/total"))
    }
    for name, curve in curves.items():
        if len(curve) >= FEW and _has_steps(curve) and len(set(curve.values)) == 1:
            yield Finding(
                name="dead_loss",
                where=name.removeprefix("loss/"),
                evidence=f"the loss has been exactly {curve.values[-1]:.4g} since its first step",
                value=curve.values[-1],
                next_step="Nothing is learned from it: check the labels, masks and columns that it "
                "reads, or set its weight to 0",
            )
    for name, curve in of_sources.items():
        source = name.removesuffix("/steps")
        if source != name and len(curve) >= FEW and _has_steps(curve) and curve.values[-1] == 0:
            yield Finding(
                name="dead_source",
                where=source,
                evidence=f"none of {history.step:,} steps drew a batch of it",
                value=0.0,
                next_step="Raise its ratio in data.train, or remove it",
            )
    yield from _slow_sources(history)


def _slow_sources(history: History) -> Iterator[Finding]:
    """Tell of a source whose loss stays where it began while others' same loss fell."""
    losses: dict[str, dict[str, Curve]] = {}
    for name, curve in history.under("source/").items():
        source, _, objective = name.rpartition("/")
        if objective not in ("steps", "total") and history.is_judged(curve):
            losses.setdefault(objective, {})[source] = curve
    for objective, curves in losses.items():
        if not any(curve.level() < LEARNED * curve.values[0] for curve in curves.values()):
            continue
        for source, curve in curves.items():
            if curve.level() >= AT_CHANCE * curve.values[0]:
                yield Finding(
                    name="dead_source",
                    where=f"{source}/{objective}",
                    evidence=f"its loss is {curve.level():.3f} and was {curve.values[0]:.3f} at "
                    "first, while the same loss of other sources fell",
                    value=curve.level(),
                    chance=curve.values[0],
                    next_step="Look at some of its samples (`triptych data check`)",
                )


def starved(history: History) -> Iterator[Finding]:
    """Tell of a run that waits for its data."""
    waiting = history.curve("data_wait_share")
    share = middle(waiting.recent())
    if len(waiting) >= FEW and _has_steps(waiting) and share > STARVED:
        yield Finding(
            name="data_starved",
            evidence=f"{share:.0%} of the time is spent waiting for batches: with data at hand a "
            f"step would take {1 - share:.0%} of its time",
            value=share,
            chance=0.0,
            next_step="Raise data.num_workers; make the images no larger than the model reads, and "
            "write shards of them with `triptych data shard`",
        )


def overfitting(history: History) -> Iterator[Finding]:
    """Tell of a validation loss that rises while the training loss falls."""
    for name, curve in history.under("val/loss/").items():
        trained = history.curve(f"loss/{name}")
        if len(curve) < 4 or not trained:
            continue
        best = min(curve.values)
        best_step = curve.steps[curve.values.index(best)]
        after = curve.values[curve.values.index(best) + 1 :]
        then = [v for s, v in zip(trained.steps, trained.values, strict=True) if s <= best_step]
        worse = len(after) >= 2 and best > 0 and min(after[-2:]) > GAP * best
        if worse and then and trained.level() < fmean(then[-10:]):
            yield Finding(
                name="train_test_gap",
                where=name,
                evidence=f"on held-out data the loss was {best:.3f} after step {best_step:,} and "
                f"is {after[-1]:.3f} now; in training it is {trained.level():.3f}",
                value=after[-1],
                chance=best,
                next_step="Take `best/`; stop earlier with validation.patience, or train on more "
                "data or with more augmentation",
            )


def learning_rate_high(history: History) -> Iterator[Finding]:
    """Tell of steps that replace the weights, and of losses that rise above their start."""
    update = history.curve("update/rest")
    evidence, value, usual = "", 0.0, None
    large = [change for change in update.values if change > REWRITTEN]
    if len(large) >= 2:  # it falls by itself as the weights grow
        value = max(large)
        evidence = f"a step changed the weights by {value:.0%} of their norm"
    objectives = history.objectives()
    for name, curve in objectives.items():
        if name not in history.facts.chances and len(objectives) > 1:
            continue  # a regulariser may rise while the others fall
        start = max(curve.values[0], history.chance(name) or 0.0)
        if len(curve) >= 2 * FEW and start > 0 and middle(curve.recent()) > 1.2 * start:
            value, usual = middle(curve.recent()), start
            evidence = f"{name} is {value:.3f}, above the {start:.3f} that it began with" + (
                f", and {evidence}" if evidence else ""
            )
            break
    if evidence:
        yield Finding(
            name="learning_rate_high",
            evidence=evidence,
            value=value,
            chance=usual,
            next_step="Lower optim.learning_rate (and optim.muon_learning_rate) by a factor of 10, "
            "and see whether the losses fall",
        )


def learning_rate_low(history: History) -> Iterator[Finding]:
    """Tell of a learning rate at which the weights cannot get anywhere in this run."""
    update, total = history.curve("update/rest"), history.curve("loss/total")
    if len(update) < FEW or history.warm_from() is None or not _has_steps(update):
        return
    steps = history.facts.max_steps or history.step
    reach = max(update.values) * steps
    if 0 < reach < UNMOVED and total.level() > AT_CHANCE * total.values[0]:
        yield Finding(
            name="learning_rate_low",
            evidence=f"in {steps:,} steps the weights can change by {reach:.2%} of their norm at "
            f"most; the loss was {total.values[0]:.3f} and is {total.level():.3f}",
            value=reach,
            next_step="Raise optim.learning_rate by a factor of 10",
        )


def match_labels(history: History) -> Iterator[Finding]:
    """Tell of ITM labels that are not those which the task makes."""
    for name, source in history.facts.chances.items():
        seen, share = history.curve(f"share/{name}"), source.match_share
        if share is None or len(seen) < FEW:
            continue
        if abs(fmean(seen.values) - (1 - share)) < abs(1 - 2 * share) / 4:
            yield Finding(
                name="swapped_labels",
                where=name,
                evidence=f"{fmean(seen.values):.0%} of the labels say that a pair matches, where "
                f"the task makes {share:.0%} matches: 1 and 0 have changed places",
                value=fmean(seen.values),
                chance=share,
                next_step="Label a matching pair 1 and a wrong one 0",
            )


_INPUT_CAUSES = (constant_images, equal_texts)


def _is_of_words(history: History, name: str) -> bool:
    source = history.facts.chances.get(name)
    return source is not None and source.labels is not None


def _has_learned(history: History, name: str) -> bool:
    curve = history.objectives()[name]
    start = history.chance(name) or curve.values[0]
    return curve.level() < LEARNED * start


def _has_steps(curve: Curve) -> bool:
    """Return whether a curve spans enough steps for a state to mean something."""
    return curve.steps[-1] - curve.steps[0] >= 40


def _means(values: list[float]) -> list[float]:
    """Return the means of each few values in a row."""
    width = min(FEW, len(values))
    return [fmean(values[at : at + width]) for at in range(len(values) - width + 1)]


def _jumps(norm: Curve, total: Curve) -> list[tuple[int, float]]:
    """Return (step, ratio) of norms far above the median of the 20 lines before.

    Where learning takes off, the norm grows too, but the loss falls: that is no jump.
    """
    losses = dict(zip(total.steps, total.values, strict=True))
    found = []
    for at in range(max(10, len(norm) - 50), len(norm)):
        before = middle(norm.values[max(0, at - 20) : at])
        earlier = [losses[s] for s in norm.steps[max(0, at - 5) : at] if s in losses]
        falls = bool(earlier) and losses.get(norm.steps[at], 0.0) < middle(earlier)
        if before > 0 and norm.values[at] >= SPIKE * before and not falls:
            found.append((norm.steps[at], norm.values[at] / before))
    return found


DETECTORS = (
    Detector(looks_for="losses that are not finite", look=not_finite, needs=("loss/",)),
    Detector(looks_for="images that are all equal", look=constant_images, needs=("input/image_",)),
    Detector(
        looks_for="captions that are all equal",
        look=equal_texts,
        needs=("input/distinct_texts",),
        contrastive=True,
    ),
    Detector(looks_for="swapped labels of matches", look=match_labels, needs=("share/",)),
    Detector(looks_for="a frozen image encoder", look=frozen_images, needs=("update/image",)),
    Detector(looks_for="too high a learning rate", look=learning_rate_high, needs=("update/",)),
    Detector(looks_for="too low a learning rate", look=learning_rate_low, needs=("update/",)),
    Detector(looks_for="jumping or growing gradients", look=gradients, needs=("grad_norm",)),
    Detector(
        looks_for="pairs that do not belong together",
        look=unrelated_pairs,
        needs=("loss/",),
        contrastive=True,
    ),
    Detector(looks_for="losses at their chance value", look=at_chance, needs=("loss/",)),
    Detector(
        looks_for="collapsed embeddings", look=collapsed, needs=("embedding/",), contrastive=True
    ),
    Detector(
        looks_for="a temperature at its clamp",
        look=temperature,
        needs=("temperature",),
        contrastive=True,
    ),
    Detector(looks_for="a stale queue", look=stale_queue, needs=("queue/",), contrastive=True),
    Detector(looks_for="a stale teacher", look=stale_teacher, needs=("teacher/",)),
    Detector(looks_for="losses and sources that teach nothing", look=dead_losses, needs=("loss/",)),
    Detector(looks_for="waiting for data", look=starved, needs=("data_wait_share",)),
    Detector(
        looks_for="a gap between training and validation",
        look=overfitting,
        needs=("val/",),
        always=True,
    ),
)
"""Causes stand before the consequences that they explain."""
