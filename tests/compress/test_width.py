"""Fewer channels: the same ones wherever they are read, chosen by magnitude."""

import random

import pytest
import torch
from compress.nets import SD15, calls, dit, full, output, sd, sdxl
from torch.testing import assert_close

from edgedistill.compress.plan import Channels, Plan, build, count, share
from edgedistill.compress.presets import preset
from edgedistill.compress.width import prune_width

EVEN = {"block_out_channels": (8, 16, 32, 32)}


def layouts():
    return sd(**EVEN), sdxl(block_out_channels=(8, 16, 32), transformer_layers_per_block=(1, 1, 2))


def test_all_channels_are_the_network():
    for net in layouts():
        call = calls(net)[0]
        assert torch.equal(output(build(prune_width(net, 1.0), net), call), output(net, call))


def shuffled(plan, seed):
    """Pairs of neighbours swapped at random, which no group and no head notices."""
    rng = random.Random(seed)
    channels = {}
    for name, axis in plan.channels.items():
        pairs = zip(axis.keep[::2], axis.keep[1::2], strict=True)
        swapped = [i for a, b in pairs for i in ((b, a) if rng.random() < 0.5 else (a, b))]
        channels[name] = axis if name == "time" else Channels(axis.size, swapped)
    return Plan(plan.config, plan.sources, channels, plan.cuts)


@pytest.mark.parametrize("seed", [0, 1])
def test_channels_in_another_order_are_the_same_network(seed):
    """The oracle for the ties: whatever writes a channel and whatever reads it move together."""
    for net in layouts():
        call = calls(net)[0]
        mixed = build(shuffled(prune_width(net, 1.0), seed), net)
        assert not torch.equal(mixed.conv_in.weight, net.conv_in.weight)
        assert_close(output(mixed, call), output(net, call), atol=1e-5, rtol=1e-4)


def test_a_narrower_network_reloads_in_diffusers_and_gives_the_same(tmp_path):
    for i, net in enumerate(layouts()):
        plan = prune_width(net, 0.5)
        new = build(plan, net)
        assert new.config.block_out_channels == [w // 2 for w in net.config.block_out_channels]
        assert count(plan, net) == sum(p.numel() for p in new.parameters())
        call = calls(net)[0]
        expected = output(new, call)
        assert expected.isfinite().all()
        new.save_pretrained(tmp_path / str(i))
        again = type(net).from_pretrained(tmp_path / str(i))
        assert torch.equal(output(again, call), expected)
        assert Plan.from_json(plan.to_json()) == plan


@torch.no_grad()
def test_the_loudest_channels_of_every_group_stay():
    net = sd(**EVEN)
    loud = [1, 2, 5, 6]
    for name, p in net.named_parameters():
        if name in ("conv_in.weight", "down_blocks.0.downsamplers.0.conv.weight"):
            p[loud] *= 100
    plan = prune_width(net, 0.5)
    assert plan.channels["stages.0"] == Channels(8, loud)
    new = build(plan, net)
    assert torch.equal(new.conv_in.weight, net.conv_in.weight[loud])
    assert torch.equal(new.conv_out.weight, net.conv_out.weight[:, loud])
    ours, theirs = new.up_blocks[3].resnets[2], net.up_blocks[3].resnets[2]
    inside = plan.channels["up_blocks.3.resnets.2.inside"].keep
    both = [*loud, *(8 + i for i in loud)]
    assert torch.equal(ours.conv1.weight, theirs.conv1.weight[inside][:, both])


@torch.no_grad()
def test_feed_forward_channels_that_add_nothing_go_without_a_trace():
    net = sd(**EVEN)
    path = "up_blocks.1.attentions.0.transformer_blocks.0.ff.net"
    keep = prune_width(net, 0.5).channels[f"{path}.inside"].keep
    quiet = sorted({*range(128)} - {*keep})
    feed = net.get_submodule(path)
    for part in (feed[0].proj.weight[:128], feed[0].proj.weight[128:], feed[2].weight.T):
        part[quiet] = 0
    feed[0].proj.bias[:128][quiet] = 0
    whole = prune_width(net, 1.0)
    only = Channels(128, prune_width(net, 0.5).channels[f"{path}.inside"].keep)
    assert only.keep == keep
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    cuts = {p: dims for p, dims in whole.cuts.items() if p.startswith(path)}
    smaller = feed[0].proj.weight[[*keep, *(128 + i for i in keep)]]
    assert cuts[f"{path}.0.proj.weight"][0] == [f"{path}.inside"] * 2
    bias = feed[0].proj.bias[[*keep, *(128 + i for i in keep)]]
    value, gate = torch.nn.functional.linear(x, smaller, bias).chunk(2, -1)
    left = (value * torch.nn.functional.gelu(gate)) @ feed[2].weight[:, keep].T + feed[2].bias
    assert_close(left, feed[2](feed[0](x)))


def test_frequencies_of_the_time_embedding_are_the_narrower_ones():
    net = sd(**EVEN)
    plan = prune_width(net, 0.5)
    assert plan.channels["time"].keep == [0, 2, 4, 6]
    new = build(plan, net)
    t = torch.tensor([3.0, 700.0])
    assert_close(new.time_proj(t), net.time_proj(t)[:, [0, 2, 4, 6]])
    assert new.time_embedding.linear_2.weight.shape == net.time_embedding.linear_2.weight.shape


def test_full_size_is_counted_on_meta():
    net = full(SD15)
    total = sum(p.numel() for p in net.parameters())
    half = prune_width(net, 0.5)
    assert half.config["block_out_channels"] == [160, 320, 640, 640]
    assert 0.25 < count(half, net) / total < 0.35
    uneven = prune_width(net, 0.77)
    assert uneven.config["block_out_channels"] == [256, 480, 992, 992]
    assert count(uneven, net) < total


@pytest.mark.parametrize(
    ("make", "factor", "message"),
    [
        (sd, 0, r"in \(0, 1\]; not 0"),
        (dit, 0.5, "needs a UNet2DConditionModel, found DiTTransformer2DModel"),
        (
            sd,
            0.1,
            r"factor 0.1 makes widths \[8, 16, 24, 24\] into \[4, 4, 4, 4\]; stages must differ",
        ),
        (
            lambda: sd(resnet_time_scale_shift="scale_shift"),
            0.5,
            "narrower needs resnet_time_scale_shift 'default', found 'scale_shift'",
        ),
        (
            lambda: sd(attention_head_dim=5),
            0.5,
            "width 8 is no multiple of 20, its groups and head",
        ),
    ],
)
def test_what_cannot_be_narrower_is_named(make, factor, message):
    with pytest.raises(ValueError, match=message):
        prune_width(make(), factor)


def test_narrower_weights_cannot_be_shared():
    net = sd()
    with pytest.raises(ValueError, match="use build"):
        share(prune_width(net, 1.0), net)


@pytest.mark.parametrize("name", ["bk-sdm-tiny", "vega"])
def test_a_network_with_fewer_blocks_can_be_narrower_too(name):
    net = sd(**EVEN) if name == "bk-sdm-tiny" else sdxl(block_out_channels=(8, 16, 32))
    fewer = build(preset(name, net), net)
    call = calls(net)[0]
    assert torch.equal(output(build(prune_width(fewer, 1.0), fewer), call), output(fewer, call))
    half = build(prune_width(fewer, 0.5), fewer)
    assert output(half, call).shape == (2, 4, 8, 8)
