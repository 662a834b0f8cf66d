"""Short clips of one or two objects, each moving one way or standing still."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from triptych.core.errors import ConfigError, DataError
from triptych.data.video import require_av
from triptych.scenes.config import SceneConfig
from triptych.scenes.language import describe, join_names, name_object
from triptych.scenes.questions import Question, ask
from triptych.scenes.render import finish, paint_background, paint_object
from triptych.scenes.world import Scene, SceneObject, generate_scene, scene_random

NUM_FRAMES = 8
FRAMES_PER_S = 8

MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "nowhere": (0, 0),
}
"""Direction of each motion, x to the right and y down."""

MOTION_TYPES = ("direction", "mover", "moves", "movers")
"""Types of questions that no single frame answers."""

_SIDES = {"left", "right", "above", "below"}
_DISTANCES = (0.3, 0.5)  # way from the first frame to the last, as a share of the side
_MOTION_TRIES, _SCENE_TRIES = 30, 100


@dataclass(frozen=True, slots=True)
class Clip:
    """A scene whose objects move evenly.

    Attributes:
        scene: The first frame.
        motions: A key of `MOTIONS` for each object.
        distances: Way of each object from the first to the last frame, as a share of the side.
    """

    scene: Scene
    motions: tuple[str, ...]
    distances: tuple[float, ...]

    def at(self, time: float) -> Scene:
        """Return the scene at a time from 0, the first frame, to 1, the last one."""
        moved = []
        for item, motion, distance in zip(self.scene.objects, self.motions, self.distances):
            step_x, step_y = MOTIONS[motion]
            x, y = item.x + time * distance * step_x, item.y + time * distance * step_y
            moved.append(replace(item, x=x, y=y))
        return replace(self.scene, objects=tuple(moved))


def generate_clip(config: SceneConfig, split: str, index: int) -> Clip:
    """Draw one clip of one or two objects that stay apart and inside; at least one of them moves.

    Raises:
        ConfigError: The objects are too large to be placed.
        DataError: The objects leave no room to move.
    """
    rng = scene_random(config, split, index, "clip")
    for attempt in range(_SCENE_TRIES):
        series = f"clip{attempt}"
        scene = generate_scene(config, split, index, series=series, num_objects=rng.randint(1, 2))
        for _ in range(_MOTION_TRIES):
            motions = tuple(rng.choice(list(MOTIONS)) for _ in scene.objects)
            distances = tuple(
                0.0 if motion == "nowhere" else rng.uniform(*_DISTANCES) for motion in motions
            )
            clip = Clip(scene, motions, distances)
            if any(distances) and _is_clear(clip, config.gap):
                return clip
    raise DataError(
        f"clip {index} of {split}: the objects leave no room to move; lower large_diameter = "
        f"{config.large_diameter}"
    )


def render_clip(
    clip: Clip, image_size: int, *, num_frames: int = NUM_FRAMES, noise: float = 0.0
) -> NDArray[np.uint8]:
    """Paint the frames of a clip; the background stands still and the noise does not.

    Returns:
        (num_frames, image_size, image_size, 3) uint8, RGB.
    """
    scene = clip.scene
    rng = np.random.Generator(np.random.Philox(key=scene.texture_seed))
    background = paint_background(scene.background, image_size, rng)
    frames = []
    for number in range(num_frames):
        canvas = background.copy()
        for item in clip.at(number / (num_frames - 1)).objects:
            paint_object(canvas, item)
        frames.append(finish(canvas, rng, noise))
    return np.stack(frames)


def caption_clip(clip: Clip, config: SceneConfig, phrasing: int) -> str:
    """Return a caption that names each object and its motion, from left to right at the start.

    Args:
        clip: What to describe.
        config: Whether materials are said.
        phrasing: Which of the phrasings, modulo their number.
    """
    parts = []
    for item, motion in zip(clip.scene.objects, clip.motions):
        verb = "stands still" if motion == "nowhere" else f"moves {motion}"
        parts.append(f"a {name_object(item, with_material=config.materials)} {verb}")
    listed = join_names(parts)
    return (listed, f"in this clip {listed}")[phrasing % 2]


def ask_about_clip(clip: Clip, rng: random.Random) -> Question | None:
    """Return a question on motion; None when the draw does not fit the clip.

    The types are `MOTION_TYPES`; "moves" is answered yes or no, equally often.
    """
    way = rng.choice(MOTION_TYPES)
    target = rng.randrange(len(clip.motions))
    item, motion = clip.scene.objects[target], clip.motions[target]
    said = describe(clip.scene, item, rng)
    if way == "movers":
        moving = sum(m != "nowhere" for m in clip.motions)
        return Question("how many objects move?", str(moving), way)
    if way == "direction":
        asked = f"which way does the {said} move?"
        return Question(asked, motion, way) if motion != "nowhere" else None
    if way == "mover":
        is_only_mover = clip.motions.count(motion) == 1 and motion != "nowhere"
        asked = f"what color is the object that moves {motion}?"
        return Question(asked, item.color, way) if is_only_mover else None
    yes = rng.random() < 0.5
    choices = [m for m in MOTIONS if m != "nowhere" and (m == motion) == yes]
    if not choices:
        return None
    return Question(f"does the {said} move {rng.choice(choices)}?", "yes" if yes else "no", way)


def ask_about_looks(clip: Clip, config: SceneConfig, rng: random.Random) -> Question | None:
    """Return a question that any frame answers, as on an image; None when the draw does not fit.

    Places and sides are not asked for: they change.
    """
    asked = replace(config, question_mix=replace(config.question_mix, relation=0.0))
    question = ask(clip.scene, asked, rng)
    return None if question is None or _SIDES & set(question.text.split()) else question


def write_mp4(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write frames as an H.264 clip of `FRAMES_PER_S` frames a second.

    Args:
        path: The file, replaced if it exists. Its folder must exist.
        frames: (T, H, W, 3) uint8, RGB; H and W even.

    Raises:
        DataError: PyAV is not installed, or the side is odd.
    """
    require_av("writing clips")
    import av

    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise DataError(f"{path}: H.264 needs even sides, got {width} x {height} pixels")
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_S)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # x264's lookahead gives images this small other bytes from run to run: do without it.
        stream.options = {"qp": "14", "preset": "ultrafast"}
        stream.codec_context.thread_count = 1  # several threads may give other bytes, too
        for frame in frames:
            planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def require_clips(config: SceneConfig) -> None:
    """Check that clips of a world can be written.

    Raises:
        ConfigError: H.264 has no images of this size.
        DataError: PyAV is not installed.
    """
    require_av("writing clips")
    if config.image_size % 2:
        raise ConfigError(
            f"image_size = {config.image_size}: must be even, as clips are written in H.264; or "
            "ask for num_clips = 0"
        )


def _is_clear(clip: Clip, gap: float) -> bool:
    """Return whether objects stay inside the image and apart at every sixteenth of the way."""
    return all(_is_scene_clear(clip.at(step / 16).objects, gap) for step in range(17))


def _is_scene_clear(objects: tuple[SceneObject, ...], gap: float) -> bool:
    for number, item in enumerate(objects):
        width, height = item.half_extent
        inside_x = gap + width <= item.x <= 1 - gap - width
        if not (inside_x and gap + height <= item.y <= 1 - gap - height):
            return False
        for other in objects[:number]:
            other_width, other_height = other.half_extent
            apart_x = abs(item.x - other.x) >= width + other_width + gap
            if not (apart_x or abs(item.y - other.y) >= height + other_height + gap):
                return False
    return True
