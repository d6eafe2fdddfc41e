"""Teachers as they are, on a multistep solver: what diffusers draws with its own scheduler."""

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline

from edgedistill.adoption import adopt
from edgedistill.students.folder import load_student

PROMPTS = ["red", "blue"]
SCHEDULERS = {
    "ddim": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
}


def drawn(folder, steps, scheduler=None) -> torch.Tensor:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        kind, settings = scheduler
        settings = {"timestep_spacing": "trailing", **settings}
        kind = getattr(diffusers, kind)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    return pipeline(
        PROMPTS,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
        guidance_scale=1.0,
    ).images


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_an_adopted_teacher_draws_what_diffusers_draws(tiny_sd, tmp_path, solver):
    folder = adopt(str(tiny_sd), solver, steps=6, out=tmp_path / "student")
    student = load_student(folder)
    expected = drawn(tiny_sd, 6, SCHEDULERS[solver])
    noise = student.table.draw((2, 4, 4, 4), torch.Generator().manual_seed(7))
    ours = student.sample(student.teacher.encode(PROMPTS), noise)
    limit = 1e-4 * expected.abs().max()
    assert (ours - expected).abs().max() <= limit
    assert (drawn(folder, 6) - expected).abs().max() <= limit
    assert (student.info.method, len(student.table.rows)) == (solver, 6)
    assert student.info.schema_version == (2 if solver == "ddim" else 3)
    assert "num_inference_steps=6" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"steps": 1001}, "--steps 1001: 1 to 1000 expected"),
        ({"guidance": 3.0}, r"--guidance 3.0: dpm\+\+2m takes a whole teacher as it is"),
        ({"base": "sd"}, r"--base sd: dpm\+\+2m takes a whole teacher as it is"),
    ],
)
def test_what_a_teacher_is_not_adopted_with(tiny_sd, tmp_path, words, line):
    with pytest.raises(ValueError, match=line):
        adopt(str(tiny_sd), "dpm++2m", out=tmp_path / "s", **words)
    assert not (tmp_path / "s").exists()


def test_a_wrong_kind_lists_the_solvers(tiny_sd):
    with pytest.raises(ValueError, match=r"unknown kind 'dpm2m' \(did you mean 'dpm\+\+2m'"):
        adopt(str(tiny_sd), "dpm2m")
