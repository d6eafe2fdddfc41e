import gc
import inspect
import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from edgedistill import assets, recipes
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.solvers import time_grid
from edgedistill.objectives.added.reward import Rewarded
from edgedistill.planning.memory import Launch, holdings, memory
from edgedistill.planning.networks import SCHEDULE, planned_networks
from edgedistill.planning.tracker.accelerator import Accelerator
from edgedistill.planning.tracker.live import Live, called, modules
from edgedistill.runs.run import Run

SMALL = ["train.batch_size=2", "train.steps=6"]
ROLES = ["copies", "adapters"]


def planned(name, *words, launch=Launch()):  # noqa: B008  frozen
    return memory(planned_networks(recipes.load(name, [*SMALL, *words])), launch)


LADD = ["objective.name=ladd"]
GAN = ["objective.name=diffusion2gan", "student.sampler=ddim"]
CLIP = ["reward.name=clip"]
BLACK_BOX = [*CLIP, "reward.kind=black-box", "reward.group=2"]


def held_by(trainer, teacher, objective):
    """Bytes a real run holds after a step, each storage once."""
    nets = [trained.player.net for trained in trainer.trained_players] + [trainer.ema.net]
    if hasattr(objective, "discriminator"):
        nets.append(objective.discriminator.denoiser)
    if isinstance(objective, Rewarded):
        nets.append(CLIPModel.from_pretrained(assets.ROOT / "emoji" / "clip", dtype=torch.float32))
    nets += [*objective.followers().values(), *teacher.pipeline.components.values()]
    tensors = [t for net in nets if isinstance(net, nn.Module) for t in net.state_dict().values()]
    for trained in trainer.trained_players:
        tensors += [p.grad for p in trained.params if p.grad is not None]
        tensors += [v for state in trained.raw.state.values() for v in state.values()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("emoji-4step", []),
        ("emoji-dmd2", []),
        ("emoji-lcm", LADD),
        ("emoji-lcm", CLIP),
        ("emoji-lcm", BLACK_BOX),
    ],
)
@pytest.mark.parametrize("roles", ROLES)
def test_a_real_run_holds_and_peaks_at_what_was_planned(name, more, roles, tmp_path):
    words = [*SMALL, *more, f"train.roles={roles}", "train.adapter.rank=8"]
    plan = memory(planned_networks(recipes.load(name, words)), Launch())
    run = Run(recipes.load(name, words), tmp_path)
    trainer = run.trainer
    # All have played once; the last turn below is the first that finds every state in place.
    for step in range(3):
        trainer.step = step
        trainer._one_step(None)
    real = held_by(trainer, run.teacher, run.objective)
    assert plan.total - plan.activations == pytest.approx(real, rel=0.02)
    peaks = []
    for trained in trainer.trained_players:
        trainer.step = 5
        trained.optimizer.zero_grad()
        others = sum(
            p.grad.nbytes for s in trainer.trained_players for p in s.params if p.grad is not None
        )
        for other in trainer.trained_players:
            for param in other.params:
                param.requires_grad_(other is trained)
        batch = trainer._batch(trainer.step, trained.index, 0)
        gc.collect()
        with Live("cpu") as live:
            run.objective.loss(trained.player.name, batch).total.backward()
        peaks.append(live.peak + others)
    gradients = sum(role.gradients for role in plan.roles.values())
    assert plan.activations + gradients == pytest.approx(max(peaks), rel=0.15)


@pytest.mark.parametrize("name", ["emoji-4step", "emoji-dmd2", "emoji-decoder"])
def test_roles_are_the_methods_own(name, tmp_path):
    recipe = recipes.load(name, SMALL)
    made = planned_networks(recipe)
    run = Run(recipe, tmp_path)

    def sizes(objective):
        players = {p.name: p.net for p in objective.players()}
        nets = {**players, **objective.followers()}
        return {key: sum(p.numel() for p in net.parameters()) for key, net in nets.items()}

    assert sizes(made.objective) == sizes(run.objective)


