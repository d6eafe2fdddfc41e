"""Roles as adapters: one base that nothing moves, and a LoRA each that only its own turn moves."""

import copy
import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from edgedistill import recipes
from edgedistill.networks.adapters import LAYERS, Adapter, Role, adapt, find_layers
from edgedistill.networks.ema import EMA
from edgedistill.networks.heads import Tap
from edgedistill.networks.planar import PlanarNet
from edgedistill.runs.run import Run
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.stable_diffusion import StableDiffusion

FEW = Adapter(rank=4)
PLANAR = Adapter(rank=3, alpha=6.0, layers=("up", "embed_time.0"))
LORA = Path("lora") / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def teacher(tiny_sd) -> StableDiffusion:
    return StableDiffusion.load(str(tiny_sd))


@pytest.fixture
def inputs(teacher) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([900.0, 20.0]), teacher.encode(["red", "blue"])["encoder_hidden_states"]


def trained(role: Role, seed: int = 1) -> Role:
    """With B no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in role.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return role


def weights(net: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in net.state_dict().values()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs)) and len(ours) == len(theirs)


# --- A role --------------------------------------------------------------------------------------


def test_a_role_starts_as_the_base_and_leaves_it_as_it_was(teacher, inputs):
    net = teacher.denoiser.net
    before, expected = weights(net), net(*inputs)
    role = adapt(net, FEW, 0)
    assert torch.equal(role(*inputs), expected)
    role = trained(role)
    assert not torch.allclose(role(*inputs), expected, atol=1e-3)
    assert torch.equal(net(*inputs), expected)
    assert same(weights(net), before)
    assert not any("lora" in name for name, _ in net.named_modules())


def test_a_role_owns_its_adapter_and_nothing_of_the_base(teacher):
    net = teacher.denoiser.net
    role = teacher.denoiser.with_net(adapt(net, FEW, 0))
    shared = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert all(".lora_" in name and p.requires_grad for name, p in role.named_parameters())
    assert all(".lora_" in name for name in role.state_dict())
    assert not {p.data_ptr() for p in role.parameters()} & shared
    # Rank r: r (in + out) numbers for a Linear, r (9 in + out) for a 3x3 convolution.
    expected = sum(
        4 * (m.weight[0].numel() + len(m.weight))
        for name, m in net.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
        and name.endswith(tuple(find_layers(net, FEW.layers)))
    )
    assert sum(p.numel() for p in role.parameters()) == expected


def test_a_role_computes_w_plus_alpha_over_rank_b_a():
    torch.manual_seed(0)
    base = PlanarNet(width=8)
    nn.init.normal_(base.head.weight)
    role = trained(adapt(base, PLANAR, 0))
    expected = copy.deepcopy(base)
    state = role.state_dict()
    for path in ("blocks.0.up", "blocks.1.up", "embed_time.0"):
        down, up = (state[f"{path}.lora_{m}.default.weight"] for m in "AB")
        expected.get_submodule(path).weight.data += 6.0 / 3 * up @ down
    x, t = torch.randn(5, 2), torch.rand(5)
    torch.testing.assert_close(role(x, t), expected(x, t))
    torch.testing.assert_close(role.fused()(x, t), expected(x, t))
    assert len(state) == 6


def test_the_fused_network_is_one_of_its_own(teacher, inputs):
    role = trained(adapt(teacher.denoiser.net, FEW, 0))
    fused = role.fused()
    assert type(fused) is type(teacher.denoiser.net)
    assert fused.state_dict().keys() == teacher.denoiser.net.state_dict().keys()
    torch.testing.assert_close(fused(*inputs), role(*inputs), atol=1e-5, rtol=1e-4)


def test_a_copy_has_an_adapter_of_its_own_on_the_same_base(teacher, inputs):
    first = trained(adapt(teacher.denoiser.net, FEW, 0))
    second = copy.deepcopy(teacher.denoiser.with_net(first)).net
    assert second.base is first.base
    expected = first(*inputs)
    assert torch.equal(second(*inputs), expected)
    mine, theirs = ({p.data_ptr() for p in role.parameters()} for role in (first, second))
    assert not mine & theirs
    layer = "unet.mid_block.resnets.0.conv1"
    at = [role.get_submodule(layer).base_layer.weight.data_ptr() for role in (first, second)]
    assert at == [teacher.denoiser.net.get_submodule(layer).weight.data_ptr()] * 2
    trained(second, 2)
    assert torch.equal(first(*inputs), expected)
    assert not torch.equal(second(*inputs), expected)


def test_the_seed_decides_the_adapter_and_the_global_generator_stays(teacher):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    roles = [adapt(teacher.denoiser.net, FEW, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    a, again, other = map(weights, roles)
    assert same(a, again)
    assert not same(a, other)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_stay_apart_when_calls_interleave(tiny_sd, inputs, checkpointing):
    net = StableDiffusion.load(str(tiny_sd)).denoiser.net
    expected = []
    for seed in (1, 2):
        role = trained(adapt(net, FEW, 0), seed)
        role(*inputs).square().sum().backward()
        expected.append([p.grad for p in role.parameters()])
    if checkpointing:
        net.unet.enable_gradient_checkpointing()
    one, two = (trained(adapt(net, FEW, 0), seed) for seed in (1, 2))
    loss = one(*inputs).square().sum()
    with torch.no_grad():
        two(*inputs)
    loss.backward()
    assert all(p.grad is None for p in (*two.parameters(), *net.parameters()))
    two(*inputs).square().sum().backward()
    for role, truth in zip((one, two), expected, strict=True):
        torch.testing.assert_close([p.grad for p in role.parameters()], truth)


def test_features_are_the_roles_own(teacher, inputs):
    one, two = (trained(adapt(teacher.denoiser.net, FEW, 0), seed) for seed in (1, 2))
    tap = Tap(one, teacher.tap)
    one(*inputs)
    assert tap.take().shape == (2, 32, 2, 2)
    two(*inputs)
    teacher.denoiser.net(*inputs)
    assert tap.features is None


def test_an_average_is_over_the_adapters_alone(teacher):
    role = adapt(teacher.denoiser.net, FEW, 0)
    ema = EMA(role, 0.0)
    start = weights(role)
    ema.update(trained(role))
    for mine, theirs, old in zip(weights(ema.net), weights(role), start, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert not torch.equal(mine, old)
    assert ema.net.base is role.base
    assert not any(p.requires_grad for p in ema.net.parameters())


def test_train_and_eval_reach_the_network(teacher):
    role = adapt(teacher.denoiser.net, FEW, 0)
    assert not any(module.training for module in role.children())
    role.train()
    assert all(module.training for module in (role._net, *role._net.modules()))
    assert not teacher.denoiser.net.unet.training


# --- Runs ----------------------------------------------------------------------------------------

METHODS = {
    "emoji-lcm": [],
    "emoji-dmd2": ["objective.turns=1", "objective.gan_weight=0.01"],
}


def new_run(recipe: str, roles: str, folder: Path, tiny_sd: Path, *more: str) -> Run:
    folder.mkdir(exist_ok=True)
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("red\nblue\n")
    overrides = [
        *METHODS[recipe],
        *("train.steps=2", "train.batch_size=2", "train.optim.lr=0.01", "train.ema=0"),
        *("teacher.steps=2", "data.samples=2", "student.steps=2", "train.lr_schedule=constant"),
        *("train.lr_warmup=0", f"teacher.path={tiny_sd}", f"data.prompts={prompts}"),
        *(f"train.roles={roles}", "train.adapter.rank=4"),
        "train.adapter.layers=[to_q,conv1,proj_in,time_emb_proj]",
        *more,
    ]
    return Run(recipes.load(recipe, overrides), folder)


def silent(step, figures):
    pass


@pytest.mark.parametrize("recipe", sorted(METHODS))
@pytest.mark.parametrize("roles", ["copies", "adapters"])
def test_methods_run_either_way(recipe, roles, tmp_path, tiny_sd):
    run = new_run(recipe, roles, tmp_path / "run", tiny_sd)
    before = weights(run.teacher.denoiser.net)
    student = load_student(run.train(silent))
    assert same(weights(run.teacher.denoiser.net), before)
    assert same(weights(student.teacher.denoiser.net), weights(student.net))
    assert not same(weights(student.net), before)
    nets = run.trainer._nets()
    assert all(isinstance(run.student.net, Role) == (roles == "adapters") for _ in nets)
    lora = roles == "adapters"
    assert (student.path / LORA).is_file() == lora
    assert (student.info.lora_scale == 1.0) == lora
    assert ("load_lora_weights" in (student.path / "README.md").read_text()) == lora


def test_a_turn_moves_its_own_adapter_only(tmp_path, tiny_sd):
    run = new_run("emoji-dmd2", "adapters", tmp_path / "run", tiny_sd)
    nets = {trained.player.name: trained.player.net for trained in run.trainer.trained_players}
    nets["teacher"] = run.teacher.denoiser.net
    assert set(nets) == {"student", "fake_score", "teacher"}
    for trained in run.trainer.trained_players:
        for param in (p for net in nets.values() for p in net.parameters()):
            param.grad = None
        before = {name: weights(net) for name, net in nets.items()}
        run.trainer._play(trained)
        for name, net in nets.items():
            mine = name == trained.player.name
            assert same(weights(net), before[name]) != mine, (
                f"{name} in {trained.player.name}'s turn"
            )
            assert any(p.grad is not None for p in net.parameters()) == mine


class PulledError(Exception):
    """The plug was pulled."""


def pull(step, figures):
    if step == 3:
        raise PulledError


@pytest.mark.parametrize("recipe", sorted(METHODS))
def test_a_resumed_run_is_bit_identical(recipe, tmp_path, tiny_sd):
    choices = ["train.steps=4", "train.checkpoint_every=2", "train.ema=0.9"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    new_run(recipe, "adapters", whole, tiny_sd, *choices).train(silent)
    with pytest.raises(PulledError):
        new_run(recipe, "adapters", broken, tiny_sd, *choices).train(pull)
    again = new_run(recipe, "adapters", broken, tiny_sd, *choices)
    assert again.restore() == 2
    again.train(silent)
    files = sorted(file.relative_to(whole) for file in whole.rglob("*.safetensors"))
    assert Path("student") / LORA in files
    assert Path("checkpoints/step-00000004/optim-student.safetensors") in files
    for file in files:
        ours, theirs = load_file(whole / file), load_file(broken / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), file


def test_bfloat16_computes_on_float32_adapters(tmp_path, tiny_sd):
    run = new_run("emoji-lcm", "adapters", tmp_path / "run", tiny_sd, "train.precision=bf16")
    before = weights(run.student)
    run.trainer.fit()
    after = weights(run.student)
    assert not same(before, after)
    assert all(w.dtype == torch.float32 and bool(w.isfinite().all()) for w in after)


def picture(pipeline, steps: int):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    drawn = pipeline(
        "red", num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="pt"
    )
    return drawn.images


def test_the_lora_on_the_teacher_draws_what_the_student_does(tmp_path, tiny_sd):
    rank = ["train.adapter.rank=2", "train.adapter.alpha=5", "train.optim.lr=0.05"]
    layers = f"train.adapter.layers=[{','.join(LAYERS)}]"
    run = new_run("emoji-lcm", "adapters", tmp_path / "run", tiny_sd, *rank, layers)
    folder = run.train(silent)
    student = DiffusionPipeline.from_pretrained(folder)
    expected = picture(student, 2)
    usage, lora_usage = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    names = {"TEACHER": str(tiny_sd), "FOLDER": str(folder)}
    exec(lora_usage, names)
    torch.testing.assert_close(picture(names["pipe"], 2), expected, atol=1e-3, rtol=0)
    names["pipe"].unload_lora_weights()
    assert (picture(names["pipe"], 2) - expected).abs().max() > 1e-2
    assert "load_lora_weights" not in usage


def test_a_closed_form_teacher_shares_the_network_fitted_to_it(tmp_path, two_modes, quick_fit):
    overrides = [
        *(f"teacher.path={two_modes}", "train.roles=adapters", "train.adapter.rank=4"),
        *("train.adapter.layers=[up,down,head]", "train.steps=2", "train.batch_size=8"),
    ]
    run = Run(recipes.load("mixture-dmd2", overrides), tmp_path)
    fake = run.objective.fake_score.denoiser.net
    assert fake.base is run.student.net.base
    student = load_student(run.train(silent))
    assert student.info.lora_scale is None
    assert not (student.path / "lora").exists()
    x, t = torch.randn(3, 2), torch.rand(3)
    torch.testing.assert_close(student.net(x, t), run.trainer.ema.net.net(x, t))


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["train.adapter.layers=[to_qq]"],
            r"unknown layer of SDNet 'to_qq' \(did you mean 'to_q'\?",
        ),
        (["train.adapter.layers=[to_q,mid_block]"], r"unknown layer of SDNet 'mid_block'"),
        (["train.adapter.layers=[]"], r"train\.adapter\.layers"),
        (["train.adapter.rank=0"], r"train\.adapter\.rank=0"),
        (["train.adapter.rnk=4"], r"did you mean train\.adapter\.rank"),
        (["train.roles=shared"], r"train\.roles='shared'"),
        (["student.init=somewhere"], r"student\.init=somewhere: with train\.roles=adapters"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tmp_path, tiny_sd, more, message):
    with pytest.raises(ValueError, match=message):
        new_run("emoji-lcm", "adapters", tmp_path / "run", tiny_sd, *more)


def test_a_closed_form_teacher_says_that_it_has_no_network(tmp_path, two_modes):
    overrides = [f"teacher.path={two_modes}", "train.roles=adapters"]
    with pytest.raises(ValueError, match=r"closed form, which has no network to share.* head, up"):
        Run(recipes.load("mixture-lcm", overrides), tmp_path)
