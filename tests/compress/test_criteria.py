"""Which units matter, which groups are linear, and what a budget removes."""

import pytest
import torch
from compress.nets import calls, dit, flux, output, sd, sdxl, silence
from torch import nn

from edgedistill.compress.criteria import cheapest, linear_probe, plan_for_budget, removal_costs
from edgedistill.compress.plan import build, count
from edgedistill.compress.units import drop_blocks, units


def test_the_cost_is_the_relative_change_of_the_output():
    net = sd().train()
    inputs = calls(net, 2)
    costs = removal_costs(net, inputs, ["mid_block", "stages.1.layers.1"])
    assert list(costs) == ["mid_block", "stages.1.layers.1"]
    net.eval()
    smaller = build(drop_blocks(net, ["mid_block"]), net)
    change = sum((output(smaller, c) - output(net, c)).square().sum() for c in inputs)
    size = sum(output(net, c).square().sum() for c in inputs)
    assert costs["mid_block"] == pytest.approx(float(change / size), rel=1e-4)


def test_asking_for_costs_leaves_the_network_alone():
    net = sd().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    removal_costs(net, calls(net), ["mid_block"])
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_layer_that_does_nothing_is_cheapest():
    net = sd()
    silence(net, ["down_blocks.2.resnets.1", "down_blocks.2.attentions.1"])
    silence(net, ["up_blocks.1.resnets.1", "up_blocks.1.attentions.1"])
    costs = removal_costs(net, calls(net))
    assert set(costs) == set(units(net))
    assert min(costs, key=costs.__getitem__) == "stages.2.layers.1"
    assert costs["stages.2.layers.1"] < 1e-9 < 1e-6 < sorted(costs.values())[1]


def test_a_transformer_block_that_does_nothing_is_cheapest():
    for net in (dit(), flux()):
        silence(net, ["transformer_blocks.1"])
        costs = removal_costs(net, calls(net))
        assert min(costs, key=costs.__getitem__) == "transformer_blocks.1"
        assert costs["transformer_blocks.1"] < 1e-9


def test_costs_refuse_nothing_to_go_by():
    net = sd()
    with pytest.raises(ValueError, match="at least one call"):
        removal_costs(net, [])
    with pytest.raises(ValueError, match="unknown unit 'mid'"):
        removal_costs(net, calls(net), ["mid"])
    nn.init.zeros_(net.conv_out.weight), nn.init.zeros_(net.conv_out.bias)
    with pytest.raises(ValueError, match="output is zero for every call"):
        removal_costs(net, calls(net), ["mid_block"])


