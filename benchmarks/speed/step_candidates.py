"""Other ways of doing parts of a block's training step in bf16 on a CPU; none is in the library.

Each computes what the library does, to rounding, from the same random draws. `step_pieces.py` times
them beside the library's ways.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from triptych.nn.block import QUICK_GELU_SCALE

BF16 = torch.bfloat16
LEVELS = 1 << 16
"""Values of the 16 random bits by which the library's dropout keeps an element."""


def draw(x: Tensor, share: float) -> tuple[Tensor, int, float]:
    """Draw as `triptych.nn.dropout` does.

    Returns:
        Bits like `x`, int16; the least of them that keeps an element; the factor on what is kept.
    """
    dropped, count = round(share * LEVELS), x.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)  # type: ignore[arg-type]
    bits = words.view(torch.int16)[:count].view(x.shape)
    return bits, dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


class ByteDropout(Function):
    """Dropout that keeps its mask as a byte an element, where the library keeps two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        """Map a tensor to one of the same shape."""
        bits, least, ctx.scale = draw(x, share)
        kept = bits >= least
        ctx.save_for_backward(kept)
        return torch.where(kept, x, 0).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Return the gradient of the input."""
        (kept,) = ctx.saved_tensors
        return torch.where(kept, grad, 0).mul_(ctx.scale), None


class PostNorm(Function):
    """LN(x + dropout(f)) with one backward pass; the scale of dropout is part of the sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, weight: Tensor, bias: Tensor, eps: float, share: float
    ) -> Tensor:
        """Map states (..., D) fp32 and a sublayer's output (..., D) bf16 to states (..., D)."""
        bits, least, ctx.scale = draw(f, share)
        kept = torch.ge(bits, least, out=torch.empty_like(f))
        total = torch.add(x, f * kept, alpha=ctx.scale)
        normed, mean, rstd = torch.native_layer_norm(total, [x.shape[-1]], weight, bias, eps)
        ctx.save_for_backward(total, kept, mean, rstd, weight, bias)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of states, output, weight and bias."""
        total, kept, mean, rstd, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            grad, total, [total.shape[-1]], mean, rstd, weight, bias, [True, True, True]
        )
        df = torch.mul(dx, ctx.scale, out=torch.empty_like(kept)).mul_(kept)
        return dx, df, dweight, dbias, None, None


class PreNorm(Function):
    """(s, LN(s)) of s = x + f, LN(s) in bf16, with one backward pass that adds in place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, f: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Map states (..., D) fp32 and a sublayer's output (..., D) bf16 to both."""
        total = x + f
        normed, mean, rstd = torch.native_layer_norm(total, [x.shape[-1]], weight, bias, eps)
        ctx.save_for_backward(total, mean, rstd, weight, bias)
        return total, normed.to(f.dtype)

    @staticmethod
    def backward(ctx: Any, own: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of states, output, weight and bias."""
        total, mean, rstd, weight, bias = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            grad.to(total.dtype), total, [total.shape[-1]], mean, rstd, weight, bias, [True] * 3
        )
        dx.add_(own)
        return dx, dx.to(grad.dtype), dweight, dbias, None


class Attention(Function):
    """Scores, softmax, dropout and values with one backward pass.

    Keeps the probabilities and the mask, both in 16 bits, and not their product; the scale of
    dropout is part of the products; softmax and its gradient are written in place; the gradients of
    queries, keys and values go into one tensor.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None, share: float) -> Tensor:
        """Map (B, S, 3, H, K) bf16 to (B, S, H·K); the bias broadcasts to (B, H, S, S)."""
        batch, length, _, heads, width = qkv.shape
        query, key, value = qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2).unbind(0)
        ctx.sizes, ctx.scale = (batch, length, heads, width), 1 / math.sqrt(width)
        if bias is None:
            start, beta = query.new_zeros(()), 0.0
        else:
            start = bias.to(BF16).expand(batch, heads, -1, -1).flatten(0, 1)
            beta = 1.0
        scores = torch.baddbmm(start, query, key.transpose(1, 2), beta=beta, alpha=ctx.scale)
        if 12 * (length % 32) > length:  # as the library, where torch's bf16 kernel is slow
            scores.copy_(torch.softmax(scores, dim=-1, dtype=torch.float32))
        else:
            torch.softmax(scores, dim=-1, out=scores)
        mask, ctx.kept_scale, weights = None, 1.0, scores
        if share > 0.0:
            bits, least, ctx.kept_scale = draw(scores, share)
            mask = torch.ge(bits, least, out=torch.empty_like(bits)).neg_()
            weights = (scores.view(torch.int16) & mask).view(BF16)
        ctx.save_for_backward(query, key, value, scores, mask)
        read = _product(weights, value, ctx.kept_scale).view(batch, heads, length, width)
        return read.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Return the gradient of (B, S, 3, H, K)."""
        query, key, value, weights, mask = ctx.saved_tensors
        batch, length, heads, width = ctx.sizes
        grad = grad.view(batch, length, heads, width).transpose(1, 2).flatten(0, 1)
        into = torch.empty(3, *query.shape, dtype=query.dtype)
        kept = weights if mask is None else (weights.view(torch.int16) & mask).view(BF16)
        _product(kept.transpose(1, 2), grad, ctx.kept_scale, into[2])
        dweights = _product(grad, value.transpose(1, 2), ctx.kept_scale)
        if mask is not None:
            dweights.view(torch.int16).bitwise_and_(mask)
        torch.ops.aten._softmax_backward_data.out(
            dweights, weights, -1, dweights.dtype, grad_input=dweights
        )
        _product(dweights, key, ctx.scale, into[0])
        _product(dweights.transpose(1, 2), query, ctx.scale, into[1])
        split = into.view(3, batch, heads, length, width)
        return split.permute(1, 3, 0, 2, 4), None, None


def _product(first: Tensor, second: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """Return scale · first second of batches of matrices."""
    zero = first.new_zeros(())
    return torch.baddbmm(zero, first, second, beta=0, alpha=scale, out=out)  # type: ignore[call-overload, no-any-return]


def project_by_head(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return query, key and value (H·B, S, K) by a product a head, which nothing has to copy.

    Args:
        x: (B, S, D).
        weight: (3·D, D), of the packed projection.
        bias: (3·D,).
        heads: H.
    """
    batch, length, dim = x.shape
    flat = x.reshape(1, -1, dim).expand(3 * heads, -1, -1)
    by_head = weight.view(3 * heads, -1, dim).transpose(1, 2)  # (3·H, D, K)
    parts = torch.baddbmm(bias.view(3 * heads, 1, -1), flat, by_head)  # (3·H, B·S, K)
    return parts.view(3, heads * batch, length, -1).unbind(0)


