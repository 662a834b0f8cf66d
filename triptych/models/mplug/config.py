"""The sizes of an mPLUG model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.core.config import check
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class MPLUGConfig:
    """An mPLUG model (Li et al. 2022, section 3).

    Attributes:
        vision: The image encoder; mPLUG takes CLIP's.
        text: Sizes shared by text encoder, fusion network and decoder; mPLUG takes BERT-base's.
        text_depth: Layers of the text encoder (paper: 6).
        fusion_depth: Layers of the fusion network (paper: 6).
        connected_layers: Which fusion layers, from 0, are connected-attention; the others are
            asymmetric co-attention. Released base: (3,). Released large: ().
        connected_image_residual: Whether a connected layer's image output is added to its input,
            as the released code does and the paper does not say.
        decoder_depth: Layers of the decoder (paper: 12).
        decoder_memory: What the decoder reads: "fused" is the image and text output of the fusion
            network (paper); "image" is the image encoder's output alone (released captioning).
        proj_dim: Width E of the contrastive embedding (256).
        tie_mlm_head: Whether the MLM head scores words by the text encoder's word table. The
            derived pre-training code ties it to a table of the fusion network that nothing else
            reads, so released pre-training files bring their own matrix (False).
        init_std: Standard deviation of fresh weights (0.02 in BERT).
    """

    vision: VisionConfig
    text: TextConfig
    text_depth: int = 6
    fusion_depth: int = 6
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