def test_the_reward_is_in_the_worst_turn_with_the_decoder_before_it():
    plain = planned("emoji-lcm", "train.batch_size=8")
    by_gradient, by_values = (
        planned("emoji-lcm", *words, "train.batch_size=8") for words in (CLIP, BLACK_BOX)
    )
    assert by_gradient.roles == by_values.roles
    reward = by_gradient.roles["reward"]
    assert {**plain.roles, "reward": reward} == by_gradient.roles
    # For its gradient all of the decoder's maps stay; for its values the largest are enough.
    assert by_gradient.activations > by_values.activations > 2 * plain.activations


def test_a_decoder_that_waits_elsewhere_is_counted_while_it_is_there():
    made = planned_networks(recipes.load("emoji-lcm", [*SMALL, *BLACK_BOX, "student.steps=2"]))
    size = sum(p.nbytes for p in made.networks["vae"].parameters())
    peaks = []
    for words in ([], ["train.offload=true"]):
        recipe = recipes.load("emoji-lcm", [*SMALL, *BLACK_BOX, "student.steps=2", *words])
        run = made.chosen(recipe)
        assert run.reward.offload == bool(words)
        with Live() as live:
            run.reward.decode(torch.empty(2, *run.inputs.sample, device="meta"))
        peaks.append(live.peak)
    assert peaks[1] - peaks[0] == size


def test_a_frozen_discriminator_is_held_and_never_saved():
    made = planned_networks(recipes.load("emoji-lcm", [*SMALL, *LADD]))
    player = next(p for p in made.objective.players() if p.name == "discriminator")
    found = holdings(made, Launch())
    teacher = sum(t.nbytes for t in made.networks["unet"].state_dict().values())
    heads = sum(p.nbytes for p in player.net.parameters())
    role = found.roles["discriminator"]
    assert (role.weights, role.frozen, role.gradients) == (heads + teacher, teacher, heads)
    # Cut over devices, all but the frozen network is a part.
    cut = holdings(made, Launch(processes=2, shard=True)).roles["discriminator"]
    assert cut.weights == heads // 2 + teacher
    # One that trains whole has nothing apart.
    whole = planned_networks(recipes.load("emoji-lcm", [*SMALL, *GAN]))
    assert holdings(whole, Launch()).roles["discriminator"].frozen == 0


def test_checkpointing_spares_the_frozen_discriminator_too():
    words = ["train.batch_size=32", *LADD]
    whole = planned("emoji-lcm", *words).activations
    again = planned("emoji-lcm", *words, "train.checkpointing=true").activations
    assert again < 0.6 * whole


@pytest.mark.parametrize("name", ["pso", "diffusion-dpo"])
def test_a_method_that_learns_from_a_reward_is_planned(name, tmp_path):
    folder = student_without_weights(tmp_path)
    words = [*CLIP, f"objective.name={name}", f"student.init={folder}"]
    roles = planned("emoji-lcm", *words).roles
    assert set(roles) == {"teacher", "student", "reference", "reward", "ema"}
    assert roles["reference"].weights == roles["reference"].frozen == roles["student"].weights


def test_a_distilled_student_to_learn_from_is_planned_and_never_saved(tmp_path):
    folder = student_without_weights(tmp_path)
    words = ["objective.name=k-dmd", f"objective.knowledge={folder}", "objective.gan_weight=0"]
    roles = planned("emoji-dmd2", *words).roles
    assert set(roles) == {"teacher", "student", "fake_score", "knowledge", "ema"}
    assert roles["knowledge"].weights == roles["knowledge"].frozen == roles["student"].weights
    with pytest.raises(ValueError, match="learns from a distilled student"):
        planned("emoji-dmd2", "objective.name=k-dmd")


