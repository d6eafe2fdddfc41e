"""Stable Diffusion 3 with its third text encoder and without."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny import LENGTH, save

from edgedistill.diffusion.prediction import Prediction
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.sd3 import T5_LENGTH
from edgedistill.tiny.sd3 import pipeline as make_sd3

PROMPTS = ["red", "blue"]


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "no-t5"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("sd3") / "teacher"
    make_sd3(t5=request.param).save_pretrained(place)
    return place


def opened(folder):
    there = (folder / "text_encoder_3").is_dir()
    absent = {} if there else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def t5_length(pipeline):
    return LENGTH if pipeline.text_encoder_3 else T5_LENGTH


def test_the_conditions_are_the_pipelines(folder):
    teacher, pipeline = load_teacher("sd3", folder), opened(folder)
    length = t5_length(pipeline)
    found = pipeline.encode_prompt(
        PROMPTS, None, None, torch.device("cpu"), max_sequence_length=length
    )
    ours, null = teacher.encode(PROMPTS), teacher.null()
    assert ours["encoder_hidden_states"].shape == (2, LENGTH + length, 16)
    torch.testing.assert_close(ours["encoder_hidden_states"], found[0])
    torch.testing.assert_close(null["encoder_hidden_states"], found[1][:1])
    torch.testing.assert_close(ours["pooled_projections"], found[2])
    torch.testing.assert_close(null["pooled_projections"], found[3][:1])


def test_a_student_keeps_the_encoders_its_teacher_has(folder, tmp_path):
    teacher = load_teacher("sd3", folder)
    place = save(tmp_path / "student", teacher, teacher.net, Prediction.FLOW, 2, sampler="ddim")
    student, pipeline = load_student(place), opened(place)
    assert list(student.teacher.tokenizers) == list(teacher.tokenizers)
    absent = "text_encoder_3=None, tokenizer_3=None" in (place / "README.md").read_text()
    assert absent == (pipeline.text_encoder_3 is None)
    noise = student.table.draw((2, *teacher.sample_shape), torch.Generator().manual_seed(1))
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=2,
        guidance_scale=1.0,
        latents=noise[0],
        max_sequence_length=t5_length(pipeline),
        output_type="latent",
    ).images
    ours = student.sample(student.teacher.encode(PROMPTS), noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_text_encoders_graph_reads_the_tokenizers_there_are(folder):
    teacher = load_teacher("sd3", folder)
    graph = teacher.graphs()["text_encoder"]
    assert list(graph.inputs) == list(teacher.tokenizers.values())
    assert len(graph.inputs) == (3 if teacher.pipeline.text_encoder_3 else 2)


def test_t5_reads_no_more_than_the_pipeline_gives_it(folder):
    teacher = load_teacher("sd3", folder)
    if "tokenizer_3" in teacher.tokenizers:
        teacher.pipeline.tokenizer_3.model_max_length = 512
        assert teacher.length("tokenizer_3") == T5_LENGTH
    assert teacher.length("tokenizer") == LENGTH
