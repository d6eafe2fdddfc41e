"""What is particular to PixArt: the conditions of 1024 pixels, masks, lowered prompts."""

import pytest
import torch
from diffusers import PixArtAlphaPipeline

from edgedistill.common.files import atomic_folder
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.pixart import PixArt
from edgedistill.tiny.pixart import pipeline
from edgedistill.tiny.tokenizers import LENGTH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pixart") / "teacher"
    torch.manual_seed(0)
    with atomic_folder(place) as work:
        pipeline().save_pretrained(work)
    return place


@torch.no_grad()
def test_networks_for_1024_pixels_read_the_pictures_size():
    torch.manual_seed(0)
    # A latent of 128 is how the pipeline tells them; large patches keep it small.
    made = pipeline(sample_size=128, patch_size=32, use_additional_conditions=True)
    theirs = PixArtAlphaPipeline(**made.components)
    theirs.set_progress_bar_config(disable=True)
    teacher = PixArt("tiny", "tiny", theirs)
    assert teacher.net.resolution.tolist() == [[256, 256]]
    x = torch.randn(1, 4, 128, 128)
    seen = []
    theirs.transformer.register_forward_hook(lambda *call: seen.append(call[2][0]))
    choices = {"max_sequence_length": LENGTH, "use_resolution_binning": False}
    theirs("red", latents=x, num_inference_steps=1, guidance_scale=1.0, **choices)
    t = torch.tensor([float(theirs.scheduler.timesteps[0])])
    found = teacher.net(x, t, **teacher.encode(["red"]))
    torch.testing.assert_close(found, seen[0][:, :4])


def test_padding_is_neither_read_by_the_encoder_nor_by_the_network(folder):
    teacher = load_teacher("pixart", folder)
    tokens = teacher.tokenize(["red"])
    other = torch.where(tokens["attention_mask"] == 1, tokens["input_ids"], 7)
    assert not torch.equal(other, tokens["input_ids"])
    x, t = torch.ones(1, 4, 4, 4), torch.tensor([500.0])
    with torch.no_grad():
        drawn = [
            teacher.net(x, t, *teacher.text_encoder(ids, tokens["attention_mask"]))
            for ids in (tokens["input_ids"], other)
        ]
    torch.testing.assert_close(*drawn)


def test_prompts_are_lowered_and_stripped_as_in_the_pipeline(folder):
    teacher = load_teacher("pixart", folder)
    shouted, plain = teacher.encode([" Red BLUE "]), teacher.encode(["red blue"])
    torch.testing.assert_close(shouted, plain)
    ours = shouted["encoder_hidden_states"]
    theirs = teacher.pipeline.encode_prompt([" Red BLUE "], False, max_sequence_length=LENGTH)
    torch.testing.assert_close(ours, theirs[0])


def test_a_prompt_is_as_long_as_the_pipeline_has_it(folder):
    teacher = load_teacher("pixart", folder)
    assert teacher.length("tokenizer") == LENGTH
    teacher.pipeline.tokenizer.model_max_length = 512
    assert teacher.length("tokenizer") == 300
