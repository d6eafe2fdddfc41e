"""The two parts of real U-Nets: together they are the U-Net, and share the deep state alone."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from edgedistill.compress.plan import build
from edgedistill.compress.presets import preset
from edgedistill.networks.unet_reuse import full, outer_layers, shallow
from edgedistill.tiny import sdxl, stable_diffusion, unet2d

SIDE = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 2}
GROUPS = {"norm_num_groups": 8, "attention_head_dim": 8}
FOUR = {**SIDE, "block_out_channels": (16, 16, 32, 32), **GROUPS, "cross_attention_dim": 16}


def text(n: int, width: int) -> dict:
    return {"encoder_hidden_states": torch.randn(n, 5, width)}


def pooled(n: int) -> dict:
    added = {"text_embeds": torch.randn(n, 16), "time_ids": torch.randn(n, 6)}
    return {**text(n, 32), "added_cond_kwargs": added}


def fourier() -> UNet2DModel:
    return UNet2DModel(
        **{**SIDE, **GROUPS},
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        time_embedding_type="fourier",
        center_input_sample=True,
    )


NETS = {
    "sd": (lambda: stable_diffusion.pipeline().unet, lambda: text(2, 16)),
    "sd of four blocks": (lambda: UNet2DConditionModel(**FOUR), lambda: text(2, 16)),
    "sd pruned": (lambda: pruned(), lambda: text(2, 16)),
    "sdxl": (lambda: sdxl.pipeline().unet, lambda: pooled(2)),
    "pixels": (lambda: unet2d.pipeline().unet, dict),
    "classes": (
        lambda: unet2d.pipeline(classes=3).unet,
        lambda: {"class_labels": torch.arange(2)},
    ),
    "fourier": (fourier, dict),
    "one block": (
        lambda: UNet2DModel(
            **{**SIDE, **GROUPS, "block_out_channels": (16,)},
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
        ),
        dict,
    ),
}


def pruned() -> nn.Module:
    whole = UNet2DConditionModel(**FOUR)
    return build(preset("bk-sdm-tiny", whole), whole)


def made(name: str, side: int = 8) -> tuple:
    """A U-Net, two inputs with two times, and its conditions."""
    torch.manual_seed(0)
    make, conditions = NETS[name]
    unet = make().eval()
    x = torch.randn(2, 2, unet.config.in_channels, side, side)
    return unet, x, torch.tensor([[900.0, 700.0], [500.0, 300.0]]), conditions()


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_both_parts_together_are_the_unet(name):
    unet, (x, _), (t, _), cond = made(name)
    f, deep = full(unet, x, t, **cond)
    assert torch.equal(f, unet(x, t, **cond).sample)
    assert torch.equal(shallow(unet, x, t, deep, **cond), f)


@torch.no_grad()
def test_a_side_that_cannot_be_halved_is_restored():
    unet, (x, _), (t, _), cond = made("sd of four blocks", side=9)
    assert torch.equal(full(unet, x, t, **cond)[0], unet(x, t, **cond).sample)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_cut_between_layers_both_parts_together_are_the_unet(name):
    unet, (x, _), (t, _), cond = made(name)
    wanted = unet(x, t, **cond).sample
    for layers in range(1, outer_layers(unet) + 1):
        f, deep = full(unet, x, t, layers, **cond)
        assert torch.equal(f, wanted)
        assert torch.equal(shallow(unet, x, t, deep, layers, **cond), f)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_last_layers_read_another_deep_state_and_their_own_skip_connections(name):
    """As the U-Net with the first of these layers fed by hand."""
    unet, (x, other), (t, later), cond = made(name)
    for layers in range(1, outer_layers(unet) + 1):
        _, deep = full(unet, x, t, layers, **cond)
        first = unet.up_blocks[-1].resnets[-layers]

        def feed(module, args, deep=deep):
            joined = torch.cat([deep, args[0][:, deep.shape[1] :]], dim=1)
            return (joined, *args[1:])

        fed = first.register_forward_pre_hook(feed)
        wanted = unet(other, later, **cond).sample
        fed.remove()
        found = shallow(unet, other, later, deep, layers, **cond)
        assert torch.equal(found, wanted)
        assert not torch.allclose(found, unet(other, later, **cond).sample, atol=1e-5)


def test_the_last_layer_alone_runs_no_down_block():
    unet, (x, other), (t, later), cond = made("sd of four blocks")
    ran = []
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        for resnet in block.resnets:
            resnet.register_forward_pre_hook(lambda module, args: ran.append(module))
    for layers in (1, 2, 3):
        _, deep = full(unet, x, t, layers, **cond)
        ran.clear()
        f = shallow(unet, other, later, deep, layers, **cond)
        first, last = unet.down_blocks[0].resnets, unet.up_blocks[-1].resnets
        assert ran == [*first[: layers - 1], *last[-layers:]]
        unet.zero_grad()
        f.square().mean().backward()
        assert unet.mid_block.resnets[0].conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_outer_part_reads_its_own_input_and_another_deep_state(name):
    """As the U-Net with its last up block fed by hand."""
    unet, (x, other), (t, later), cond = made(name)
    _, deep = full(unet, x, t, **cond)
    last = unet.up_blocks[-1]
    fed = last.register_forward_pre_hook(
        lambda module, args, words: (
            ((deep, *args[1:]), words) if args else (args, {**words, "hidden_states": deep})
        ),
        with_kwargs=True,
    )
    wanted = unet(other, later, **cond).sample
    fed.remove()
    found = shallow(unet, other, later, deep, **cond)
    assert torch.equal(found, wanted)
    assert not torch.allclose(found, unet(other, later, **cond).sample, atol=1e-4)


def test_the_outer_part_runs_no_deep_block_and_leads_gradients_into_the_deep_state():
    unet, (x, other), (t, later), cond = made("sd of four blocks")
    _, deep = full(unet, x, t, **cond)
    ran = []
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: ran.append(module))
    shallow(unet, other, later, deep, **cond).square().mean().backward()
    assert ran == [blocks[0], blocks[-1]]
    assert unet.mid_block.resnets[0].conv1.weight.grad.abs().max() > 0
    assert unet.down_blocks[0].resnets[0].conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(2, 2),
        UNet2DModel(
            **{**SIDE, "norm_num_groups": 8},
            down_block_types=("SkipDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "SkipUpBlock2D"),
        ),
    ],
)
def test_another_network_is_refused(net):
    with pytest.raises(ValueError, match=r"plain UNet2DModel and UNet2DConditionModel only"):
        full(net, torch.zeros(1, 3, 8, 8), torch.zeros(1))


def test_a_block_that_does_not_run_by_layers_is_refused_only_if_it_must():
    unet = UNet2DModel(
        **{**SIDE, **GROUPS},
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
    )
    x, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    assert torch.equal(full(unet, x, t)[0], unet(x, t).sample)
    with pytest.raises(ValueError, match=r"ResnetUpsampleBlock2D: .*leave out student\.reuse_la"):
        full(unet, x, t, 1)
