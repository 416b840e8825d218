"""Checkpoints of older versions."""

import shutil

import pytest
import torch
import yaml
from conftest import checkpoint, refuse

from slm.errors import UserError
from slm.training.checkpoint import open_checkpoint


def age(folder, **switches):
    """Makes a run look as one that was written when models had more switches."""
    for path in (checkpoint("best", root=folder), checkpoint("last", root=folder)):
        contents = torch.load(path, weights_only=True)
        contents["hyper_parameters"]["gpt"] |= switches
        torch.save(contents, path)
    config = checkpoint(root=folder).parent.parent / "config.yaml"
    options = yaml.safe_load(config.read_text())
    options["model"]["gpt"] |= switches
    config.write_text(yaml.safe_dump(options))


@pytest.fixture
def old(trained, workplace):
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    return workplace


def test_switches_that_were_off_do_not_matter(old, slm):
    age(old, init="gpt2", softcap=None)
    assert slm("fit", "--ckpt_path", "last", "--trainer.max_steps", 14).status == 0
    assert open_checkpoint(checkpoint()).step == 14
    assert slm("predict", "--max_new_tokens", "5").status == 0


@pytest.mark.parametrize("switch", [{"init": "zero"}, {"softcap": 15.0}, {"mlp": "relu2"}])
def test_switches_that_were_on_are_refused_with_the_last_commit(old, slm, switch):
    age(old, **switch)
    name, value = next(iter(switch.items()))
    with pytest.raises(UserError, match=f"{name} {value}.*removed") as error:
        open_checkpoint(checkpoint())
    assert "git checkout 015f626" in error.value.remedy
    refuse(slm("predict"), f"{name} {value}", "git checkout 015f626")
