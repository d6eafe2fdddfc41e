"""The smaller network's lessons: features by path, cut channels, and the order of two stages."""

from dataclasses import replace

import pytest
import torch
from compress import nets
from torch import nn

from edgedistill.compress.config import Compress
from edgedistill.compress.plan import Plan, build
from edgedistill.compress.presets import preset
from edgedistill.compress.pruned import Pruned, choose, depths, record
from edgedistill.compress.units import drop_blocks
from edgedistill.networks.taps import Taps
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Setup
from edgedistill.objectives.compression.elastic import Elastic
from edgedistill.objectives.compression.shrink import (
    Shrink,
    SizeFirst,
    facing,
    feature_loss,
    tap_paths,
)
from edgedistill.recipes.loading import load
from edgedistill.teachers.families.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def teacher(tiny_sd):
    return StableDiffusion.load(str(tiny_sd))


def setup(teacher, section, guidance=1.0):
    student = teacher.spawn(torch.Generator())
    core = student.net.unet
    pruned = choose(section, core, list) if section.active else None
    if pruned:
        student.net.unet = pruned.net
    return Setup(
        teacher=teacher.guided(guidance),
        student=student,
        spawn=lambda: teacher.spawn(),
        times=torch.tensor([1.0, 0.0]),
        sampler="renoise",
        optim=Optim(),
        tap="",
        example=(torch.zeros(2, 4, 4, 4), {}),
        core="unet",
        pruned=pruned,
    )


def batch(teacher, n=3):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(n, 4, 4, 4, generator=generator)
    return Batch(x0, teacher.encode(["red"] * n), generator, generator)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.one = nn.Conv2d(1, 1, 1), nn.Conv1d(1, 1, 1)


def test_taps_keep_what_modules_put_out_inside_the_context_only():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    taps, x = Taps(net, ["0", "1"]), torch.randn(4, 2)
    net(x)
    with pytest.raises(RuntimeError, match="0 was not called"):
        taps.take()
    with taps:
        net(x)
    first, second = taps.take()
    assert torch.equal(first, net[0](x))
    assert torch.equal(second, net(x))
    with pytest.raises(ValueError, match=r"no module 'conv1' in Net; nearest: conv, "):
        Taps(Net(), ["conv1"])


def test_features_are_held_against_their_own_size():
    theirs = [torch.full((2, 3), 100.0), torch.full((5,), 0.01)]
    ours = [torch.full((2, 3), 110.0), torch.full((5,), 0.012)]
    assert feature_loss(ours, theirs).item() == pytest.approx((0.01 + 0.04) / 2, rel=1e-5)


def test_paths_by_kind(teacher):
    unet = teacher.net.unet
    blocks = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert sorted(tap_paths(unet, "blocks")) == sorted(blocks)
    attention = tap_paths(unet, "attention")
    assert attention
    assert all(path.endswith("transformer_blocks.0.attn1") for path in attention)
    with pytest.raises(ValueError, match=r"unknown taps 'block'.*did you mean 'blocks'"):
        tap_paths(unet, "block")
    with pytest.raises(ValueError, match="no modules of the kind 'blocks'"):
        tap_paths(nn.Linear(2, 2), "blocks")


@pytest.mark.parametrize("taps", ["blocks", "attention"])
def test_the_teacher_itself_has_no_output_or_feature_loss(teacher, taps):
    losses = Shrink(Shrink.Config(taps=taps, task=0), setup(teacher, Compress())).loss(
        "student", batch(teacher)
    )
    assert losses.total.item() == pytest.approx(0, abs=1e-9)
    assert losses.logs["task"] > 0.1


def test_a_smaller_student_is_taught_by_the_blocks_it_came_from(teacher):
    section = Compress(remove=("mid_block",))
    given = setup(teacher, section)
    shrink = Shrink(Shrink.Config(), given)
    losses = shrink.loss("student", batch(teacher))
    losses.total.backward()
    # Blocks ahead of the removed one still agree with the teacher's, those behind do not.
    features = losses.logs["features"].item()
    assert features > 1e-3
    only = Shrink(Shrink.Config(task=0, output=0, taps=("down_blocks.0", "down_blocks.1")), given)
    assert only.loss("student", batch(teacher)).total.item() == pytest.approx(0, abs=1e-9)
    assert all(p.grad is None for p in teacher.net.parameters())


