"""Low-rank adaptation (LoRA; Hu et al. 2021, arXiv:2106.09685): W stays, B A beside it is trained.

An adapted layer holds W under the name that it had, so that a state dict without `lora_A` and
`lora_B` is that of the model before. Its `weight` is W alone, as in peft: what uses a part of a
linear layer goes by `linear_rows`, and what folds something into its weight must not do so here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from triptych.core.config import check, check_range
from triptych.core.errors import ConfigError
from triptych.core.patterns import select_names
from triptych.nn.dropout import Dropout


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """Low-rank adaptation: the model's weights stay, two small matrices a layer are trained.

    Attributes:
        rank: Rank of the change of each adapted matrix; None trains the weights themselves.
        alpha: The change is alpha / rank times the product of both matrices; None is twice the
            rank.
        dropout: Share of an adapted layer's inputs that its low-rank part does not see in training.
        targets: Which linear layers are adapted: patterns over the names of the model's modules,
            such as "attention.qkv", "text_encoder" or "fusion.blocks.*.mlp". "blocks" is all
            linear layers of all blocks.
        also: Parameters that are trained in full: patterns over the names of parameters, such as
            "embedding" for words that pre-training never saw, or "*norm*".
        save: What the run's model folder holds: "merged", weights with the change in them, or
            "beside", weights without it, and what was trained in peft's files beside them.
    """

    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("blocks",)
    also: tuple[str, ...] = ()
    save: Literal["merged", "beside"] = "merged"

    def __post_init__(self) -> None:
        """Reject sizes that no layer has, and settings of an adaptation that is off."""
        check_range("lora.rank", self.rank, 1, 65_536)
        if self.alpha is not None:
            is_positive = math.isfinite(self.alpha) and self.alpha > 0
            check(is_positive, "lora.alpha", self.alpha, "be above 0, or absent")
        check(0 <= self.dropout < 1, "lora.dropout", self.dropout, "be in [0, 1)")
        check(bool(self.targets), "lora.targets", self.targets, "name at least one layer")
        if self.rank is None:
            for field in fields(self):
                must = "be absent without a rank: give one with --lora.rank 16"
                value = getattr(self, field.name)
                check(value == field.default, f"lora.{field.name}", value, must)

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        assert self.rank is not None, "there is an adaptation"
        return 2.0 if self.alpha is None else self.alpha / self.rank


class LoRALinear(nn.Module):
    """A linear layer whose weight stays, with a trained change of low rank.

    Args:
        linear: The layer; its parameters are taken over under their names.
        rank: Rank r of the change.
        scaling: alpha / r.
        dropout: Share of inputs that the low-rank part does not see in training.
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, rank: int, scaling: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scaling = scaling
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.lora_A = nn.Parameter(linear.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as in peft and the released code
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D_in) to (..., D_out)."""
        return self.rows(x, None, self.bias)

    def rows(self, x: Tensor, rows: slice | None, bias: Tensor | None) -> Tensor:
        """Return what rows of the layer, or all, make of (..., D_in), with this bias."""
        low = F.linear(self.dropout(x), self.lora_A)
        change = F.linear(low, _rows(self.lora_B, rows) * self.scaling)
        return F.linear(x, _rows(self.weight, rows), bias) + change


def linear_rows(layer: nn.Module, x: Tensor, rows: slice | None, bias: Tensor | None) -> Tensor:
    """Return what rows of a linear layer's weight make of x, with a bias of its own.

    Args:
        layer: A linear layer, adapted or not.
        x: (..., D_in).
        rows: Of its weight (D_out, D_in); None takes all.
        bias: One number a row.
    """
    if isinstance(layer, LoRALinear):
        return layer.rows(x, rows, bias)
    return F.linear(x, _rows(layer.weight, rows), bias)  # type: ignore[arg-type]


def _rows(weight: Tensor, rows: slice | None) -> Tensor:
    """Return rows of a matrix; all are the matrix itself, which autocast converts once a step."""
    return weight if rows is None else weight[rows]


def adapt(model: nn.Module, config: LoRAConfig) -> list[str]:
    """Replace linear layers of a model by adapted ones, in place, and return their names.

    Outputs are those of before, since B begins at zero. Which parameters are trained is not
    changed.

    Args:
        model: Of any family.
        config: With a rank.

    Raises:
        ConfigError: A pattern matches no linear layer, or a weight is shared by two layers.
    """
    assert config.rank is not None, "there is an adaptation"
    layers = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    }
    chosen = select_names(config.targets, layers, field="lora.targets", what="linear layer")
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name in chosen:
        layer, others = layers[name], owners[id(layers[name].weight)]
        if len(others) > 1:
            raise ConfigError(
                f"lora.targets: {name} cannot be adapted: its weight is tied ({', '.join(others)}),"
                " and a change of one would be a change of all; choose other layers"
            )
        parent, _, own = name.rpartition(".")
        adapted = LoRALinear(layer, config.rank, config.scaling, config.dropout)
        setattr(model.get_submodule(parent), own, adapted.train(layer.training))
    return chosen
