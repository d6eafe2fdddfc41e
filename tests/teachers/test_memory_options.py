"""Sparing memory changes no number."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from edgedistill import recipes
from edgedistill.runs.run_dir import open_run
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny

CHOICES = ["teacher.tiny=true", "train.steps=2", "train.batch_size=2", "train.adapter.rank=2"]


def trained(tmp_path, name, *choices):
    """Weights of a student after two steps, and the bytes that one backward pass needed."""
    recipe = recipes.load(name, [*CHOICES, *choices])
    run = open_run(recipe, str(tmp_path / str(len(choices))), False, tmp_path)
    held = []

    def pack(tensor):
        held.append(tensor.numel())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run.train(lambda step, figures: None)
    return run.student.state_dict(), sum(held)


@pytest.mark.parametrize("roles", ["copies", "adapters"])
@pytest.mark.parametrize("name", ["emoji-lcm", "emoji-dmd2"])
def test_checkpointing_holds_less_and_learns_the_same(tmp_path, name, roles):
    whole, much = trained(tmp_path, name, f"train.roles={roles}")
    again, less = trained(tmp_path, name, f"train.roles={roles}", "train.checkpointing=true")
    assert less < 0.7 * much
    assert whole.keys() == again.keys()
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value, msg=key)


def test_what_is_offloaded_comes_for_each_use(tmp_path):
    folder = make_tiny("sdxl", tmp_path / "t")
    plain, spared = load_teacher("sdxl", folder), load_teacher("sdxl", folder)
    spared.set_memory_options(checkpointing=False, offload=True)
    places = []
    for module in (spared.text_encoder, spared.decoder):
        module.to = lambda device, keep=module.to: places.append(str(device)) or keep(device)
    x0 = torch.ones(1, *spared.sample_shape)
    for name, value in plain.encode(["red"]).items():
        assert torch.equal(spared.encode(["red"])[name], value)
    assert torch.equal(spared.decode(x0), plain.decode(x0))
    assert places == ["cpu", "cpu"] * 2


def test_a_mixture_has_nothing_to_spare(two_modes):
    teacher = load_teacher("mixture", two_modes)
    with pytest.raises(ValueError, match=r"train.offload: mixture teachers have nothing to spare"):
        teacher.set_memory_options(checkpointing=False, offload=True)