def attend_by_head(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Return what self-attention reads, (B, S, D), without dropout and bias of the scores."""
    batch, length, _ = x.shape
    query, key, value = project_by_head(x, weight, bias, heads)
    scores = _product(query, key.transpose(1, 2), 1 / math.sqrt(query.shape[-1]))
    read = torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value)
    return read.view(heads, batch, length, -1).permute(1, 2, 0, 3).flatten(2)


def attend_by_image(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Return the same with products of each image on views of the projection, uncopied."""
    batch, length, _ = x.shape
    qkv = F.linear(x, weight, bias).view(batch, length, 3, heads, -1)
    read = []
    for image in qkv.unbind(0):
        query, key, value = image.permute(1, 2, 0, 3).unbind(0)  # each (H, S, K)
        scores = _product(query, key.transpose(1, 2), 1 / math.sqrt(query.shape[-1]))
        read.append(torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value))
    return torch.stack(read).transpose(1, 2).flatten(2)


class Feedforward(Function):
    """up, activation, down with one backward pass, which computes the activation again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        gelu: bool,
    ) -> Tensor:
        """Map (..., D) to (..., D) in bf16; QuickGELU is scaled as the library does.

        Args:
            ctx: Of autograd.
            x: (..., D) of any type.
            up: (F, D) fp32, and its bias.
            up_bias: (F,).
            down: (D, F) fp32, and its bias.
            down_bias: (D,).
            gelu: Whether the activation is GELU, or QuickGELU.
        """
        ctx.dtype, ctx.gelu, ctx.shape = x.dtype, gelu, x.shape
        ctx.scale = 1.0 if gelu else QUICK_GELU_SCALE
        flat = x.to(BF16).flatten(0, -2)
        up, down = up.to(BF16), down.to(BF16)
        hidden = torch.addmm(up_bias.to(BF16), flat, up.t())
        if not gelu:
            hidden.mul_(ctx.scale)
        ctx.save_for_backward(flat, hidden, up, down)
        found = torch.addmm(
            down_bias.to(BF16), _activate(hidden, gelu), down.t(), alpha=1 / ctx.scale
        )
        return found.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the input and of the weights."""
        flat, hidden, up, down = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        down_grad = torch.mm(grad.t(), _activate(hidden, ctx.gelu)).float().div_(ctx.scale)
        inner = torch.mm(grad, down)  # scale and 1 / scale cancel
        if ctx.gelu:
            inner = torch.ops.aten.gelu_backward(inner, hidden)
        else:
            inner = torch.ops.aten.silu_backward(inner, hidden)
        up_grad = torch.mm(inner.t(), flat).float()
        dx = torch.mm(inner, up).view(ctx.shape).to(ctx.dtype)
        return dx, up_grad, inner.sum(0).float(), down_grad, grad.sum(0).float(), None


def _activate(hidden: Tensor, gelu: bool) -> Tensor:
    return F.gelu(hidden) if gelu else F.silu(hidden)


@torch.no_grad()
def update_at_once(
    optimizer: torch.optim.AdamW, teacher: list[Tensor], momentum: float, factor: float
) -> None:
    """Clip by a factor, do AdamW's update and move the teacher, one parameter after another.

    What one of them reads is still in the cache for the next; the clipping is part of AdamW's
    kernel.

    Args:
        optimizer: Fused, with one group, whose moments exist.
        teacher: The averages, in the order of the parameters.
        momentum: Of the averages.
        factor: On the gradients.
    """
    group = optimizer.param_groups[0]
    scale = torch.tensor(1 / factor)
    for parameter, average in zip(group["params"], teacher, strict=True):
        state = optimizer.state[parameter]
        state["step"] += 1
        torch._fused_adamw_(
            *([parameter], [parameter.grad], [state["exp_avg"]], [state["exp_avg_sq"]], []),
            [state["step"]],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
            found_inf=None,
        )
        average.lerp_(parameter, 1 - momentum)
