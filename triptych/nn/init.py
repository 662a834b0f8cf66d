"""Initial values."""

from __future__ import annotations

from torch import nn

from triptych.nn.embeddings import ConvolutionalStem, PatchEmbedding
from triptych.nn.heads import VocabularyHead
from triptych.nn.vision import VisionTransformer


def init_weights(module: nn.Module, std: float) -> None:
    """Draw weights from N(0, std²), zero biases, set norms to 1 and 0.

    Position tables and class tokens are drawn as well: released mPLUG starts its visual position
    table at zero by mistake, and zero rows under a LayerNorm of small eps blow up gradients.

    Args:
        module: Initialised in place, with all sub-modules.
        std: Standard deviation (0.02 in BERT and CLIP).
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        elif isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, PatchEmbedding):
            nn.init.normal_(child.weight, std=child.init_std or std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, ConvolutionalStem):
            for convolution in child.convolutions:
                assert isinstance(convolution, nn.Conv2d)
                fan_in = convolution.weight[0].numel()
                nn.init.normal_(convolution.weight, std=fan_in**-0.5)  # a norm follows
            nn.init.normal_(child.patch_projection.weight, std=child.init_std or std)
            assert child.patch_projection.bias is not None
            nn.init.zeros_(child.patch_projection.bias)
        elif isinstance(child, VisionTransformer):
            position_std = child.config.position_init_std or std
            nn.init.normal_(child.class_embedding, std=std)
            nn.init.normal_(child.position_embedding, std=position_std)
        elif isinstance(child, VocabularyHead):
            nn.init.zeros_(child.bias)
            if child.weight is not None:
                nn.init.normal_(child.weight, std=std)
