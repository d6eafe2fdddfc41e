"""Self-attention of fewer keys and values, against attention that is written out by hand."""

import copy
import json
import math

import pytest
import torch
from compress import nets
from diffusers import UNet2DConditionModel
from torch import nn

from edgedistill.compress.config import Compress
from edgedistill.compress.plan import build, config_of, count, share
from edgedistill.compress.presets import preset
from edgedistill.compress.token_stride import (
    TokenStride,
    check_stride,
    restore_stride,
    self_attentions,
    stride_attention,
    stride_of,
)
from edgedistill.compress.units import drop_blocks
from edgedistill.networks.unet_reuse import full, shallow
from edgedistill.tiny import unet2d

TWO = TokenStride(stride=2)
TEXT = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def drawn(height: int = 8, width: int = 8) -> dict:
    """Inputs of a U-Net."""
    x = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(2))
    return {"sample": x, "timestep": torch.tensor([900.0, 300.0]), "encoder_hidden_states": TEXT}


def strided(net: nn.Module, given: TokenStride = TWO) -> nn.Module:
    changed = copy.deepcopy(net)
    stride_attention(changed, given)
    return changed


class ByHand(nn.Module):
    """Attention of every token over those at rows and columns 0, s, 2 s, ..., head by head."""

    is_cross_attention = False

    def __init__(self, attn: nn.Module, width: int, stride: int) -> None:
        super().__init__()
        self.attn, self.width, self.stride = attn, width, stride

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None):
        assert encoder_hidden_states is None
        attn, every = self.attn, range(hidden_states.shape[1])
        kept = [
            i
            for i in every
            if (i // self.width) % self.stride == 0 and (i % self.width) % self.stride == 0
        ]
        heads = []
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        size = q.shape[-1] // attn.heads
        for head in range(attn.heads):
            part = slice(head * size, (head + 1) * size)
            ours, keys, values = q[..., part], k[:, kept, part], v[:, kept, part]
            scores = torch.einsum("nic,njc->nij", ours, keys) / math.sqrt(size)
            heads.append(torch.einsum("nij,njc->nic", scores.softmax(-1), values))
        return attn.to_out[0](torch.cat(heads, dim=-1))


def by_hand(net: nn.Module, stride: int, width: int, stages: int = 1) -> nn.Module:
    """A copy of SD's layout whose outermost self-attentions are `ByHand`'s."""
    changed = copy.deepcopy(net)
    for stage in range(stages):
        for block in (changed.down_blocks[stage], changed.up_blocks[3 - stage]):
            for attention in block.attentions:
                first = attention.transformer_blocks[0]
                first.attn1 = ByHand(first.attn1, width >> stage, stride)
    return changed


@pytest.mark.parametrize(
    ("stride", "stages", "size"),
    [(2, 1, (8, 8)), (4, 1, (8, 16)), (2, 2, (16, 8)), (3, 1, (8, 8))],
)
@torch.no_grad()
def test_queries_are_whole_and_keys_and_values_every_sth_row_and_column(stride, stages, size):
    """Also where the stride does not divide the sides."""
    net, given = nets.sd(), drawn(*size)
    found = strided(net, TokenStride(stride=stride, stages=stages))(**given).sample
    wanted = by_hand(net, stride, size[1], stages)(**given).sample
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    assert (found - net(**given).sample).abs().max() > 1e-3
    if stages == 2:
        assert (found - by_hand(net, stride, size[1], 1)(**given).sample).abs().max() > 1e-4


@torch.no_grad()
def test_a_stride_of_one_is_the_plain_network():
    assert Compress().token_stride is None
    assert Compress(attention_stride=2).token_stride == TWO
    net, given = nets.sd(), drawn()
    changed = strided(net)
    for attn in self_attentions(changed, 0):
        attn.token_stride = 1
    assert torch.equal(changed(**given).sample, net(**given).sample)


def test_weights_their_names_and_the_config_stay(tmp_path):
    net = nets.sd()
    changed = strided(net)
    assert config_of(changed) == config_of(net)
    theirs, ours = net.state_dict(), changed.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    changed.save_pretrained(tmp_path)
    read = UNet2DConditionModel.from_pretrained(tmp_path)
    assert stride_of(read) is None
    assert all(torch.equal(weight, theirs[name]) for name, weight in read.state_dict().items())
    # Weights that lie elsewhere in memory may take another kernel.
    torch.testing.assert_close(read(**drawn()).sample, net(**drawn()).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_keys_and_values_of_the_call_that_made_them(checkpointing):
    """Checkpointing runs blocks again after a call of another size, as growing students do."""
    net, given = nets.sd(), drawn(8, 16)
    found, wanted = strided(net), by_hand(net, 2, 16)
    if checkpointing:
        found.enable_gradient_checkpointing()
        found.train()
    out = found(**given).sample
    found(**drawn(4, 4))
    out.square().mean().backward()
    wanted(**given).sample.square().mean().backward()
    for ours, theirs in zip(self_attentions(found, 0), self_attentions(wanted, 0), strict=True):
        for name in ("to_q", "to_k", "to_v"):
            ahead = getattr(theirs.attn, name).weight.grad
            assert ahead.abs().max() > 0
            torch.testing.assert_close(getattr(ours, name).weight.grad, ahead)


def test_other_attention_gets_no_argument_that_it_does_not_know(caplog):
    with caplog.at_level("WARNING", logger="diffusers"):
        strided(nets.sdxl(), TokenStride(stride=2, stages=2))(
            **{**drawn(), "added_cond_kwargs": ADDED}
        )
    assert not caplog.records


ADDED = {"text_embeds": torch.zeros(2, 8), "time_ids": torch.zeros(2, 6)}


def test_a_compiler_sees_one_graph():
    net, given = strided(nets.sd()), drawn()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**given).sample, net(**given).sample)


