"""Pieces of a block's training step in bf16: the library's way beside others; prints JSON.

The ways that were tried are in `step_candidates.py`; none is in the library. Each piece does the
forward and the backward pass at base width in autocast, from the same random draws, both ways in
turn in one thread; the results and gradients of both are compared first. `ratio` is the library's
time over the other's, and `saved` what the other would save of a whole block's two passes (of its
own time where the piece is whole blocks or the update). A processor that would emulate bf16
measures nothing.

    python -m benchmarks.speed.step_pieces
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed import step_candidates as candidates
from benchmarks.speed.mplug_timing import (
    CLOCKS,
    build_parser,
    median_ms,
    ratio_range,
    run_facts,
    speedup,
    start,
    time_in_turn,
)
from triptych.core.processes import keep_freed_memory
from triptych.nn.attention import SelfAttention, attend, merge_heads
from triptych.nn.block import Block, BlockConfig, FeedForward
from triptych.nn.dropout import dropout
from triptych.nn.kv_cache import MASKED
from triptych.nn.packing import TokenGrid
from triptych.train.step import clip_gradients

BF16 = torch.bfloat16
SHARE = 0.1
"""Of dropout."""

WORTH = 0.03
"""Share of a block's passes from which a way is worth its code."""

UPDATE = "update"
"""What follows the backward pass of a step, of which blocks are no part."""

Run = Callable[[], list[Tensor]]
"""Does both passes; returns results and gradients."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the pieces are measured at: base width, and micro-batches of 8 pairs.

    Attributes:
        width: D; the FFN has four times as many.
        heads: H.
        images: Rows of image tokens.
        tokens: Of an image.
        lengths: Of the other sequences that attention is measured at.
        texts: Rows of text; 3 objectives and the rows of ITM read several texts an image.
        words: Slots of a text.
        depth: Blocks that the error of a stream in bf16 adds up over.
        updated: Blocks whose weights are updated.
    """

    width: int = 768
    heads: int = 12
    images: int = 8
    tokens: int = 257
    lengths: tuple[int, ...] = (223, 287)
    texts: int = 40
    words: int = 30
    depth: int = 12
    updated: int = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece in two ways.

    Attributes:
        text: For the table.
        today: The library's way.
        tried: Another.
        whole: Name of the block that it is part of; None where it is whole blocks; or `UPDATE`.
        allowed: Largest gap of a result or gradient, as a share of its norm.
    """

    text: str
    today: Run
    tried: Run
    whole: str | None
    allowed: float = 0.01


def passes(
    run: Callable[..., Any], inputs: Sequence[Tensor], weights: Sequence[nn.Parameter] = ()
) -> Run:
    """Return a function that does both passes of `run` in autocast to bf16.

    Args:
        run: Maps the inputs to a tensor or a tuple of them.
        inputs: Have gradients, too.
        weights: That `run` reads, and whose gradients are returned.
    """
    grads: list[Tensor] = []

    def once() -> list[Tensor]:
        torch.manual_seed(0)
        leaves = [x.detach().requires_grad_() for x in inputs]
        for weight in weights:
            weight.grad = None
        with torch.autocast("cpu", BF16):
            found = run(*leaves)
        outputs = found if isinstance(found, tuple) else (found,)
        if not grads:
            draws = torch.Generator().manual_seed(1)
            grads.extend(torch.randn(y.shape, generator=draws).to(y.dtype) for y in outputs)
        torch.autograd.backward(outputs, grads)
        every = [*(y.detach() for y in outputs), *(x.grad for x in (*leaves, *weights))]
        return [tensor for tensor in every if tensor is not None]

    return once


def gap(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return how far tensors are apart at most, as a share of the norm of the second."""
    shares = [
        float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30))
        for a, b in zip(first, second, strict=True)
    ]
    return max(shares)


