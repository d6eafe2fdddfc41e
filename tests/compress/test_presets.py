"""Published layouts: exact sizes, copies from the right places, and networks they do not fit."""

import pytest
import torch
from compress.nets import SD15, SD21, SDXL, calls, dit, full, output, sd, sdxl, silence
from torch.testing import assert_close

from edgedistill.compress.plan import build, count
from edgedistill.compress.presets import PRESETS, preset
from edgedistill.compress.units import units
from edgedistill.teachers import load_teacher

SIZES = [
    (SD15, "bk-sdm-base", 579_384_964),
    (SD15, "bk-sdm-small", 482_346_884),
    (SD15, "bk-sdm-tiny", 323_384_964),
    (SD21, "bk-sdm-base", 583_480_964),
    (SD21, "bk-sdm-small", 485_787_524),
    (SD21, "bk-sdm-tiny", 326_825_604),
    (SDXL, "koala-1b", 1_161_184_324),
    (SDXL, "koala-700m", 782_822_724),
    (SDXL, "ssd-1b", 1_331_334_404),
    (SDXL, "vega", 745_225_604),
]
BK = ("bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny")


@pytest.mark.parametrize(
    ("config", "size"), [(SD15, 859_520_964), (SD21, 865_910_724), (SDXL, 2_567_463_684)]
)
def test_the_full_configs_are_the_published_ones(config, size):
    assert sum(p.numel() for p in full(config).parameters()) == size


@pytest.mark.parametrize(("config", "name", "size"), SIZES)
def test_sizes_are_exact(config, name, size):
    net = full(config)
    plan = preset(name, net)
    assert count(plan, net) == size
    assert sum(p.numel() for p in build(plan, net).parameters()) == size


def network(name):
    return sd() if name in BK else sdxl()


@pytest.mark.parametrize("name", PRESETS)
def test_a_built_network_reloads_in_diffusers_and_gives_the_same(name, tmp_path):
    net = network(name)
    new = build(preset(name, net), net)
    call = calls(net)[0]
    expected = output(new, call)
    assert expected.shape == call["sample"].shape
    new.save_pretrained(tmp_path)
    again = output(type(net).from_pretrained(tmp_path), call)
    # Kernels without AVX-512 round by where a tensor lies in memory.
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-4)


def test_bk_sdm_takes_the_last_up_layer_and_the_first_down_layer():
    net = sd()
    plan = preset("bk-sdm-base", net)
    pairs = {f"up_blocks.{i}.resnets.1": f"up_blocks.{i}.resnets.2" for i in range(4)}
    pairs |= {f"up_blocks.{i}.attentions.1": f"up_blocks.{i}.attentions.2" for i in (1, 2, 3)}
    assert plan.sources == pairs


def test_bk_sdm_tiny_shifts_the_up_blocks():
    net = sd()
    new = build(preset("bk-sdm-tiny", net), net)
    for i in range(3):
        ours, theirs = new.up_blocks[i], net.up_blocks[i + 1]
        assert torch.equal(ours.resnets[0].conv1.weight, theirs.resnets[0].conv1.weight)
        assert torch.equal(ours.resnets[1].conv1.weight, theirs.resnets[2].conv1.weight)
    assert new.down_blocks[2].downsamplers is None
    assert torch.equal(
        new.up_blocks[0].upsamplers[0].conv.weight, net.up_blocks[1].upsamplers[0].conv.weight
    )


def test_koala_keeps_the_transformer_blocks_of_lowest_index():
    net = sdxl()
    new = build(preset("koala-1b", net), net)
    for path, depth in (("mid_block", 6), ("down_blocks.2", 6), ("up_blocks.1", 2)):
        ours = new.get_submodule(f"{path}.attentions.0.transformer_blocks")
        theirs = net.get_submodule(f"{path}.attentions.0.transformer_blocks")
        assert len(ours) == depth
        for mine, old in zip(ours, theirs, strict=False):
            assert torch.equal(mine.ff.net[2].weight, old.ff.net[2].weight)


def removed_by(name, net):
    """The teacher's residual modules that have no place in the student."""
    plan = preset(name, net)
    new = build(plan, net)
    from edgedistill.compress.plan import source

    kept = {source(plan.sources, path) for path, _ in new.named_modules()}
    gone = [path for path, _ in net.named_modules() if path not in kept]
    return new, [
        p
        for p in gone
        if p.rpartition(".")[0].endswith(("resnets", "attentions", "transformer_blocks"))
    ]


