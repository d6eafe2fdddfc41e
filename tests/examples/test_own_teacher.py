"""Scripts of the tutorials: pictures as image folders, a LoRA and a file that teachers take."""

import json
import sys

import numpy as np
import pytest
import torch
from own_teacher import finetune, known_emoji, new_emoji, to_single_file, train_ddpm
from PIL import Image

from edgedistill.teachers import load_teacher


@pytest.mark.parametrize("styled", [False, True])
def test_known_emoji_are_a_folder_with_captions(styled, tmp_path):
    assert known_emoji.write(tmp_path, 6, styled) == 6
    pictures, captions = finetune.read(tmp_path)
    assert pictures.shape == (6, 3, 64, 64)
    assert len(set(captions)) == 6
    red, green, blue = pictures.unbind(1)
    if styled:
        assert all(caption.endswith(", ink") for caption in captions)
        assert bool((red <= green).all())
        assert bool((green <= blue).all())
    else:
        assert all(caption.endswith(", noto") for caption in captions)
        assert bool((red > blue).any())
    assert pictures[:, :, 0, 0].median(0).values.tolist() == [1, 1, 1]  # on white


def test_new_emoji_are_none_that_the_teacher_knows():
    shipped = json.loads((known_emoji.ROOT / "emoji" / "prompts.json").read_text())
    known = " ".join(shipped["train"] + shipped["unseen"])
    assert len(set(new_emoji.NAMES)) == 40
    assert not [name for name in new_emoji.NAMES if f"{name}," in known]


@pytest.mark.parametrize("classes", [False, True])
def test_a_ddpm_is_saved_as_a_teacher(classes, tmp_path, monkeypatch):
    for i in range(8):
        place = tmp_path / "pictures" / ("even", "odd")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(place / f"{i}.png")
    words = [str(tmp_path / "pictures"), str(tmp_path / "teacher"), "--steps", "2"]
    words += ["--licence", "mit", *(["--classes"] if classes else [])]
    monkeypatch.setattr(sys, "argv", ["train_ddpm.py", *words])
    train_ddpm.main()
    teacher = load_teacher("unet2d", tmp_path / "teacher")
    assert teacher.sample_shape == (1, 8, 8)
    assert list(teacher.prompts) == (["even", "odd"] if classes else [])
    assert teacher.licences == ["mit"]


def test_the_file_and_the_configurations_are_the_folders_teacher(tmp_path, monkeypatch):
    file, config = tmp_path / "own.safetensors", tmp_path / "config"
    words = [str(file), str(config), "--licence", "mit"]
    monkeypatch.setattr(sys, "argv", ["to_single_file.py", *words])
    to_single_file.main()
    assert not list(config.rglob("*.safetensors"))
    whole = load_teacher("stable_diffusion", "emoji")
    read = load_teacher("stable_diffusion", str(file), str(config))
    assert read.licences == ["mit"]
    mine, theirs = read.net.state_dict(), whole.net.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("rank", [None, 4])
def test_a_fine_tuned_folder_or_lora_is_a_teacher(rank, tmp_path, monkeypatch):
    known_emoji.write(tmp_path / "pictures", 4, styled=True)
    words = [str(tmp_path / "pictures"), str(tmp_path / "out"), "--steps", "2"]
    words += ["--licence", "mit", *(["--lora", str(rank)] if rank else [])]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
    finetune.main()
    out = str(tmp_path / "out")
    base = load_teacher("stable_diffusion", "emoji")
    made = (
        load_teacher("stable_diffusion", "emoji", None, [(out, 1.0)])
        if rank
        else load_teacher("stable_diffusion", out)
    )
    before, after = base.net.state_dict(), made.net.state_dict()
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert any("attn2.to_k" in name for name in changed)
    assert any("conv1" in name for name in changed)
    assert "mit" in made.licences
