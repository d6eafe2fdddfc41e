"""Runs that make the student smaller: whole ones, on a tiny teacher."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline

from edgedistill import recipes
from edgedistill.compress.token_stride import TokenStride, stride_attention, stride_of
from edgedistill.compress.units import units
from edgedistill.objectives import OBJECTIVES, find
from edgedistill.objectives.trajectory import progressive
from edgedistill.planning.report import plan
from edgedistill.recipes.checks import check_attention
from edgedistill.recipes.loading import resolve
from edgedistill.runs.run_dir import open_run
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.stable_diffusion import StableDiffusion

SMALL = {"remove": ["mid_block"], "width": 0.5}


@pytest.fixture
def distil(tiny_sd, tmp_path, said):
    """A function that runs a recipe of a few steps and returns its run dir."""
    (tmp_path / "prompts.txt").write_text("red\nblue\n")

    def run(name="a", family="stable_diffusion", path=None, resume=False, steps=3, **sections):
        recipe = {
            "name": "tiny",
            "teacher": {"family": family, "path": str(path or tiny_sd), "steps": 2},
            "student": {"steps": 2},
            "objective": {"name": "lcm"},
            "data": {"prompts": str(tmp_path / "prompts.txt"), "samples": 4},
            "train": {"steps": steps, "batch_size": 2, "checkpoint_every": 2},
        }
        for key, value in sections.items():
            recipe[key] = {**recipe.get(key, {}), **value}
        said.clear()
        folder = tmp_path / "runs" / name
        made = open_run(resolve(recipe), str(folder), resume, tmp_path / "runs")
        if resume:
            made.restore()
        made.train(lambda step, figures: None)
        return folder, [*said]

    return run


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_a_smaller_student_opens_in_plain_diffusers(distil, tiny_sd):
    folder, lines = distil(compress={**SMALL, "first": 2})
    unet = DiffusionPipeline.from_pretrained(folder / "student").unet
    assert unet.mid_block is None
    assert tuple(unet.config.block_out_channels) == (8, 16)
    whole = parameters(StableDiffusion.load(str(tiny_sd)).net)
    share = f"{parameters(unet) / whole:.0%}"
    assert f"compressed to {parameters(unet):,} parameters, {share}" in lines
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "student/features" in logged[-1]


def test_resuming_takes_the_same_blocks(distil):
    whole, _ = distil("a", steps=4, compress={"budget": 0.75, "first": 3})
    distil("b", steps=2, compress={"budget": 0.75, "first": 3})
    distil("b", steps=4, compress={"budget": 0.75, "first": 3}, resume=True)
    first, second = (load_student(whole.parent / name / "student").net for name in "ab")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_elastic_student_holds_its_depths(distil):
    folder, lines = distil(compress={"elastic": {"small": 0.8}, "first": 1})
    student = load_student(folder / "student")
    whole = parameters(student.net)
    assert any(line.startswith("depth small: ") for line in lines)
    student.use_depth("small")
    assert parameters(student.net) <= 0.8 * whole
    assert student.teacher.graphs()["denoiser"].module is student.net
    with pytest.raises(ValueError, match=r"unknown depth 'tiny'.*small"):
        load_student(folder / "student").use_depth("tiny")


@pytest.mark.parametrize("method", ["progressive", "lightning", "instaflow"])
def test_a_method_that_restarts_has_no_depths(tmp_path, method):
    """It met a shallow student where it expected the whole, by chance, in the midst of a run."""
    words = [f"recipe=emoji-{method}", "compress.elastic.small=0.8"]
    said = f"elastic: {method} sets the weights of the whole"
    with pytest.raises(ValueError, match=said):
        plan(words)
    with pytest.raises(ValueError, match=said):
        open_run(recipes.load(words[0][7:], words[1:]), str(tmp_path / "run"), False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["shortcut", "meanflow", "flow-map"])
def test_a_method_that_wraps_the_network_has_no_depths(distil, tmp_path, method):
    sampler, elastic = {"sampler": "ddim"}, {"elastic": {"small": 0.8}}
    with pytest.raises(ValueError, match=f"elastic: {method} trains a network around"):
        distil(objective={"name": method}, student=sampler, compress=elastic)
    assert not (tmp_path / "runs" / "a").exists()


def test_a_run_that_leaves_no_step_to_its_method_says_so(distil):
    _, said = distil(train={"steps": 1}, compress={**SMALL, "first": 1})
    assert "compress.first=1 leaves none of train.steps=1 to lcm" in said


def test_a_method_in_stages_goes_through_all_in_the_steps_left_to_it(distil, monkeypatch):
    seen = []
    stages = progressive.Stages
    monkeypatch.setattr(progressive, "Stages", lambda *given: seen.append(given) or stages(*given))
    halving = {"name": "progressive", "stages": 2}
    distil(steps=6, objective=halving, student={"sampler": "ddim"}, compress={**SMALL, "first": 2})
    assert seen == [(4, 2)]


def test_a_student_may_name_a_decoder(distil):
    made, _ = distil("d", objective={"name": "decoder", "channels": 8, "blocks": [1, 0]})
    assert (made / "decoder" / "config.json").is_file()
    assert list((made / "samples").glob("*.png"))
    assert not (made.parent / "latest").exists()  # there is no student in it
    with pytest.raises(ValueError, match=r"made a decoder; export STUDENT --decoder .*d/decoder"):
        load_student(made)
    folder, _ = distil("s", student={"decoder": str(made / "decoder")})
    pipe = DiffusionPipeline.from_pretrained(folder / "student")
    assert type(pipe.vae).__name__ == "AutoencoderTiny"
    images = pipe("red", num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert images.shape == (1, 8, 8, 3)
    student = load_student(folder / "student")
    x0 = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = pipe.vae.decode(x0).sample
    torch.testing.assert_close(student.teacher.decode(x0), expected)


def test_what_cannot_be_made_smaller_is_refused(distil, two_modes, tiny_sd):
    planar = {"family": "mixture", "path": two_modes, "data": {"prompts": None}}
    with pytest.raises(ValueError, match="mixture teachers have no blocks to remove"):
        distil(compress={"width": 0.5}, **planar)
    with pytest.raises(ValueError, match=r"choose train\.roles=copies"):
        distil(compress=SMALL, train={"roles": "adapters"})
    with pytest.raises(ValueError, match=r"compress\.preset=bk-sdm-base takes nothing away"):
        distil("bare", path="emoji", compress={"preset": "bk-sdm-base"})
    name = next(iter(units(StableDiffusion.load(str(tiny_sd)).net.unet)))
    with pytest.raises(ValueError, match="unknown unit"):
        distil(compress={"remove": [name, "down_blocks.7"]})
    with pytest.raises(ValueError, match="below the smallest share"):
        distil(compress={"budget": 0.01})
    with pytest.raises(ValueError, match="no decoder folder"):
        distil(student={"decoder": "/nowhere"})
    with pytest.raises(ValueError, match="no decoder folder"):  # not asked of the Hub
        distil(student={"decoder": "tests/nowhere"})


# --- Stride of attention ------------------------------------------------------------------------

STRIDE = {"attention_stride": 2}


@torch.no_grad()
def output(unet):
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (8, 16)))
    return unet(x, torch.tensor([999.0, 499.0]), text).sample


def test_a_student_with_a_stride_is_read_as_it_was_trained(distil, attentive_sd, tmp_path):
    folder, lines = distil(path=attentive_sd, compress=STRIDE)
    assert any("in stage 0 takes keys and values of one token in 2 x 2" in line for line in lines)
    written = json.loads((folder / "student" / "student.json").read_text())
    assert (written["schema_version"], written["attention"]) == (6, {"stride": 2, "stages": 1})
    plain = DiffusionPipeline.from_pretrained(folder / "student").unet
    drawn, full = output(load_student(folder).net.unet), output(plain)
    stride_attention(plain, TokenStride(stride=2))
    assert torch.equal(output(plain), drawn)
    assert not torch.allclose(full, drawn, atol=1e-4)
    card = (folder / "student" / "README.md").read_text()
    assert "one token in 2 x 2" in card
    assert "draws other pictures" in card
    assert "from_pretrained" not in card

    # A run that starts from it keeps the stride, and so does a teacher that is this student.
    words = {"objective": {"name": "lcm"}, "student": {"init": str(folder)}}
    again, _ = distil("again", path=attentive_sd, **words)
    assert load_student(again).info.attention == TokenStride(stride=2)
    assert stride_of(StableDiffusion.load(str(folder / "student")).net.unet)
    with pytest.raises(ValueError, match=r"student\.init has a stride of 2 .* leave the key out"):
        distil("other", path=attentive_sd, compress={"attention_stride": 4}, **words)


def test_students_without_a_stride_are_written_as_before(distil, attentive_sd):
    folder, _ = distil(path=attentive_sd, compress={"attention_stride": 1})
    written = json.loads((folder / "student" / "student.json").read_text())
    assert written["schema_version"] == 2
    assert "attention" not in written
    assert stride_of(load_student(folder).net.unet) is None


def test_only_the_student_and_its_copies_have_the_stride(attentive_sd, tmp_path):
    (tmp_path / "prompts.txt").write_text("red\nblue\n")
    recipe = {
        "name": "tiny",
        "teacher": {"family": "stable_diffusion", "path": str(attentive_sd), "steps": 2},
        "student": {"steps": 2},
        "objective": {"name": "dmd2"},
        "data": {"prompts": str(tmp_path / "prompts.txt"), "samples": 4},
        "train": {"steps": 1, "batch_size": 2},
        "compress": STRIDE,
    }
    run = open_run(resolve(recipe), str(tmp_path / "a"), False)
    fake = {p.name: p.net for p in run.objective.players()}["fake_score"]
    unets = [module for module in fake.modules() if hasattr(module, "down_blocks")]
    assert unets
    assert not any(map(stride_of, unets))
    assert stride_of(run.teacher.net.unet) is None
    assert stride_of(run.student.net.unet) == TokenStride(stride=2)
    assert stride_of(run.trainer.ema.net.net.unet) == TokenStride(stride=2)


def test_a_stride_goes_with_fewer_blocks_depths_and_first_steps(distil, attentive_sd):
    sections = {"path": attentive_sd, "steps": 2}
    small = {"remove": ["mid_block"], "width": 0.5, "first": 1}
    folder, lines = distil(compress={**STRIDE, **small}, **sections)
    assert any(line.startswith("compressed to ") for line in lines)
    unet = load_student(folder).net.unet
    assert (unet.mid_block, stride_of(unet)) == (None, TokenStride(stride=2))

    folder, _ = distil("b", compress={**STRIDE, "elastic": {"small": 0.8}}, **sections)
    student = load_student(folder)
    student.use_depth("small")
    assert stride_of(student.net.unet) == TokenStride(stride=2)

    both = {"attention_stride": 4, "attention_stages": 2, "joint": 1.0, "taps": "attention"}
    folder, _ = distil("c", compress=both, **sections)
    assert load_student(folder).info.attention == TokenStride(stride=4, stages=2)


def test_resuming_keeps_the_stride(distil, attentive_sd):
    whole, _ = distil("a", path=attentive_sd, steps=4, compress=STRIDE)
    distil("b", path=attentive_sd, steps=2, compress=STRIDE)
    distil("b", path=attentive_sd, steps=4, compress=STRIDE, resume=True)
    first, second = (load_student(whole.parent / name).net for name in "ab")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_strides_that_do_not_fit_are_refused(distil, tiny_sd, attentive_sd):
    with pytest.raises(ValueError, match=r"no self-attention in stage 0; .*attention_stages=2"):
        distil(compress=STRIDE)
    with pytest.raises(ValueError, match=r"does not divide the 8 x 8 tokens of stage 0"):
        distil(path=attentive_sd, compress={"attention_stride": 5})
    with pytest.raises(ValueError, match=r"attention_stride=2: .*choose train\.roles=copies"):
        distil(path=attentive_sd, compress=STRIDE, train={"roles": "adapters"})


# --- Methods that learn from the student at the start of their run -------------------------------

LEARN_FROM_START = [name for name in OBJECTIVES if find(name).learns_from_start]


def test_the_methods_that_start_from_a_student_learn_from_it():
    assert sorted(LEARN_FROM_START) == ["diffusion-dpo", "pso", "qat", "step-cache"]


@pytest.mark.parametrize("name", LEARN_FROM_START)
def test_a_student_that_is_made_smaller_just_now_teaches_nothing(name):
    words = [f"objective.name={name}", "student.init=x", "compress.preset=bk-sdm-small"]
    reuse = ["student.reuse=[1]"] if name == "step-cache" else []
    with pytest.raises(ValueError, match=r"^(compress|student\.reuse).* in a run before") as error:
        recipes.load("emoji-4step", [*words, *reuse])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted({*LEARN_FROM_START} - {"step-cache"}))
def test_a_stride_that_the_start_has_not_learned_is_refused(name, attentive_sd):
    """The untrained student with the stride was the reference."""
    words = [f"objective.name={name}", "student.init=x", "compress.attention_stride=2"]
    recipe = recipes.load("emoji-4step", words)
    unet = StableDiffusion.load(str(attentive_sd)).net.unet
    said = (
        rf"^compress\.attention_stride=2: method '{name}' learns from the student in "
        r"student\.init, which has not learned this stride; distil it with the stride first, then "
        r"name that student in student\.init and leave the key out$"
    )
    with pytest.raises(ValueError, match=said):
        check_attention(recipe, unet)
    stride_attention(unet, TokenStride(stride=2))
    check_attention(recipe, unet)


def test_runs_and_plans_learn_from_a_student_that_has_learned_its_stride(distil, attentive_sd):
    plain, _ = distil("plain", path=attentive_sd)
    learned, _ = distil("learned", path=attentive_sd, compress=STRIDE)
    qat = {"path": attentive_sd, "objective": {"name": "qat"}}
    with pytest.raises(ValueError, match="which has not learned this stride"):
        distil("wrong", student={"init": str(plain)}, compress=STRIDE, **qat)
    words = ["recipe=emoji-4step-qat", f"teacher.path={attentive_sd}", "data.prompts=x"]
    with pytest.raises(ValueError, match="which has not learned this stride"):
        plan([*words, f"student.init={plain}", "compress.attention_stride=2"])
    plan([*words, f"student.init={learned}", "compress.attention_stride=2"])
    for name, compress in (("kept", {}), ("said", STRIDE)):
        made, _ = distil(name, student={"init": str(learned)}, compress=compress, **qat)
        assert load_student(made).info.attention == TokenStride(stride=2)
