"""The learned temperature of mPLUG: from the authors' file to a model folder and back."""

import json

import pytest
import torch

from tests.cli.released import write_released
from triptych.checkpoint.model_folder import load_model_folder
from triptych.models.mplug.model import MPLUG
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.workflows.importing import ImportSettings, export_checkpoint, import_checkpoint
from triptych.workflows.trained_model import contrast_scalars

TAU = 0.0123456789


def import_file(tmp_path, *, wrapper="model", **extra):
    """Write a released-like file with these tensors besides, and import it."""
    golden, checkpoint, sizes, words = write_released(tmp_path / "theirs")
    torch.save({wrapper: golden.state | extra}, checkpoint)
    settings = ImportSettings(variant=str(sizes), tokenizer=words)
    return import_checkpoint("mplug", checkpoint, tmp_path / "model", settings)


def exported(tmp_path, name):
    export_checkpoint("mplug", tmp_path / "model", tmp_path / name)
    return torch.load(tmp_path / name, weights_only=True)["model"]


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_import_and_export_keep_every_bit_of_it(tmp_path, wrapper):
    temp = torch.tensor(TAU)
    report = import_file(tmp_path, wrapper=wrapper, temp=temp)
    assert report.contrast == {"temperature": temp.item()}
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["contrast"] == {"temperature": temp.item()}
    back = exported(tmp_path, "back.pth")["temp"]
    assert (back.dtype, back.shape) == (torch.float32, torch.Size([]))
    assert torch.equal(back, temp)


def test_a_file_without_one_gets_none(tmp_path):
    assert import_file(tmp_path).contrast == {}
    assert "contrast" not in load_model_folder(tmp_path / "model").config
    assert "temp" not in exported(tmp_path, "back.pth")


def test_what_a_task_learned_has_the_name_that_an_export_reads(tmp_path):
    """The task's own name for τ is the one under which import keeps the file's."""
    report = import_file(tmp_path, temp=torch.tensor(TAU))
    golden, *_ = write_released(tmp_path / "again")
    model = MPLUG(golden.config)
    task = MPLUGPretraining(model, MPLUGPretrainingConfig(momentum=0.0, queue_size=0, alpha=0.0))
    with torch.no_grad():
        task.temperature.fill_(TAU)
    assert contrast_scalars(task.modules) == report.contrast