def test_channels_of_a_narrower_student_are_compared_with_those_they_came_from(teacher):
    pruned = choose(Compress(width=0.5), teacher.net.unet, list)
    wide = teacher.net.unet.down_blocks[1].resnets[0].conv2.weight
    kept = pruned.channels("down_blocks.1")
    assert kept is not None
    assert len(kept) == 16
    narrow = pruned.net.down_blocks[1].resnets[0].conv2.weight
    inside = pruned.channels("down_blocks.1.resnets.0.conv1")
    assert torch.equal(narrow, wide[kept][:, inside])
    given = setup(teacher, Compress(width=0.5))
    for taps in ("blocks", "attention"):
        losses = Shrink(Shrink.Config(taps=taps), given).loss("student", batch(teacher))
        assert torch.isfinite(losses.total)


def test_origins_go_back_through_every_step():
    pruned = Pruned(nn.Identity(), (Plan({}, {"a.0": "a.2"}), Plan({}, {"b": "a.0"})))
    assert pruned.origin("b.conv") == "a.2.conv"
    assert pruned.origin("c") == "c"


def test_a_section_names_one_way():
    with pytest.raises(ValueError, match="one of preset, remove and budget"):
        Compress(preset="bk-sdm-small", budget=0.5)
    assert not Compress(first=3).active
    assert Compress(width=0.9).active


def test_a_budget_is_met_on_recorded_calls(teacher):
    unet, cond = teacher.net.unet, teacher.encode(["red"])
    x = torch.randn(1, 4, 4, 4)

    def calls():
        return record(unet, lambda: teacher.denoiser(x, torch.tensor(0.5), cond))

    (call,) = calls()
    assert set(call) >= {"sample", "timestep", "encoder_hidden_states"}
    pruned = choose(Compress(budget=0.7), unet, calls)
    whole = sum(p.numel() for p in unet.parameters())
    assert sum(p.numel() for p in pruned.net.parameters()) <= 0.7 * whole
    again = build(pruned.plans[0], unet)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), pruned.net.parameters(), strict=True)
    )


class Counting(Objective):
    """Notes what it is asked."""

    name = "counting"

    def __init__(self, label):
        self.label, self.seen = label, []

    def players(self):
        net = nn.Linear(1, 1)
        return [Player("fake_score", net, Optim(), start=2), Player("student", net, Optim(), 3)]

    def loss(self, player, batch):
        self.seen.append((player, batch.step))
        return Losses(torch.tensor(1.0), {self.label: torch.tensor(2.0)})


def test_size_comes_first_and_the_method_counts_from_there(teacher):
    method, shrink = Counting("steps"), Counting("size")
    both = SizeFirst(method, shrink, 4, auxiliary=None)
    turns = {p.name: [s for s in range(12) if p.plays(s)] for p in both.players()}
    assert turns == {"fake_score": list(range(6, 12)), "student": [0, 1, 2, 3, 5, 8, 11]}
    for step in (3, 4):
        both.loss("student", Batch(torch.zeros(1), {}, None, None, step))
    assert shrink.seen == [("student", 3)]
    assert method.seen == [("student", 0)]
    joint = SizeFirst(method, shrink, 0, auxiliary=Counting("beside"))
    losses = joint.loss("student", Batch(torch.zeros(1), {}, None, None, 0))
    assert losses.total == 2.0
    assert set(losses.logs) == {"steps", "beside"}
    assert joint.loss("fake_score", Batch(torch.zeros(1), {}, None, None, 0)).total == 1.0


class Calling(Objective):
    """A loss that is the student's mean output."""

    name = "calling"

    def __init__(self, setup):
        self.setup = setup

    def players(self):
        return [Player("student", self.setup.student, Optim())]

    def loss(self, player, batch):
        out = self.setup.student.output(batch.x0, torch.tensor(0.5), batch.cond)
        return Losses(out.square().mean())


def test_depths_take_turns_on_one_set_of_weights(teacher):
    given = setup(teacher, Compress())
    whole = given.student.net.unet
    plan = drop_blocks(whole, ["mid_block"])
    elastic = Elastic(Calling(given), given, {"small": plan})
    shared = batch(teacher)
    losses = {}
    for seed in range(8):
        drawn = Batch(shared.x0, shared.cond, None, torch.Generator().manual_seed(seed))
        found = elastic.loss("student", drawn)
        losses |= {name: value.item() for name, value in found.logs.items()}
        assert given.student.net.unet is whole
    assert set(losses) == {"loss_whole", "loss_small"}
    given.student.net.unet = build(plan, whole)
    alone = Calling(given).loss("student", shared).total.item()
    assert losses["loss_small"] == pytest.approx(alone, rel=1e-5)
    # Training the small one trains the whole one's weights, but for the block that it lacks.
    given.student.net.unet = whole
    depth = elastic.depths["small"]
    assert depth.conv_in.weight is whole.conv_in.weight
    drawn = next(s for s in range(8) if torch.randint(2, (), generator=_seeded(s)) == 1)
    elastic.loss("student", Batch(shared.x0, shared.cond, None, _seeded(drawn))).total.backward()
    assert whole.conv_in.weight.grad is not None
    assert whole.mid_block.resnets[0].conv1.weight.grad is None