def student_without_weights(place):
    """A folder from which the student of `emoji` in four steps can be planned."""
    folder = place / "student"
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(assets.ROOT / "emoji", folder, ignore=ignored)
    times = time_grid(SCHEDULE, 4)
    table = few_step_table(SCHEDULE, Prediction.EPS, times).to_json()
    (folder / "student.json").write_text(json.dumps({"step_table": table}))
    return folder


def test_activations_shrink_with_the_batch_the_precision_and_checkpointing():
    whole = planned("emoji-4step", "train.batch_size=32").activations
    assert planned("emoji-4step", "train.batch_size=16").activations < 0.6 * whole
    low = planned("emoji-4step", "train.batch_size=32", "train.precision=bf16").activations
    assert 0.5 * whole < low < 0.8 * whole  # norms stay in float32, cast weights come on top
    again = planned("emoji-4step", "train.batch_size=32", "train.checkpointing=true").activations
    assert again < 0.5 * whole


def test_what_is_frozen_or_a_moment_takes_less_where_asked():
    low = ["train.precision=bf16"]
    whole = planned("emoji-dmd2", *low).roles
    frozen = planned("emoji-dmd2", *low, "train.base=bf16").roles
    # All but norms and embeddings is halved; the text encoder and the decoder are not.
    assert 0.5 * whole["teacher"].weights < frozen["teacher"].weights < whole["teacher"].weights
    assert {**frozen, "teacher": whole["teacher"]} == whole
    small = planned("emoji-dmd2", "train.moments=8bit").roles
    for role in ("student", "fake_score"):
        assert small[role].weights == whole[role].weights
        assert 0.25 * whole[role].optimizer < small[role].optimizer < 0.3 * whole[role].optimizer


@pytest.mark.parametrize("more", ["train.precision=bf16", "train.accumulate=2", "student.steps=1"])
@pytest.mark.parametrize("roles", ROLES)
def test_a_spared_call_needs_what_the_call_does(roles, more, monkeypatch):
    words = [*SMALL, f"train.roles={roles}", "train.adapter.rank=8", more]
    spared = memory(planned_networks(recipes.load("emoji-dmd2", words)), Launch())
    monkeypatch.setattr("edgedistill.planning.memory.repeated", lambda *_: nullcontext())
    assert memory(planned_networks(recipes.load("emoji-dmd2", words)), Launch()) == spared


@pytest.mark.parametrize("roles", ROLES)
def test_a_spared_checkpoint_needs_about_what_it_does(roles, monkeypatch):
    words = [*SMALL, f"train.roles={roles}", "train.batch_size=32", "train.checkpointing=true"]
    spared = memory(planned_networks(recipes.load("emoji-dmd2", words)), Launch()).activations
    monkeypatch.setattr("edgedistill.planning.memory.repeated", lambda *_: nullcontext())
    whole = memory(planned_networks(recipes.load("emoji-dmd2", words)), Launch()).activations
    assert whole <= spared <= 1.03 * whole  # results of the last block are made again


def test_blocks_alike_are_computed_once(monkeypatch):
    made, calls = planned_networks(recipes.load("emoji-dmd2", SMALL)), []
    blocks = [m for m in modules(made.small) if type(m).__name__ in made.small._repeated_blocks]
    forward = type(blocks[0]).forward

    def counted(self, x, *args, **kwargs):
        calls.append((self.norm1.normalized_shape, x.shape, torch.is_grad_enabled()))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(type(blocks[0]), "forward", counted)
    memory(made, Launch())
    assert len(calls) == len(set(calls))
    assert {width for width, _, grad in calls if grad} == {
        b.norm1.normalized_shape for b in blocks
    }
    assert not [block for block in blocks if "forward" in vars(block)]


def test_measuring_leaves_the_networks_as_they_were():
    made = planned_networks(recipes.load("emoji-dmd2", SMALL))
    held = holdings(made, Launch())
    memory(made, Launch())
    assert holdings(made, Launch()) == held