def split_norms(block: Block) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters of a block's norms, and the others."""
    norms = [
        p for part in block.children() if isinstance(part, nn.LayerNorm) for p in part.parameters()
    ]
    known = {id(p) for p in norms}
    return norms, [p for p in block.parameters() if id(p) not in known]


class Bench:
    """Blocks, states and pieces of some sizes."""

    def __init__(self, sizes: Sizes) -> None:
        torch.manual_seed(0)
        self.sizes = sizes
        width, heads = sizes.width, sizes.heads
        self.image_config = BlockConfig(
            embed_dim=width,
            num_heads=heads,
            activation="quick_gelu",
            pre_norm=True,
            norm_eps=1e-5,
            dropout=0.0,
            attention_dropout=SHARE,
        )
        self.image_block = Block(self.image_config)
        self.text_block = Block(BlockConfig(embed_dim=width, num_heads=heads))
        lengths = torch.randint(sizes.words // 2, sizes.words + 1, (sizes.texts,))
        mask = torch.arange(sizes.words) < lengths[:, None]
        self.bias = torch.where(mask, 0.0, MASKED)[:, None, None]
        self.grid = TokenGrid.of(mask, width)
        count = sizes.texts * sizes.words if self.grid.slots is None else int(mask.sum())
        self.text = torch.randn(count, width)
        self.image = torch.randn(sizes.images, sizes.tokens, width)

    def read_image(self, x: Tensor) -> Tensor:
        """Run the image block."""
        return self.image_block(x)  # type: ignore[no-any-return]

    def read_text(self, x: Tensor) -> Tensor:
        """Run the text block."""
        return self.text_block(x, self.bias, None, None, self.grid)  # type: ignore[no-any-return]

    def wholes(self) -> dict[str, Run]:
        """Return the library's blocks, by name; an image block for each length."""
        weights = list(self.image_block.parameters())
        found = {"text block": passes(self.read_text, [self.text], [*self.text_block.parameters()])}
        for length in (self.sizes.tokens, *self.sizes.lengths):
            x = torch.randn(self.sizes.images, length, self.sizes.width)
            found[f"image block, {length} tokens"] = passes(self.read_image, [x], weights)
        return found

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """Yield the pieces that need no compiler, by key."""
        yield from self.norms()
        yield from self.streams()
        yield from self.attentions()
        yield from self.layouts()
        yield "weights_once", self.weights_once()
        yield from self.feedforwards()
        yield "update", self.update()

    @property
    def image_whole(self) -> str:
        """Name of the image block of the usual length."""
        return f"image block, {self.sizes.tokens} tokens"

    def norms(self) -> Iterator[tuple[str, Piece]]:
        """Yield residual, dropout and norm, and the mask of dropout."""
        norm, eps = [nn.Parameter(p.detach()) for p in self.text_block.mlp_norm.parameters()], 1e-12
        size = [self.sizes.width]
        inputs = [self.text, torch.randn_like(self.text).to(BF16)]
        yield (
            "post_norm",
            Piece(
                f"LN(x + dropout(f)) as one operation, {len(self.text)} packed tokens",
                passes(
                    lambda x, f: F.layer_norm(x + dropout(f, SHARE), size, *norm, eps), inputs, norm
                ),
                passes(
                    lambda x, f: candidates.PostNorm.apply(x, f, *norm, eps, SHARE), inputs, norm
                ),
                "text block",
            ),
        )

        def pre_norm(x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
            total = x + f
            return total, F.layer_norm(total, size, *norm, 1e-5).to(BF16)

        pair = [self.image, torch.randn_like(self.image).to(BF16)]
        yield (
            "pre_norm",
            Piece(
                f"x + f and its norm in bf16 as one operation, {self.sizes.images} x "
                f"{self.sizes.tokens} tokens",
                passes(pre_norm, pair, norm),
                passes(lambda x, f: candidates.PreNorm.apply(x, f, *norm, 1e-5), pair, norm),
                self.image_whole,
            ),
        )
        yield (
            "byte_mask",
            Piece(
                "dropout of a sublayer, its mask as bytes",
                passes(lambda f: dropout(f, SHARE), inputs[1:]),
                passes(lambda f: candidates.ByteDropout.apply(f, SHARE), inputs[1:]),
                "text block",
            ),
        )

    def streams(self) -> Iterator[tuple[str, Piece]]:
        """Yield blocks with states in bf16, which changes what is computed.

        The gradients of their norms are left to `stream_errors`.
        """
        for name, (read, x, block) in self.blocks().items():
            weights = split_norms(block)[1]
            today, tried = (passes(read, [state], weights) for state in (x, x.to(BF16)))
            text = f"{name} block, states in bf16"
            yield f"stream_{name}", Piece(text, today, tried, None, allowed=0.03)

    def blocks(self) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor, Block]]:
        """Return both blocks: what runs them, their states, themselves."""
        return {
            "image": (self.read_image, self.image, self.image_block),
            "text": (self.read_text, self.text, self.text_block),
        }

    def attentions(self) -> Iterator[tuple[str, Piece]]:
        """Yield attention from the packed projection to the heads side by side."""
        sizes = self.sizes
        shapes = [(sizes.texts, sizes.words, "text block")]
        shapes += [
            (sizes.images, n, f"image block, {n} tokens") for n in (sizes.tokens, *sizes.lengths)
        ]
        for rows, length, whole in shapes:
            qkv = torch.randn(rows, length, 3, sizes.heads, sizes.width // sizes.heads).to(BF16)
            bias = self.bias if whole == "text block" else None
            for share in (0.0, SHARE):

                def today(qkv: Tensor, bias: Any = bias, share: float = share) -> Tensor:
                    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
                    return merge_heads(attend(query, key, value, bias, share))

                def tried(qkv: Tensor, bias: Any = bias, share: float = share) -> Tensor:
                    return candidates.Attention.apply(qkv, bias, share)  # type: ignore[no-any-return]

                named = "with" if share else "without"
                text = f"attention as one operation, {rows} x {length} tokens, {named} dropout"
                runs = passes(today, [qkv]), passes(tried, [qkv])
                yield f"attention_{length}_{named}_dropout", Piece(text, *runs, whole)

    def layouts(self) -> Iterator[tuple[str, Piece]]:
        """Yield self-attention without dropout, and without copies of heads."""
        attention = SelfAttention(self.sizes.width, self.sizes.heads)
        weights = list(attention.parameters())
        ways = {
            "layout_by_head": ("a product a head", candidates.attend_by_head),
            "layout_by_image": ("products on views of each image", candidates.attend_by_image),
        }
        today = passes(attention, [self.image], weights)
        for key, (text, way) in ways.items():

            def tried(x: Tensor, way: Any = way) -> Tensor:
                qkv = attention.qkv
                return attention.out(way(x, qkv.weight, qkv.bias, attention.num_heads))  # type: ignore[no-any-return]

            yield (
                key,
                Piece(
                    f"self-attention, no copy for heads: {text}",
                    today,
                    passes(tried, [self.image], weights),
                    self.image_whole,
                ),
            )

    def weights_once(self) -> Piece:
        """Return two micro-batches of an image block, its weights rounded once for both."""
        block, x = self.image_block, self.image
        names = dict(block.named_parameters())
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

        def today() -> list[Tensor]:
            torch.manual_seed(0)
            block.zero_grad()
            for _ in range(2):
                with torch.autocast("cpu", BF16):
                    y = block(x)
                y.backward(grad)
            return [p.grad for p in names.values() if p.grad is not None]

        def tried() -> list[Tensor]:
            torch.manual_seed(0)
            rounded = {
                name: p.detach().to(BF16) if p.dim() == 2 else p.detach()
                for name, p in names.items()
            }
            leaves = {name: p.requires_grad_() for name, p in rounded.items()}
            sums: dict[str, Tensor] = {}
            for _ in range(2):
                with torch.autocast("cpu", BF16):
                    y = torch.func.functional_call(block, leaves, (x,))
                for name, part in zip(
                    leaves, torch.autograd.grad(y, [*leaves.values()], grad), strict=True
                ):
                    sums[name] = sums[name].add_(part) if name in sums else part.float()
            return list(sums.values())

        return Piece("image block, two micro-batches, weights rounded once", today, tried, None)

    def feedforwards(self) -> Iterator[tuple[str, Piece]]:
        """Yield the FFN of both blocks, and the way that `recompute_cheap` takes."""
        for name, (_, states, block) in self.blocks().items():
            mlp, x = block.mlp, states.to(BF16)
            weights = list(mlp.parameters())  # up, its bias, down, its bias
            whole = "text block" if name == "text" else self.image_whole
            gelu = mlp.activation == "gelu"

            def tried(x: Tensor, weights: Any = weights, gelu: bool = gelu) -> Tensor:
                return candidates.Feedforward.apply(x, *weights, gelu)  # type: ignore[no-any-return]

            today = passes(mlp, [x], weights)
            text = f"FFN as one operation, {'GELU' if gelu else 'QuickGELU'} computed again"
            yield f"ffn_{name}", Piece(text, today, passes(tried, [x], weights), whole)
            if gelu:
                again = FeedForward(BlockConfig(embed_dim=x.shape[-1], num_heads=1))
                again.load_state_dict(mlp.state_dict())
                again.recompute_cheap = True
                run = passes(again, [x], list(again.parameters()))
                text = "FFN, GELU computed again as `recompute_cheap` does"
                yield "ffn_recompute", Piece(text, today, run, whole)

    def update(self) -> Piece:
        """Return clipping, AdamW and the teacher's average, in one pass over memory."""
        blocks = [Block(self.image_config) for _ in range(self.sizes.updated)]
        shapes = [p.detach() for block in blocks for p in block.parameters()]
        sides = []
        for _ in range(2):
            weights = [nn.Parameter(p.clone()) for p in shapes]
            optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
            draws = torch.Generator().manual_seed(1)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draws)
            optimizer.step()  # makes the moments
            sides.append((weights, optimizer, [p.detach().clone() for p in weights]))

        def run(side: int) -> Run:
            weights, optimizer, teacher = sides[side]

            def once() -> list[Tensor]:
                gradients = [p.grad for p in weights if p.grad is not None]
                norm = float(nn.utils.get_total_norm(gradients))
                if side == 0:
                    clip_gradients(gradients, norm, 0.9 * norm)
                    optimizer.step()
                    with torch.no_grad():
                        torch._foreach_lerp_(teacher, [p.detach() for p in weights], 0.005)
                else:
                    candidates.update_at_once(optimizer, teacher, 0.995, 0.9)
                return [*(p.detach() for p in weights), *teacher]

            return once

        text = f"clipping, AdamW and teacher together, {self.sizes.updated} blocks"
        return Piece(text, run(0), run(1), UPDATE)

    def compiled(self) -> Iterator[tuple[str, Piece]]:
        """Yield blocks through torch.compile, with the draws of the others."""
        import torch._inductor.config

        torch._inductor.config.fallback_random = True
        for name, (read, x, block) in self.blocks().items():
            weights = list(block.parameters())
            runs = passes(read, [x], weights), passes(torch.compile(read), [x], weights)
            yield f"compile_{name}", Piece(f"{name} block, torch.compile", *runs, None)

    def head_copies(self) -> dict[str, float]:
        """Return how many copies of one (B, H, S, K) a library's image block makes, and their ms.

        Queries, keys, values, what they read, and the gradients of these.
        """
        run = passes(self.read_image, [self.image], list(self.image_block.parameters()))
        run()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            run()
        sizes = self.sizes
        shape = [sizes.images, sizes.heads, sizes.tokens, sizes.width // sizes.heads]
        copies = [
            event.self_cpu_time_total / 1000
            for event in profiler.events()
            if event.name == "aten::copy_" and event.input_shapes[0] == shape
        ]
        return {"count": len(copies), "ms": round(sum(copies), 2)}

    def stream_errors(self) -> dict[str, Any]:
        """Return what states in bf16 do to the numbers.

        Returns:
            Gaps to fp32 after a stack of image blocks, with states in fp32 and in bf16; and of the
            gradients of a block's norms, which torch sums up in bf16 where states are bf16.
        """
        blocks = [Block(self.image_config).eval() for _ in range(self.sizes.depth)]
        errors: dict[str, Any] = {"norm_gradients": {}}
        with torch.no_grad():
            exact = nn.Sequential(*blocks)(self.image)
            for name, x in (("fp32", self.image), ("bf16", self.image.to(BF16))):
                with torch.autocast("cpu", BF16):
                    errors[name] = round(gap([nn.Sequential(*blocks)(x)], [exact]), 5)
        for name, (read, x, block) in self.blocks().items():
            norms = split_norms(block)[0]
            found, exact = (passes(read, [s], norms)()[2:] for s in (x.to(BF16), x))
            errors["norm_gradients"][name] = round(gap(found, exact), 4)
        return errors


def measure_piece(piece: Piece, wholes_ms: dict[str, float], rounds: int) -> dict[str, Any]:
    """Compare and time a piece.

    Raises:
        AssertionError: The two ways do not compute the same.
    """
    apart = gap(piece.tried(), piece.today())
    assert apart <= piece.allowed, f"{piece.text}: the two ways are {apart:.2g} apart"
    seconds = time_in_turn({"today": piece.today, "tried": piece.tried}, rounds, CLOCKS["cpu"])
    ms, ratio = median_ms(seconds), speedup(seconds, "today", "tried")
    alone = piece.whole is None or piece.whole == UPDATE
    whole_ms = ms["today"] if alone else wholes_ms[str(piece.whole)]
    return {
        "text": piece.text,
        "whole": piece.whole,
        "today_ms": ms["today"],
        "tried_ms": ms["tried"],
        "ratio": ratio,
        "range": ratio_range(seconds, "today", "tried"),
        "saved": round((1 - 1 / ratio) * ms["today"] / whole_ms, 4),
        "apart": float(f"{apart:.2g}"),
    }


def measure(bench: Bench, rounds: int, *, compile_blocks: bool) -> dict[str, Any]:
    """Return all figures."""
    wholes = time_in_turn(bench.wholes(), rounds, CLOCKS["cpu"])
    wholes_ms = median_ms(wholes)
    found = {key: measure_piece(piece, wholes_ms, rounds) for key, piece in bench.pieces()}
    if compile_blocks:
        for key, piece in bench.compiled():
            found[key] = measure_piece(piece, wholes_ms, rounds)
    return {
        "most_saved_by_a_piece": max(p["saved"] for p in found.values() if p["whole"] != UPDATE),
        "pieces": found,
        "wholes_ms": wholes_ms,
        "head_copies": bench.head_copies(),
        "stream_errors": bench.stream_errors(),
        "compiled": compile_blocks,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser(__doc__, rounds=9)
    parser.set_defaults(needs="bf16", clock="cpu", num_threads=1)
    options = start(parser, arguments)
    if options.clock != "cpu" or options.num_threads != 1:
        parser.error("--clock, --num-threads: the pieces are timed in one thread's own seconds")
    keep_freed_memory()
    compiler = shutil.which("g++") is not None
    print(
        json.dumps(
            measure(Bench(Sizes()), options.rounds, compile_blocks=compiler) | run_facts(options)
        )
    )


if __name__ == "__main__":
    main()