def test_followers_learn_of_every_depth(teacher):
    given = setup(teacher, Compress())
    whole = given.student.net.unet
    elastic = Elastic(Calling(given), given, {"small": drop_blocks(whole, ["mid_block"])})
    shared, alone, found = batch(teacher), Calling(given), set()
    for seed in range(8):
        drawn = replace(shared, shared=_seeded(seed))
        losses = elastic.loss("fake_score", drawn)
        assert not losses.logs
        found.add(round(losses.total.item(), 6))
    assert len(found) == 2
    assert round(alone.loss("student", shared).total.item(), 6) in found


def test_each_depth_learns_its_own_features(teacher):
    given = setup(teacher, Compress())
    whole = given.student.net.unet
    plan = drop_blocks(whole, ["down_blocks.1.attentions"])
    config = Shrink.Config(task=0, output=0)
    elastic = Elastic(
        Shrink(config, given), given, {"small": plan}, lambda depth: Shrink(config, depth)
    )
    shared = batch(teacher)
    found = {}
    for seed in range(8):
        drawn = replace(shared, generator=_seeded(3), shared=_seeded(seed))
        found |= elastic.loss("student", drawn).logs
    assert found["loss_whole"] == 0  # which is the teacher
    # As a student that is only this deep.
    given.student.net.unet = build(plan, whole)
    alone = Shrink(config, replace(given, pruned=Pruned(given.student.net.unet, (plan,))))
    expected = alone.loss("student", replace(shared, generator=_seeded(3))).total
    assert expected > 1e-6
    torch.testing.assert_close(found["loss_small"], expected.detach())


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_elastic_depths_stand_alone():
    with pytest.raises(ValueError, match="leave preset"):
        Compress(elastic={"small": 0.5}, width=0.5)
    with pytest.raises(ValueError, match=r"'\.\./x' is no name"):
        Compress(elastic={"../x": 0.5})
    with pytest.raises(ValueError, match="'whole' is no name"):
        Compress(elastic={"whole": 0.5})
    with pytest.raises(ValueError, match=r"^compress\.elastic: '../x' is no name"):
        load("emoji-4step-elastic", ["compress.elastic={'../x': 0.7}"])


def test_a_budget_out_of_reach_is_named(teacher):
    with pytest.raises(ValueError, match=r"^compress.elastic.tiny: budget 0.01 is below"):
        depths(Compress(elastic={"tiny": 0.01}), teacher.spawn(torch.Generator()).net.unet, calls)
    with pytest.raises(ValueError, match=r"^compress.budget: budget 0.01 is below"):
        choose(Compress(budget=0.01), teacher.spawn(torch.Generator()).net.unet, calls)


def calls():
    """One call of the tiny U-Net."""
    states = {"encoder_hidden_states": torch.randn(1, 3, 16)}
    return [{"sample": torch.randn(1, 4, 4, 4), "timestep": torch.tensor([5]), **states}]


def test_blocks_are_compared_before_one_of_them_changes_the_resolution():
    """BK-SDM tiny's innermost block has no downsampler, the teacher's has one."""
    net = nets.sd()
    plan = preset("bk-sdm-tiny", net)
    ours = build(plan, net)
    pruned = Pruned(ours, (plan,))
    pairs = [facing(ours, net, p, pruned.origin(p)) for p in tap_paths(ours, "blocks")]
    assert pairs == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2.attentions.0", "down_blocks.2.attentions.1"),
        ("up_blocks.0", "up_blocks.1"),
        ("up_blocks.1", "up_blocks.2"),
        ("up_blocks.2", "up_blocks.3"),
    ]
    call = nets.calls(net)[0]
    with Taps(ours, [a for a, _ in pairs]) as mine, Taps(net, [b for _, b in pairs]) as theirs:
        nets.output(ours, call)
        nets.output(net, call)
    shapes = [[f.shape for f in taps.take()] for taps in (mine, theirs)]
    assert shapes[0] == shapes[1]