def test_gradients_of_several_batches_are_in_place_throughout():
    one, two = planned("emoji-4step"), planned("emoji-4step", "train.accumulate=2")
    assert two.activations > one.activations
    assert two.roles == one.roles


def test_sharding_cuts_what_is_trained_and_nothing_else():
    made = planned_networks(recipes.load("emoji-4step"))
    one, two = holdings(made, Launch()), holdings(made, Launch(processes=2, shard=True))
    assert two.roles["student"].total == one.roles["student"].total // 2
    assert two.roles["teacher"] == one.roles["teacher"]
    assert two.buckets == 0
    assert holdings(made, Launch(processes=2)).buckets == one.roles["student"].gradients


def test_one_process_has_nothing_to_shard():
    with pytest.raises(ValueError, match="--shard needs --processes 2"):
        Launch(shard=True)


def test_live_counts_what_lives():
    x = torch.empty(1000, device="meta")
    with Live() as live:
        y = x + 1
        z = x[:10]  # of x, which is from outside
        assert live.bytes == 4000
        del y
        assert live.bytes == 0
        assert z.shape == (10,)
    assert live.peak == 4000


def test_attention_does_not_hold_its_scores():
    q = torch.empty(1, 1, 256, 8, device="meta", requires_grad=True)
    with Live() as live, Accelerator():
        F.scaled_dot_product_attention(q, q, q).sum().backward()
    assert live.peak < 256 * 256 * 4


def test_autocast_holds_the_low_precision_and_one_copy_of_each_weight():
    layer = nn.Linear(64, 64, bias=False, device="meta")
    x = torch.empty(16, 64, device="meta")
    with Live() as live, Accelerator(torch.bfloat16):
        y = layer(x) + layer(x)
        assert y.dtype == torch.bfloat16
        # The weight once, x twice (both kept for the gradient), the sum.
        assert live.bytes == 2 * (64 * 64 + 2 * 16 * 64 + 16 * 64)
        assert F.layer_norm(y, (64,)).dtype == torch.float32


def test_precisions_of_the_trainer_are_known():
    from edgedistill.planning.memory import LOW_PRECISION
    from edgedistill.training.config import Train

    annotation = inspect.get_annotations(Train, eval_str=True)["precision"]
    assert set(LOW_PRECISION) == set(annotation.__args__)


def test_an_operator_asked_again_answers_as_before():
    a = torch.empty(2, 3, 4, device="meta").permute(0, 2, 1)
    add = torch.ops.aten.add.Tensor
    for other, dtype in ((1, torch.int64), (1.0, torch.float32), (True, torch.int64)):
        x = torch.empty(5, dtype=torch.int64, device="meta")
        first, again = called(add, (x, other), {}), called(add, (x, other), {})
        assert first.dtype == again.dtype == dtype
        assert first is not again
    first, again = (called(add, (a, a), {}) for _ in range(2))
    assert (again.shape, again.stride()) == (first.shape, first.stride()) == (a.shape, a.stride())
    norm = torch.ops.aten.native_layer_norm.default
    shapes = [
        [tuple(v.shape) for v in called(norm, (a, [3], None, None, 1e-5), {})] for _ in range(2)
    ]
    assert shapes[0] == shapes[1] == [(2, 4, 3), (2, 4, 1), (2, 4, 1)]
    # Numbers that are here are computed, and what is changed in place is itself.
    real = torch.ones(2)
    assert called(add, (real, real), {}).tolist() == [2, 2]
    assert called(add, (real + 1, real), {}).tolist() == [3, 3]
    assert called(torch.ops.aten.add_.Tensor, (a, 1.0), {}) is a


def test_modules_are_those_of_torch_each_once():
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared, None))
    assert list(modules(net)) == list(dict.fromkeys(modules(net)))
    assert set(modules(net)) == set(net.modules())
