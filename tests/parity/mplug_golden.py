"""The golden files of mPLUG: small random weights and what the released code computed with them."""

import json
from pathlib import Path

from safetensors.torch import load_file

from triptych.generation.search import BeamConfig
from triptych.models.mplug.config import MPLUGConfig
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NAMES = ("mplug_base_like", "mplug_large_like")


VOCABULARY = [
    "[PAD]",
    *(f"[unused{i}]" for i in range(99)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    *(f"word{i}" for i in range(1000 - 156)),
]
"""A thousand tokens with the special ones where bert-base-uncased has them."""


class GoldenFile:
    """One golden file: tensors by name, the released state dict, and the config that fits it."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.facts = json.loads((GOLDEN / f"{name}.json").read_text())
        prefix = "state_dict/"
        self.state = {
            k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)
        }

    @property
    def config(self) -> MPLUGConfig:
        """Sizes, as the released config and the shapes of the weights give them."""
        facts, blocks = self.facts, "visual_encoder.visual.transformer.resblocks."
        width, text_width = facts["cfg/vision_width"], facts["bert/hidden_size"]
        stride, depth = facts["bert/stride_layer"], facts["bert/fusion_layers"]
        return MPLUGConfig(
            vision=VisionConfig(
                image_size=facts["cfg/image_res"],
                patch_size=self.state["visual_encoder.visual.conv1.weight"].shape[-1],
                embed_dim=width,
                depth=len({k.split(".")[4] for k in self.state if k.startswith(blocks)}),
                num_heads=width // 64,
            ),
            text=TextConfig(
                vocab_size=facts["bert/vocab_size"],
                embed_dim=text_width,
                num_heads=facts["bert/num_attention_heads"],
                mlp_ratio=facts["bert/intermediate_size"] / text_width,
            ),
            text_depth=facts["bert/text_encoder_layers"],
            fusion_depth=depth,
            connected_layers=tuple(j for j in range(1, depth) if j % stride == 0),
            decoder_depth=facts["bert/text_decode_layers"],
            proj_dim=facts["cfg/embed_dim"],
        )

    @property
    def beam(self) -> BeamConfig:
        """The beam search that the released code ran."""
        return BeamConfig(
            num_beams=self.facts["cfg/beam_size"],
            min_tokens=self.facts["cfg/min_length"],
            max_tokens=self.facts["cfg/max_length"],
        )