@pytest.mark.parametrize(
    "name", ["bk-sdm-base", "bk-sdm-small", "koala-1b", "koala-700m", "ssd-1b", "vega"]
)
def test_removing_what_does_nothing_changes_nothing(name):
    """The oracle for sources: what stays reads the skips and weights it read before."""
    net = network(name)
    _, gone = removed_by(name, net)
    silence(net, gone)
    call = calls(net)[0]
    assert_close(
        output(build(preset(name, net), net), call), output(net, call), atol=1e-5, rtol=1e-4
    )


def test_a_layer_that_does_something_is_missed():
    net = sd()
    call = calls(net)[0]
    gap = output(build(preset("bk-sdm-base", net), net), call) - output(net, call)
    assert gap.abs().max() > 1e-3


@torch.no_grad()
def test_tiny_loses_nothing_where_nothing_reads_the_innermost_stage():
    net = sd()
    _, gone = removed_by("bk-sdm-base", net)
    silence(net, gone)
    first = net.up_blocks[1].resnets[0]
    # The first half of its input comes from the innermost stage; groups do not straddle it.
    first.conv1.weight[:, :24] = 0
    first.conv_shortcut.weight[:, :24] = 0
    call = calls(net)[0]
    assert_close(
        output(build(preset("bk-sdm-tiny", net), net), call),
        output(net, call),
        atol=1e-5,
        rtol=1e-4,
    )


def test_bk_sdm_fits_the_shipped_teacher():
    """Its stages have one layer pair already, so only the middle goes."""
    net = load_teacher("stable_diffusion", "emoji").net.unet
    total = sum(p.numel() for p in net.parameters())
    middle = sum(p.numel() for p in net.mid_block.parameters())
    assert count(preset("bk-sdm-base", net), net) == total
    assert count(preset("bk-sdm-small", net), net) == total - middle
    g = torch.Generator().manual_seed(0)
    x, words = torch.randn(1, 16, 8, 8, generator=g), torch.randn(1, 4, 128, generator=g)
    new = build(preset("bk-sdm-small", net), net)
    assert new(x, 500, words, return_dict=False)[0].shape == x.shape
    message = (
        r"bk-sdm-tiny: needs two innermost stages of one width, found widths \[80, 112, 144\]"
    )
    with pytest.raises(ValueError, match=message):
        preset("bk-sdm-tiny", net)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("bk-sdm-bass", sd, "unknown preset 'bk-sdm-bass' .did you mean 'bk-sdm-base'"),
        (
            "bk-sdm-base",
            dit,
            "bk-sdm-base: needs a UNet2DConditionModel, found DiTTransformer2DModel",
        ),
        (
            "bk-sdm-small",
            lambda: sd(mid_block_type=None),
            "needs a mid_block, found mid_block_type None",
        ),
        ("koala-1b", sd, "koala-1b: needs 3 stages, found 4"),
        (
            "koala-1b",
            lambda: sdxl(transformer_layers_per_block=(1, 2, 5)),
            r"needs 6 transformer blocks in down_blocks.2.attentions.0, found 5",
        ),
        (
            "koala-700m",
            lambda: sdxl(down_block_types=("CrossAttnDownBlock2D",) * 3),
            "needs no attentions in down_blocks.0, found a CrossAttnDownBlock2D",
        ),
        (
            "vega",
            lambda: sdxl(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D")),
            "vega: needs attentions in up_blocks.1, found a UpBlock2D",
        ),
        ("ssd-1b", lambda: sdxl(layers_per_block=1), "needs 2 layers a stage, found 1 in stage 0"),
        (
            "ssd-1b",
            lambda: sdxl(mid_block_type="UNetMidBlock2D"),
            "needs a mid_block.attentions, found mid_block_type UNetMidBlock2D",
        ),
        (
            "koala-1b",
            lambda: sdxl(mid_block_type=None),
            "koala-1b: needs an attention in the middle, found None",
        ),
        (
            "bk-sdm-base",
            lambda: sd(down_block_types=("AttnDownBlock2D",) + ("DownBlock2D",) * 3),
            "down_blocks: AttnDownBlock2D is none of DownBlock2D, CrossAttnDownBlock2D",
        ),
        (
            "bk-sdm-base",
            lambda: sd(dual_cross_attention=True),
            "dual_cross_attention: its attentions have no list of blocks",
        ),
    ],
)
def test_a_preset_says_what_it_needs_and_what_it_found(name, make, message):
    with pytest.raises(ValueError, match=message):
        preset(name, make())


def test_a_preset_of_a_smaller_network_is_that_network():
    net = sd()
    once = build(preset("bk-sdm-base", net), net)
    assert preset("bk-sdm-base", once).sources == {}
    assert set(units(once)).isdisjoint(f"stages.{i}.layers.1" for i in range(4))
