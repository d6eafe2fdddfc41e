"""What can go on its own: which units there are, and that each leaves the network it says."""

import copy

import pytest
import torch
from compress.nets import (
    SDXL,
    calls,
    dit,
    flux,
    full,
    output,
    pixart,
    qwen,
    sana,
    sd,
    sd3,
    sdxl,
    silence,
)
from torch.testing import assert_close

from edgedistill.compress.plan import build, count, share
from edgedistill.compress.units import drop_blocks, units

TRANSFORMERS = (dit, pixart, sana, flux, sd3, qwen)


def shallow():
    """SDXL's layout in which every unit can be tried quickly."""
    return sdxl(transformer_layers_per_block=(1, 2, 2))


def test_the_units_of_a_unet():
    assert set(units(sd())) == {
        *(f"stages.{i}.layers.1" for i in range(4)),
        *(f"down_blocks.{i}.attentions" for i in range(3)),
        *(f"up_blocks.{i}.attentions" for i in (1, 2, 3)),
        "mid_block.attentions",
        "mid_block",
        "stages.3",
    }


def test_the_depth_of_the_middle_goes_with_the_innermost_first_attention():
    found = units(shallow())
    tied = found["down_blocks.2.attentions.0.transformer_blocks.1"]
    assert tied.modules == (
        "down_blocks.2.attentions.0.transformer_blocks.1",
        "mid_block.attentions.0.transformer_blocks.1",
    )
    assert "mid_block.attentions.0.transformer_blocks.1" not in found
    free = units(sd(transformer_layers_per_block=2))
    assert "mid_block.attentions.0.transformer_blocks.1" in free
    assert "stages.2" not in found, "widths 16 and 24 differ"


def test_the_units_of_transformers():
    assert set(units(pixart())) == {f"transformer_blocks.{k}" for k in range(3)}
    assert set(units(dit())) == {f"transformer_blocks.{k}" for k in (1, 2, 3)}, "the first lends"
    singles = {f"single_transformer_blocks.{k}" for k in range(3)}
    assert set(units(flux())) == {"transformer_blocks.0", "transformer_blocks.1"} | singles
    assert set(units(sd3())) == {f"transformer_blocks.{k}" for k in range(3)}, (
        "the last is special"
    )


def streams(net, name):
    """The unit's modules that add to a stream; none for a stage, which changes the resolution."""
    known = dict(net.named_modules())
    paths = []
    for path in () if name == "stages.3" else units(net)[name].modules:
        inside = [f"{path}.{k}" for k in range(9)] if path.endswith("attentions") else [path]
        paths += [p for p in inside if p in known]
    return paths


@pytest.mark.parametrize(
    ("make", "every"), [(sd, 2), (shallow, 4), *((make, 1) for make in TRANSFORMERS)]
)
def test_a_unit_is_the_parameters_that_go_and_is_not_missed_if_it_did_nothing(make, every):
    net = make()
    call, weights = calls(net)[0], copy.deepcopy(net.state_dict())
    sizes = {path: p.numel() for path, p in net.named_parameters()}
    for name, unit in list(units(net).items())[::every]:
        silence(net, streams(net, name))
        smaller = share(drop_blocks(net, [name]), net)
        gone = sum(sizes[path] for path in unit.parameters)
        assert sum(p.numel() for p in smaller.parameters()) == sum(sizes.values()) - gone, name
        if streams(net, name):
            gap = (output(smaller, call) - output(net, call)).abs().max()
            assert gap < 1e-5, name
            net.load_state_dict(weights)
            assert (output(smaller, call) - output(net, call)).abs().max() > 1e-4, name


@pytest.mark.parametrize("make", [sd, shallow, *TRANSFORMERS])
def test_without_a_unit_the_saved_network_reloads(make, tmp_path):
    net = make()
    call = calls(net)[0]
    for i, name in enumerate(list(units(net))[1::8]):
        new = build(drop_blocks(net, [name]), net)
        new.save_pretrained(tmp_path / str(i))
        again = type(net).from_pretrained(tmp_path / str(i))
        torch.testing.assert_close(output(again, call), output(new, call), atol=1e-5, rtol=1e-4)