class Linear(nn.Module):
    """A linear block in the place of a transformer's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, hidden_states, **_):
        return self.map(hidden_states)


def test_a_group_of_linear_blocks_is_linear():
    net = dit()
    inputs = calls(net, 6)
    whole = linear_probe(net, inputs, (1, 2))
    assert whole > 1e-3
    net.transformer_blocks[1], net.transformer_blocks[2] = Linear(16), Linear(16)
    assert linear_probe(net, inputs, (1, 2)) < 1e-9
    assert linear_probe(net, inputs, (1, 1)) < 1e-9
    assert linear_probe(net, inputs, (1, 3)) > 1e-3


def test_noise_is_not_linear_in_anything():
    """The degrees of freedom are taken off, so few tokens do not look linear."""

    class Noise(Linear):
        def forward(self, hidden_states, **_):
            g = torch.Generator().manual_seed(int(hidden_states.sum() * 1e6) % 2**31)
            return torch.randn(hidden_states.shape, generator=g)

    net = dit()
    net.transformer_blocks[3] = Noise(16)
    assert linear_probe(net, calls(net, 2), (3, 3)) == pytest.approx(1, abs=0.15)


def test_the_probe_of_flux_counts_both_lists():
    net = flux()
    inputs = calls(net, 4)
    for group in ((0, 1), (1, 2), (4, 4)):
        assert 0 < linear_probe(net, inputs, group) < 1.5
    silence(net, ["single_transformer_blocks.1", "single_transformer_blocks.2"])
    assert linear_probe(net, inputs, (3, 3)) < 1e-9
    for call in inputs:
        as_long = torch.zeros_like(call["hidden_states"]).repeat(1, 1, 2)
        call |= {"encoder_hidden_states": as_long, "txt_ids": call["img_ids"]}
    assert linear_probe(net, inputs, (4, 4)) < 1e-9, "the pictures' stream, not the text's"


def test_the_probe_refuses_what_it_cannot_fit():
    net = dit()
    with pytest.raises(ValueError, match=r"no group \(2, 4\); choose 0 <= first <= last <= 3"):
        linear_probe(net, calls(net), (2, 4))
    call = {k: v[:1] for k, v in calls(net)[0].items()}
    with pytest.raises(ValueError, match="16 tokens cannot fit 16 channels; give more calls"):
        linear_probe(net, [call], (1, 2))
    with pytest.raises(ValueError, match="UNet2DConditionModel has no list of blocks"):
        linear_probe(sd(), calls(sd()), (0, 0))


def even_costs(net):
    g = torch.Generator().manual_seed(0)
    return {name: float(torch.rand(1, generator=g)) for name in units(net)}


@pytest.mark.parametrize(
    ("make", "budget"), [(sd, 0.8), (sd, 0.4), (sdxl, 0.7), (dit, 0.6), (flux, 0.6)]
)
def test_a_budget_is_met_and_nothing_goes_that_could_stay(make, budget):
    net = make()
    total = sum(p.numel() for p in net.parameters())
    costs = even_costs(net)
    removed = cheapest(net, costs, budget)
    plan = plan_for_budget(net, costs, budget)
    assert plan == drop_blocks(net, removed)
    assert count(plan, net) <= budget * total
    for name in removed:
        rest = [other for other in removed if other != name]
        assert count(drop_blocks(net, rest), net) > budget * total
    assert output(build(plan, net), calls(net)[0]).isfinite().all()


def test_the_cheapest_by_parameter_goes_first():
    net = dit()
    costs = {f"transformer_blocks.{k}": cost for k, cost in enumerate([1.0, 4.0, 2.0], 1)}
    assert cheapest(net, costs, 1.0) == []
    total = sum(p.numel() for p in net.parameters())
    block = sum(p.numel() for p in net.transformer_blocks[0].parameters())
    assert cheapest(net, costs, 1 - block / total) == ["transformer_blocks.1"]
    two = cheapest(net, costs, 1 - 1.5 * block / total)
    assert set(two) == {"transformer_blocks.1", "transformer_blocks.3"}


def test_what_still_fits_comes_back_dearest_first():
    """A large cheap unit that came late makes smaller ones before it needless."""
    net = sd()
    total = sum(p.numel() for p in net.parameters())
    middle = sum(p.numel() for p in net.mid_block.parameters())
    costs = {"up_blocks.3.attentions": 0.0, "down_blocks.0.attentions": 1e-6, "mid_block": 10.0}
    assert cheapest(net, costs, 1 - middle / total) == ["mid_block"]


def test_a_budget_out_of_reach_names_what_is_reached():
    net = dit()
    costs = even_costs(net)
    total = sum(p.numel() for p in net.parameters())
    block = sum(p.numel() for p in net.transformer_blocks[0].parameters())
    least = 1 - 3 * block / total
    with pytest.raises(
        ValueError, match=f"budget 0.01 is below the smallest share .* {least:.4f}"
    ):
        plan_for_budget(net, costs, 0.01)
    with pytest.raises(ValueError, match=r"in \(0, 1\]; not 1.5"):
        plan_for_budget(net, costs, 1.5)
    with pytest.raises(ValueError, match=r"unknown unit 'transformer_blocks.9'"):
        plan_for_budget(net, {"transformer_blocks.9": 1.0}, 0.5)
