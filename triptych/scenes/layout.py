"""Where each file of a written world lies, under names that the public datasets use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMATS: tuple[str, ...] = (
    "captions",
    "vqa",
    "refs",
    "nlvr2",
    "snli_ve",
    "classes",
    "text",
    "shards",
    "masks",
)
"""What `write_scenes` can write beside images and ground truth; clips are asked for by number."""


def image_name(split: str, image_id: int) -> str:
    """Return the name of an image file by COCO's rule: "COCO_train_000000000007.jpg"."""
    return f"COCO_{split}_{image_id:012d}.jpg"


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Paths in a folder that `write_scenes` has filled. A split's name is also its `data_subtype`.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def summary(self) -> Path:
        """Config and counts as JSON; written last, so its presence means that all is there."""
        return self.root / "dataset.json"

    @property
    def images(self) -> Path:
        """Root of the images of all splits; Karpathy, VQAv2 and reference files start here."""
        return self.root / "images"

    @property
    def karpathy(self) -> Path:
        """Captions of all splits in one Karpathy file."""
        return self.root / "captions" / "dataset_scenes.json"

    @property
    def refs(self) -> Path:
        """Referring phrases of all splits; file names start at `images`."""
        return self.root / "refs" / "refs.json"

    @property
    def instances(self) -> Path:
        """Boxes of all objects, in the format of COCO's instances."""
        return self.root / "refs" / "instances.json"

    @property
    def clips(self) -> Path:
        """MSRVTT-style captions of the clips in `videos`."""
        return self.root / "clips" / "videodatainfo.json"

    @property
    def videos(self) -> Path:
        """Folder of the clips: video0.mp4, video1.mp4 ..."""
        return self.root / "clips" / "videos"

    @property
    def corpus(self) -> Path:
        """Sentences on scenes of their own, one a line; the words of the training split only."""
        return self.root / "text" / "corpus.txt"

    def split_images(self, split: str) -> Path:
        """Return the folder of the images of a split."""
        return self.images / split

    def truth(self, split: str) -> Path:
        """Return the ground truth of a split: a scene a line, with boxes and captions."""
        return self.root / "scenes" / f"{split}.jsonl"

    def coco_captions(self, split: str) -> Path:
        """Return COCO's official caption file of a split; names start at `split_images`."""
        return self.root / "captions" / f"captions_{split}.json"

    def vqa_questions(self, split: str) -> Path:
        """Return the VQAv2 questions of a split."""
        return self.root / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json"

    def vqa_annotations(self, split: str) -> Path:
        """Return the VQAv2 answers of a split."""
        return self.root / "vqa" / f"v2_mscoco_{split}_annotations.json"

    def nlvr2(self, split: str) -> Path:
        """Return the statements about two images of a split."""
        return self.root / "nlvr2" / f"{split}.jsonl"

    def nlvr2_images(self, split: str) -> Path:
        """Return the folder of the images that the statements of a split name."""
        return self.root / "nlvr2" / "images" / split

    def snli_ve(self, split: str) -> Path:
        """Return the entailment triples of a split; image ids start at `split_images`."""
        return self.root / "snli_ve" / f"snli_ve_{split}.jsonl"

    def classes(self, split: str) -> Path:
        """Return the folder of class folders of a split."""
        return self.root / "classes" / split

    def masks(self, split: str) -> Path:
        """Return the manifest of the masks of a split; images and masks start at `root`."""
        return self.root / "masks" / f"{split}.jsonl"

    def mask_images(self, split: str) -> Path:
        """Return the folder of the masks of a split."""
        return self.root / "masks" / split

    @property
    def mask_names(self) -> Path:
        """Names of the classes of masks, in the order of their values."""
        return self.root / "masks" / "classes.txt"

    def shards(self, split: str) -> Path:
        """Return the folder of the WebDataset shards of a split."""
        return self.root / "shards" / split

    def clip_questions(self, split: str) -> Path:
        """Return the MSRVTT-QA-style questions on the clips of a split."""
        return self.root / "clips" / f"{split}_qa.json"
