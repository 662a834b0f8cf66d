"""Dropout that draws its random bits four times as fast on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16


def dropout(x: Tensor, share: float) -> Tensor:
    """Set a share of the elements to 0 and scale the others so that the mean stays.

    On a CPU torch draws one 32-bit number an element, by one thread; here an element takes 16 bits
    of a 64-bit number. The share is rounded to a multiple of 2⁻¹⁶ and the scale is exact for it.

    Args:
        x: Any floating-point tensor.
        share: In [0, 1).
    """
    if share == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    dropped = round(share * _LEVELS)
    return (x * _keep(x, dropped)).mul_(_LEVELS / (_LEVELS - dropped))


def _keep(x: Tensor, dropped: int) -> Tensor:
    """Return ones and zeros like `x`; `dropped` of 65,536 equally likely values give a zero."""
    count = x.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)  # type: ignore[arg-type]
    bits = words.view(torch.int16)[:count].view(x.shape)
    kept = torch.empty(x.shape, dtype=x.dtype)
    return torch.ge(bits, dropped - _LEVELS // 2, out=kept)


class Dropout(nn.Module):
    """`dropout` in training, nothing in evaluation."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        return dropout(x, self.share) if self.training else x

    def extra_repr(self) -> str:
        """Show the share."""
        return f"{self.share}"
