"""The sizes of an mPLUG model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.core.config import check
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig

FusionName = Literal[
    "skip_connected",
    "connected_attention",
    "co_attention",
    "asymmetric_co_attention",
    "none",
]


def strided_layers(
    depth: int, stride: int, layout: Literal["released", "paper"] = "released"
) -> tuple[int, ...]:
    """Return which layers of a skip-connected network are connected.

    Args:
        depth: Layers of the network.
        stride: S in the paper.
        layout: "released" is the rule of the released code, layer j is connected if j != 0 and j
            is a multiple of S: with 6 layers and S = 6 none is. "paper" is S asymmetric layers,
            then a connected one, repeated (section 3.2).

    Raises:
        ConfigError: `depth` or `stride` is below 1.
    """
    check(depth > 0, "depth", depth, "be at least 1")
    check(stride > 0, "stride", stride, "be at least 1")
    if layout == "released":
        return tuple(range(stride, depth, stride))
    return tuple(range(stride, depth, stride + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class MPLUGConfig:
    """An mPLUG model (Li et al. 2022, section 3).

    Attributes:
        vision: The image encoder; mPLUG takes CLIP's.
        text: Sizes shared by text encoder, fusion network and decoder; mPLUG takes BERT-base's.
        text_depth: Layers of the text encoder (paper: 6).
        fusion_depth: Layers of the fusion network (paper: 6).
        fusion: Which network lets image and text meet; `fusion.py` lists them. Released models
            are "skip_connected"; the others are the alternatives of the paper's figure 4.
        connected_layers: Which layers of a skip-connected network, from 0, are
            connected-attention; the others are asymmetric co-attention. `strided_layers` gives
            them for a stride. Released base: (3,). Released large: (). Other networks have no
            such choice and do not read it.
        connected_image_residual: Whether a connected layer of a skip-connected network adds its
            image output to its image input, as the released code does (so released weights need
            True) and the paper does not say.
        decoder_depth: Layers of the decoder (paper: 12).
        decoder_memory: What the decoder reads: "fused" is the image and text output of the fusion
            network (paper); "image" is the image encoder's output alone (released captioning).
        proj_dim: Width E of the contrastive embedding (256).
        tie_mlm_head: Whether the MLM head scores tokens by the text encoder's token table. The
            derived pre-training code ties it to a table of the fusion network that nothing else
            reads, so released pre-training files bring their own matrix (False).
        init_std: Standard deviation of random weights (0.02 in BERT).
    """

    vision: VisionConfig
    text: TextConfig
    text_depth: int = 6
    fusion_depth: int = 6
    fusion: FusionName = "skip_connected"
    connected_layers: tuple[int, ...] = (3,)
    connected_image_residual: bool = True
    decoder_depth: int = 12
    decoder_memory: Literal["fused", "image"] = "fused"
    proj_dim: int = 256
    tie_mlm_head: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        """Reject layers that do not exist."""
        for name in ("text_depth", "fusion_depth", "decoder_depth"):
            check(getattr(self, name) > 0, name, getattr(self, name), "be at least 1")
        known = all(0 <= layer < self.fusion_depth for layer in self.connected_layers)
        check(
            known and len(set(self.connected_layers)) == len(self.connected_layers),
            "connected_layers",
            self.connected_layers,
            f"be distinct layers from 0 to {self.fusion_depth - 1}",
        )
