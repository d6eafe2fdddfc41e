"""Negative prompts: attention moves away from them, in every family that has it."""

import math

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from edgedistill.draw.generate import Negative, generate
from edgedistill.networks.attention_steering import NegativeAttention
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny


class Network(nn.Module):
    """One transformer block whose self-attention and feed-forward are nothing.

    It is told the prompt beside the attention as well, as SDXL is.
    """

    def __init__(self):
        super().__init__()
        self.block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=6)
        for last in (self.block.attn1.to_out[0], self.block.ff.net[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x, t, *, states):
        return self.block(told(x, states), encoder_hidden_states=states)


def told(x, states):
    return x + states.mean((1, 2), keepdim=True) * torch.arange(8)


def attended(attention, x, states):
    """Z of two heads of four, before the last projection."""
    q, k, v = (
        part.unflatten(-1, (2, 4)).transpose(1, 2)
        for part in (attention.to_q(x), attention.to_k(states), attention.to_v(states))
    )
    return ((q @ k.mT / math.sqrt(4)).softmax(-1) @ v).transpose(1, 2).flatten(2)


@torch.no_grad()
def test_attention_returns_the_difference_of_both_prompts():
    torch.manual_seed(0)
    net, x, t = Network(), torch.randn(3, 5, 8), torch.zeros(3)
    toward, away = torch.randn(3, 4, 6), torch.randn(1, 4, 6)
    steered = NegativeAttention(net, {"states": away}, 0.4)
    hidden = told(x, toward)
    cross, seen = net.block.attn2, net.block.norm2(hidden)
    z = attended(cross, seen, toward) - 0.4 * attended(cross, seen, away.expand(3, -1, -1))
    torch.testing.assert_close(steered(x, t, states=toward), hidden + cross.to_out[0](z))
    # Outside of it the network is as it was, and at scale 0 so is all of it.
    plain = hidden + cross.to_out[0](attended(cross, seen, toward))
    torch.testing.assert_close(net(x, t, states=toward), plain)
    torch.testing.assert_close(
        NegativeAttention(net, {"states": away}, 0.0)(x, t, states=toward), plain
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "pixart", "sana", "wan"])
def test_every_family_with_cross_attention_moves(family, tmp_path):
    teacher = load_teacher(family, make_tiny(family, tmp_path / family))
    x = torch.randn(2, *teacher.sample_shape)
    t = torch.full((2,), 500.0)
    cond, negative = teacher.encode(["red", "blue"]), teacher.encode(["blue blue"])
    plain = teacher.net(x, t, **cond)
    torch.testing.assert_close(
        NegativeAttention(teacher.net, negative, 0.0)(x, t, **cond), plain, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(
        NegativeAttention(teacher.net, negative, 0.5)(x, t, **cond), plain, atol=1e-5
    )


@pytest.mark.parametrize("family", ["sd3", "flux", "dit"])
def test_families_without_are_refused(family, tmp_path):
    teacher = load_teacher(family, make_tiny(family, tmp_path / family))
    with pytest.raises(ValueError, match="needs a student with cross-attention"):
        NegativeAttention(teacher.net, {}, 0.5)


def test_generate_takes_a_negative_prompt(tmp_path):
    words = ["teacher.family=stable_diffusion", "teacher.tiny=true", "train.steps=1"]
    recipe = load("emoji-lcm", [*words, "train.batch_size=2"])
    run = open_run(recipe, str(tmp_path / "run"), False)
    student = str(run.train(lambda step, figures: None))
    drawn = {}
    for scale in (None, 0.0, 1.0):
        out = tmp_path / f"{scale}.npy"
        negative = None if scale is None else Negative("blue", scale)
        generate(student, "red", seed=1, count=2, out=out, negative=negative)
        drawn[scale] = out.read_bytes()
    assert drawn[None] == drawn[0.0]
    assert drawn[None] != drawn[1.0]
