"""Frozen weights in bfloat16: the numbers of a step are those of float32 ones under autocast."""

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from edgedistill import recipes
from edgedistill.networks.bf16 import to_bf16, to_fp32
from edgedistill.runs.run import Run
from edgedistill.tiny import make_tiny

CHOICES = ["train.precision=bf16", "train.steps=2", "train.batch_size=2", "train.ema=0.5"]


def trained(name, roles, base, folder, teacher):
    words = [*CHOICES, f"train.roles={roles}", f"train.base={base}", "train.adapter.rank=2"]
    recipe = recipes.load(name, [*words, f"teacher.path={teacher}"])
    folder.mkdir()
    run = Run(recipe, folder)
    return run, run.train(lambda step, figures: None)


@pytest.mark.parametrize("roles", ["copies", "adapters"])
def test_two_steps_are_those_of_a_float32_base(roles, tmp_path):
    teacher = make_tiny("stable_diffusion", tmp_path / "teacher")
    whole, _ = trained("emoji-lcm", roles, "fp32", tmp_path / "whole", teacher)
    low, student = trained("emoji-lcm", roles, "bf16", tmp_path / "low", teacher)
    ours, theirs = low.student.state_dict(), whole.student.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, theirs[name]), name
    kept = [p.dtype for p in low.teacher.net.parameters()]
    assert kept.count(torch.bfloat16) > 0.6 * len(kept)
    unet = DiffusionPipeline.from_pretrained(student).unet
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


def test_outside_of_autocast_it_computes_in_float32_with_rounded_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
    x, before = torch.randn(2, 3, 4, 4), net.state_dict()
    rounded = {
        name: value if name.startswith("1.") else value.bfloat16().float()
        for name, value in before.items()
    }
    first = next(net.parameters())
    to_bf16(net)
    assert next(net.parameters()) is first
    assert [p.dtype for p in net.parameters()].count(torch.bfloat16) == 4
    with torch.no_grad():
        found = net(x)
        plain = to_fp32(net)
        assert [type(layer) for layer in plain] == [nn.Conv2d, nn.GroupNorm, nn.Flatten, nn.Linear]
        assert all(torch.equal(v, rounded[k]) for k, v in plain.state_dict().items())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, plain(x))


def test_another_precision_is_refused():
    with pytest.raises(
        ValueError, match=r"train\.base=bf16 would round weights that train\.precision=fp32"
    ):
        recipes.load("emoji-lcm", ["train.base=bf16"])
