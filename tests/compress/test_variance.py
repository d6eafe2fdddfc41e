"""What a stack adds after a gap is rescaled as if its states had been."""

import pytest
import torch
from compress.nets import calls, dit, output, pixart, sd3
from diffusers import WanTransformer3DModel

from edgedistill.compress.pruned import Pruned
from edgedistill.compress.units import drop_blocks
from edgedistill.compress.variance import keep_variance


def grown(net):
    """Blocks that add more the later they are, as trained ones do."""
    for k, block in enumerate(net.transformer_blocks):
        for path in ("attn1.to_out.0", "ff.net.2"):
            block.get_submodule(path).weight.data *= 4.0 + 4.0 * k
    return net


def states_before(net, path, call):
    """Hidden states that enter the block at `path`."""
    seen = []
    hook = net.get_submodule(path).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    output(net, call)
    hook.remove()
    return seen[0]


def test_it_is_what_multiplying_the_states_after_each_gap_gives():
    net = grown(dit(6))
    inputs = calls(net, 3)
    pruned = Pruned.make([drop_blocks(net, [f"transformer_blocks.{k}" for k in (1, 2, 4)])], net)
    plain = Pruned.make(pruned.plans, net)
    found = keep_variance(net, pruned, inputs)

    def deviation(path):
        return torch.cat([states_before(net, path, call).flatten() for call in inputs]).std()

    names = [f"transformer_blocks.{k}" for k in range(6)]
    first, second = (
        (deviation(names[3]) / deviation(names[1])),
        deviation(names[5]) / deviation(names[4]),
    )
    assert found == pytest.approx([first.item(), second.item()], rel=1e-5)
    assert first > 1.2  # or the test would show nothing
    # The states multiplied where they enter blocks 1 and 2 of the smaller one.
    for k, factor in ((1, first), (2, second)):
        plain.net.transformer_blocks[k].register_forward_pre_hook(
            lambda m, args, factor=factor: (args[0] * factor, *args[1:])
        )
    for call in inputs:
        torch.testing.assert_close(
            output(pruned.net, call), output(plain.net, call), rtol=1e-3, atol=1e-4
        )


def test_a_gap_at_the_end_changes_nothing():
    net = grown(dit(4))
    pruned = Pruned.make([drop_blocks(net, ["transformer_blocks.3"])], net)
    before = {k: v.clone() for k, v in pruned.net.state_dict().items()}
    assert keep_variance(net, pruned, calls(net)) == []
    assert all(torch.equal(v, before[k]) for k, v in pruned.net.state_dict().items())


@pytest.mark.parametrize(("make", "block"), [(pixart, "BasicTransformer"), (sd3, "Joint")])
def test_blocks_that_cannot_be_rescaled_are_refused(make, block):
    net = make()
    pruned = Pruned.make([drop_blocks(net, ["transformer_blocks.1"])], net)
    with pytest.raises(ValueError, match=f"{block}.*DiT's and Wan's"):
        keep_variance(net, pruned, calls(net))


def test_wan_without_its_cross_norm_is_refused():
    torch.manual_seed(0)
    net = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=3,
        cross_attn_norm=False,
        rope_max_seq_len=16,
    )
    call = {
        "hidden_states": torch.randn(1, 4, 1, 4, 4),
        "timestep": torch.tensor([7]),
        "encoder_hidden_states": torch.randn(1, 3, 8),
    }
    pruned = Pruned.make([drop_blocks(net, ["blocks.1"])], net)
    with pytest.raises(ValueError, match="WanTransformerBlock"):
        keep_variance(net, pruned, [call])
    for block in (*net.blocks, *pruned.net.blocks):
        block.norm2 = torch.nn.LayerNorm(24)
    assert len(keep_variance(net, pruned, [call])) == 1