@torch.no_grad()
def test_outer_layers_run_alone_with_their_stride():
    net, given = strided(nets.sd()), drawn()
    x, t, text = given.values()
    wanted = net(**given).sample
    for layers in (None, 1, 2):
        f, deep = full(net, x, t, layers, encoder_hidden_states=text)
        assert torch.equal(f, wanted)
        assert torch.equal(shallow(net, x, t, deep, layers, encoder_hidden_states=text), f)


# --- Networks made from others ------------------------------------------------------------------


def test_smaller_networks_keep_the_stride_of_what_they_are_made_from():
    net = nets.sd()
    changed = strided(net)
    for make in (build, share):
        plan = drop_blocks(net, ["stages.0.layers.1", "mid_block"])
        found = make(plan, changed)
        assert stride_of(found) == TWO
        assert [attn.token_stride for attn in self_attentions(found, 0)] == [2] * 3
        fresh = make(plan, net)
        assert stride_of(fresh) is None
        stride_attention(fresh, TWO)
        assert torch.equal(found(**drawn()).sample, fresh(**drawn()).sample)
    assert count(plan, changed) == count(plan, net)


def test_a_network_without_that_attention_has_no_stride():
    changed = strided(nets.sd())
    plan = drop_blocks(changed, ["down_blocks.0.attentions", "up_blocks.3.attentions"])
    assert stride_of(build(plan, changed)) is None


def test_a_smaller_network_can_get_a_stride():
    whole = nets.sd()
    small = build(preset("bk-sdm-tiny", whole), whole)
    check_stride(small, TWO)
    stride_attention(small, TWO)
    assert [attn.token_stride for attn in self_attentions(small, 0)] == [2] * 3
    assert small(**drawn()).sample.shape == (2, 4, 8, 8)


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "given", "message"),
    [
        (
            lambda: nets.sdxl(),
            {"stride": 2},
            r"^compress.attention_stride=2: no self-attention in stage 0; stages with it: 1, 2 "
            r"\(0 is the outermost\); choose compress.attention_stages=2$",
        ),
        (
            lambda: unet2d.pipeline().unet,
            {"stride": 2, "stages": 2},
            r"=2: no self-attention in stages 0 to 1; stages with it: none ",
        ),
        (
            lambda: nets.sd(),
            {"stride": 3},
            r"stride=3: does not divide the 8 x 8 tokens of stage 0; strides that do: 2, 4, 8$",
        ),
        (
            lambda: nets.sd(sample_size=(8, 12)),
            {"stride": 4, "stages": 2},
            r"stride=4: does not divide the 4 x 6 tokens of stage 1; strides that do: 2$",
        ),
        (lambda: nets.sd(), {"stride": 2, "stages": 5}, r"stages=5: the U-Net has 4 stages"),
        (
            lambda: strided(nets.sd()),
            {"stride": 4},
            r"student.init has a stride of 2 in stage 0, which it keeps; leave the key out$",
        ),
    ],
)
def test_what_a_network_cannot_do_is_said_in_one_line(net, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_stride(net(), TokenStride(**given))
    assert "\n" not in str(caught.value)


def test_stages_beyond_the_last_are_left_out():
    net = nets.sd()
    stages = [attn for stage in range(4) for attn in self_attentions(net, stage)]
    assert len(stages) == 15
    changed = strided(net, TokenStride(stride=2, stages=10**12))
    marked = [m for m in changed.modules() if vars(m).get("token_stride") == 2]
    assert len(marked) == 15
    assert not hasattr(changed.mid_block.attentions[0].transformer_blocks[0].attn1, "token_stride")


def test_the_same_stride_twice_is_once():
    net = strided(nets.sd())
    check_stride(net, TWO)
    stride_attention(net, TWO)
    assert torch.equal(net(**drawn()).sample, strided(nets.sd())(**drawn()).sample)
    with pytest.raises(ValueError, match="has a stride of 2 in stage 0 already"):
        stride_attention(net, TokenStride(stride=4))
    with pytest.raises(ValueError, match="no self-attention in stage 0"):
        stride_attention(nets.dit(), TWO)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stride": 1}, r"student.json: attention.stride: .* greater than or equal to 2"),
        ({"stride": 2, "side": 3}, r"student.json: attention.side: Extra inputs"),
        ([2], r"student.json: attention: "),
        ({"stride": 4}, r"student.json: attention: the attention has a stride of 2 in stage 0 a"),
    ],
)
def test_a_damaged_file_is_named(given, message, tmp_path):
    (tmp_path / "student.json").write_text(json.dumps({"attention": given}))
    with pytest.raises(ValueError, match=message) as caught:
        restore_stride(strided(nets.sd()), tmp_path / "student.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [{"attention_stride": 9}, {"attention_stages": 2}])
def test_settings_without_sense_are_refused(words):
    with pytest.raises(ValueError, match="attention_st"):
        Compress(**words)