def test_several_units_go_at_once():
    net = shallow()
    names = [
        "stages.2.layers.1",
        "down_blocks.2.attentions.0.transformer_blocks.0",
        "up_blocks.0.attentions.2.transformer_blocks.1",
        "up_blocks.1.attentions",
        "down_blocks.1.attentions.1.transformer_blocks.0",
    ]
    silence(net, [p for name in names for p in streams(net, name)])
    plan = drop_blocks(net, names)
    assert plan.config["transformer_layers_per_block"] == [1, [2, 1], 1]
    assert plan.config["reverse_transformer_layers_per_block"] == [[2, 1], 1, 1]
    assert plan.config["up_block_types"] == ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]
    call = calls(net)[0]
    assert_close(output(build(plan, net), call), output(net, call), atol=1e-5, rtol=1e-4)


def test_everything_can_go_but_a_chain():
    net = sd()
    new = build(drop_blocks(net, units(net)), net)
    assert new.config.block_out_channels == [8, 16, 24]
    assert new.config.down_block_types == ["DownBlock2D"] * 3
    assert output(new, calls(net)[0]).shape == (2, 4, 8, 8)


def test_nothing_removed_is_the_network():
    for make in (sd, shallow, *TRANSFORMERS):
        net = make()
        call = calls(net)[0]
        torch.testing.assert_close(
            output(build(drop_blocks(net, []), net), call), output(net, call), atol=1e-5, rtol=1e-4
        )


def test_a_smaller_network_can_be_made_smaller_again():
    net = sdxl(transformer_layers_per_block=(1, 1, 3))
    once = build(drop_blocks(net, ["down_blocks.2.attentions.1.transformer_blocks.0"]), net)
    twice = build(drop_blocks(once, ["down_blocks.2.attentions.1.transformer_blocks.0"]), once)
    kept = net.down_blocks[2].attentions[1].transformer_blocks[2]
    ours = twice.down_blocks[2].attentions[1].transformer_blocks
    assert len(ours) == 1
    assert torch.equal(ours[0].ff.net[2].weight, kept.ff.net[2].weight)


def test_dual_attention_layers_keep_their_blocks():
    plan = drop_blocks(sd3(), ["transformer_blocks.1"])
    assert plan.config["dual_attention_layers"] == [0, 1]
    assert plan.config["num_layers"] == 3


def test_full_size_units_take_seconds():
    net = full(SDXL)
    found = units(net)
    assert len(found) == 69
    total = sum(p.numel() for p in net.parameters())
    assert count(drop_blocks(net, ["mid_block"]), net) == total - sum(
        p.numel() for p in net.mid_block.parameters()
    )


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        (sd, ["mid_blok"], "unknown unit 'mid_blok' .did you mean 'mid_block'"),
        (
            shallow,
            [f"up_blocks.0.attentions.2.transformer_blocks.{k}" for k in range(2)],
            "nothing is left of up_blocks.0.attentions.2: all 2 of its transformer blocks go",
        ),
        (
            pixart,
            [f"transformer_blocks.{k}" for k in range(3)],
            "nothing is left of transformer_blocks: all 3 of its blocks go",
        ),
        (dit, ["transformer_blocks.0"], "unknown unit 'transformer_blocks.0'"),
        (sd3, ["transformer_blocks.3"], "unknown unit 'transformer_blocks.3'"),
    ],
)
def test_what_cannot_go_is_named(make, names, message):
    with pytest.raises(ValueError, match=message):
        drop_blocks(make(), names)


def test_networks_without_units_say_what_was_looked_for():
    from diffusers import AutoencoderTiny, HunyuanDiT2DModel

    with pytest.raises(
        ValueError, match="AutoencoderTiny has no list of blocks: looked for transf"
    ):
        units(AutoencoderTiny())
    skips = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        hidden_size=16,
        num_layers=6,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=4,
        sample_size=8,
        patch_size=2,
    )
    with pytest.raises(ValueError, match="HunyuanDiT2DModel: blocks differ by place; none can go"):
        units(skips)
