"""The built-in world's clips through training, evaluation and serving, and broken ones listed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from triptych.core.errors import ConfigError, DataError
from triptych.data.source import DataSourceConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.serving.engine import load
from triptych.workflows.evaluate import EvalSettings, evaluate_model
from triptych.workflows.run import train_run

from .small_runs import small_run


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> SceneFiles:
    folder = tmp_path_factory.mktemp("clips") / "scenes"
    files = write_scenes(
        folder, 4, num_val=0, num_test=2, num_compositional=0, num_clips=4, formats=()
    )
    (files.videos / "video1.mp4").write_bytes(b"")  # one of the training clips
    return files


def trained(recipe, source, out):
    config = small_run(recipe, source, max_steps=2, global_batch_size=2)
    data = replace(config.data, max_bad_share=0.5)
    image = replace(config.image, num_frames=3)
    train_run(replace(config, data=data, image=image), out)
    return out / "model"


def test_retrieval_is_trained_and_scored_on_clips(files, tmp_path):
    captions = DataSourceConfig(path=str(files.clips), split="train")
    model = trained("mplug.retrieval", captions, tmp_path / "run")
    listed = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    (entry,) = {json.loads(line)["where"]: json.loads(line) for line in listed}.values()
    assert (entry["kind"], entry["where"]) == ("truncated", str(files.videos / "video1.mp4"))
    told = []
    values = evaluate_model(model, "retrieval", captions, max_bad_share=0.5, on_skipped=told.append)
    assert {"t2i_r1", "t2i_r1_itm"} <= {value.name for value in values}
    assert values[0].num_items in (3, 6)  # three clips, six captions
    assert values[0].protocol.endswith("Of each clip 3 evenly spread frames are read.")
    assert "2 of 8 samples skipped" in told[0]  # both captions of the empty file


def test_questions_about_clips(files, tmp_path):
    questions = DataSourceConfig(path=str(files.clip_questions("train")))
    model = trained("mplug.vqa", questions, tmp_path / "run")
    answers = {}

    def keep(said):
        answers.update(zip(said.index, said.texts, strict=True))

    source = DataSourceConfig(path=str(files.clip_questions("test")))
    values = evaluate_model(
        model,
        "vqa",
        source,
        settings=EvalSettings(num_frames=2),
        keep=keep,
    )
    assert len(answers) == values[0].num_items and "Of each clip 2 evenly" in values[0].protocol
    listed = EvalSettings(answers=("blue", "never"))
    values = evaluate_model(model, "vqa", source, settings=listed, keep=keep)
    assert set(answers.values()) <= {"blue", "never"} and "from a closed list" in values[0].protocol
    engine = load(model, device="cpu", precision="fp32")
    clip = str(files.videos / "video0.mp4")
    one, two = engine.answer([clip, clip], ["how many objects move?", "is there a star?"])
    assert isinstance(one, str) and isinstance(two, str)


def test_captions_of_clips_and_what_takes_images_alone(files, tmp_path):
    captions = DataSourceConfig(path=str(files.clips), split="train")
    model = trained("mplug.caption", captions, tmp_path / "run")
    values = evaluate_model(model, "caption", DataSourceConfig(path=str(files.clips), split="test"))
    assert values[0].num_items == 1  # one clip with two references
    with pytest.raises(ConfigError, match="answers: a list of 2 is given, and `caption`"):
        evaluate_model(model, "caption", captions, settings=EvalSettings(answers=("a", "b")))
    engine = load(model, device="cpu", precision="fp32")
    clip = files.videos / "video0.mp4"
    from triptych.data.video import decode_frames

    frames = decode_frames(str(clip), 3)
    assert engine.caption(clip) == engine.caption(frames) == engine.caption([str(clip)] * 2)[1]
    with pytest.raises(DataError, match="images and clips are given together"):
        engine.caption([clip, np.zeros((8, 8, 3), dtype=np.uint8)])
    with pytest.raises(DataError, match="frames x height x width x 3"):
        engine.caption(np.zeros((2, 8, 8, 1), dtype=np.uint8))


def test_a_task_of_images_alone_says_so(files, tmp_path):
    captions = DataSourceConfig(path=str(files.clips), split="train")
    config = small_run("vlmo.retrieval", captions, max_steps=1)
    with pytest.raises(DataError, match="is a clip, and this task reads images alone"):
        train_run(config, tmp_path / "run")


def test_images_and_clips_train_together_and_are_searched_apart(files, tmp_path):
    image = next(files.split_images("train").iterdir())
    lines = [
        {"video": str(files.videos / "video0.mp4"), "caption": "a star moves left"},
        {"image": str(image), "caption": "a circle"},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = DataSourceConfig(path=str(path))
    model = trained("mplug.retrieval", source, tmp_path / "run")
    with pytest.raises(DataError, match="images and clips: search them as two datasets"):
        evaluate_model(model, "retrieval", source)
