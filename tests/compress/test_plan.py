"""Plans: counts, copies, shared weights, reloading, and what they refuse."""

import json

import pytest
import torch
from compress.nets import SD15, calls, full, output, sd
from torch.testing import assert_close

from edgedistill.compress.plan import Channels, Plan, build, count, share
from edgedistill.compress.presets import preset
from edgedistill.compress.units import drop_blocks


def test_a_plan_survives_json():
    plan = preset("bk-sdm-tiny", sd())
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    cut = Plan({"a": 1}, {}, {"s": Channels(4, [0, 2])}, {"w": [["s"], []]})
    assert Plan.from_json(json.loads(json.dumps(cut.to_json()))) == cut
    assert set(plan.to_json()) == {"config", "sources"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": {}}, "'config' is missing"),
        ({"config": {}, "sources": []}, "'sources' is missing or no mapping"),
        ({"config": {}, "sources": {}, "channels": {"s": {"size": 1}}}, "size and keep"),
    ],
)
def test_a_wrong_plan_file_names_its_key(data, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(data)


def test_built_weights_are_copies_of_the_same_dtype():
    net = sd().to(torch.bfloat16)
    plan = preset("bk-sdm-base", net)
    new = build(plan, net)
    ours, theirs = new.state_dict(), net.state_dict()
    path = "up_blocks.1.{}.1.{}"
    for at, name in (
        ("resnets", "conv1.weight"),
        ("attentions", "transformer_blocks.0.attn2.to_k.weight"),
    ):
        mine, old = ours[path.format(at, name)], theirs[f"up_blocks.1.{at}.2.{name}"]
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, old)
        assert mine.data_ptr() != old.data_ptr()
    assert torch.equal(
        ours["up_blocks.1.resnets.0.conv1.bias"], theirs["up_blocks.1.resnets.0.conv1.bias"]
    )
    assert not new.training
    assert all(p.requires_grad for p in new.parameters())
    assert sum(p.numel() for p in new.parameters()) == count(plan, net)


def test_shared_parameters_are_the_same_objects():
    net = sd()
    new = share(preset("bk-sdm-small", net), net)
    theirs = dict(net.named_parameters())
    assert all(any(p is q for q in theirs.values()) for p in new.parameters())
    assert (
        new.get_parameter("up_blocks.2.resnets.1.conv2.bias")
        is theirs["up_blocks.2.resnets.2.conv2.bias"]
    )
    call = calls(net)[0]
    before = output(new, call)
    with torch.no_grad():
        net.conv_out.bias.add_(1.0)
    assert_close(output(new, call), before + 1)


def test_shared_and_built_networks_agree():
    net = sd()
    plan = preset("bk-sdm-tiny", net)
    call = calls(net)[0]
    assert torch.equal(output(share(plan, net), call), output(build(plan, net), call))


def test_meta_networks_stay_on_meta():
    net = full(SD15)
    new = build(preset("bk-sdm-tiny", net), net)
    assert {p.device.type for p in new.parameters()} == {"meta"}
    assert sum(p.numel() for p in new.parameters()) == 323_384_964


def test_buffers_outside_the_state_dict_are_copied():
    from compress.nets import dit

    net = dit()
    new = build(drop_blocks(net, ["transformer_blocks.1"]), net)
    assert "pos_embed.pos_embed" not in new.state_dict()
    assert torch.equal(new.pos_embed.pos_embed, net.pos_embed.pos_embed)


def test_the_longest_prefix_decides():
    net = sd()
    plan = drop_blocks(net, ["stages.3"])
    more = {"up_blocks.0.resnets.0.conv2": "up_blocks.1.resnets.1.conv2"}
    new = build(Plan(plan.config, plan.sources | more), net)
    assert torch.equal(
        new.up_blocks[0].resnets[0].conv2.weight, net.up_blocks[1].resnets[1].conv2.weight
    )
    assert torch.equal(
        new.up_blocks[0].resnets[0].norm2.weight, net.up_blocks[1].resnets[0].norm2.weight
    )


def test_a_weight_without_source_names_both_paths():
    net = sd()
    plan = drop_blocks(net, [])
    lost = Plan(plan.config, {"conv_in": "conv_nowhere"})
    with pytest.raises(
        ValueError, match=r"conv_in.weight has no source: .* no conv_nowhere.weight"
    ):
        build(lost, net)
    other = Plan(plan.config, {"up_blocks.3.resnets.1": "up_blocks.3.resnets.0"})
    path = r"up_blocks.3.resnets.{}.norm1.weight of shape \({},\)".format
    message = f"{path(1, 16)} cannot come from {path(0, 24)}"
    with pytest.raises(ValueError, match=message):
        share(other, net)


def test_channels_must_be_those_of_the_dimension_and_cannot_be_shared():
    net = sd()
    plan = drop_blocks(net, [])
    cut = Plan(plan.config, {}, {"s": Channels(5, [0])}, {"conv_in.bias": [["s"]]})
    with pytest.raises(ValueError, match=r"conv_in.bias: channels s are of 5, dimension 0 has 8"):
        build(cut, net)
    with pytest.raises(ValueError, match="shares no parameters; use build"):
        share(cut, net)


def test_a_network_without_a_config_is_refused():
    with pytest.raises(
        ValueError, match="Linear has no config; compression needs a diffusers model"
    ):
        drop_blocks(torch.nn.Linear(1, 1), [])
