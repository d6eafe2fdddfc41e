"""Captions of the teacher's own data that change from draw to draw."""

import json

import pytest
import torch

from edgedistill import assets, recipes
from edgedistill.runs.run_dir import open_run
from edgedistill.teachers.latents import Latents, read_variants

CAPTIONS = ["cat, noto", "dog, noto"]
VARIANTS = [{"cat, noto": 0.5, "animal, noto": 0.5}, {"dog, noto": 3, "animal, noto": 1}]


class Words:
    """A teacher whose condition of a caption is its length."""

    def encode(self, captions):
        return {"length": torch.tensor([len(caption) for caption in captions])}


def latents(variants=VARIANTS) -> Latents:
    return Latents(torch.tensor([[0.0], [1.0]]), CAPTIONS, Words(), variants=variants)


def test_captions_are_drawn_by_their_shares():
    data = latents()
    assert data.vary()
    words = data.prompts(20_000, torch.Generator().manual_seed(0))
    x0, cond = data.draw(20_000, torch.Generator().manual_seed(0))
    # The same draw in both: its rows, its captions and the captions' conditions.
    assert [len(word) for word in words] == cond["length"].tolist()
    rows = x0[:, 0].bool().tolist()
    for row, share in ((False, 0.5), (True, 0.25)):
        own = [word for word, at in zip(words, rows, strict=True) if at == row]
        assert set(own) == set(VARIANTS[row])
        assert own.count("animal, noto") / len(own) == pytest.approx(share, abs=0.015)


def test_captions_stay_the_same_unless_asked():
    words = latents().prompts(100, torch.Generator().manual_seed(0))
    assert set(words) == set(CAPTIONS)


def test_one_caption_a_picture_stays():
    data = latents(None)
    assert not data.vary()
    assert set(data.prompts(100, torch.Generator().manual_seed(0))) == set(CAPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[{}, {}]", '[{"a": 1}]', '[{"a": 1}, {"b": 0}]', '[{"a": 1}, {"b": "c"}]'),
        *('[{"a": 1}, 2]', '[{"a": 1}, {"b": NaN}]', '[{"a": 1}, {"b": true}]'),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, text):
    file = tmp_path / "captions.json"
    file.write_text(f'{{"variants": {text}}}')
    with pytest.raises(ValueError, match=r"captions\.json"):
        read_variants(file, 2)


def test_the_shipped_captions_are_those_of_the_shipped_pictures():
    folder = assets.ROOT / "emoji"
    prompts = json.loads((folder / "prompts.json").read_text())
    found = read_variants(folder / "captions.json", len(prompts["train"]))
    assert [max(row, key=row.__getitem__) for row in found] == prompts["train"]
    assert all(sum(row.values()) == pytest.approx(1, abs=0.01) for row in found)
    assert {word for row in found for word in row} >= set(prompts["open"])
    # What the student must not have seen.
    assert not {word for row in found for word in row} & {*prompts["unseen"], *prompts["pairs"]}


NOTHING = "data.caption_variants=true changes nothing: "


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_draws_them_if_its_recipe_says_so(tmp_path, asked, said):
    words = {"data.caption_variants": asked, "train.steps": 1, "train.batch_size": 2}
    recipe = recipes.load("emoji-lcm", [f"{key}={value}" for key, value in words.items()])
    run = open_run(recipe, str(tmp_path / "run"), False, runs=tmp_path)
    shipped = json.loads((assets.ROOT / "emoji" / "prompts.json").read_text())["train"]
    drawn = run.source.prompts(64, torch.Generator().manual_seed(0))
    assert (set(drawn) <= set(shipped)) is not asked
    assert not any(line.startswith(NOTHING) for line in said)


@pytest.mark.parametrize("name", ["emoji-lcm", "emoji-diffusion2gan"])
def test_a_run_whose_data_has_one_caption_each_says_so(tmp_path, said, name):
    """Of data, and of paths of the teacher."""
    words = ["teacher.tiny=true", "data.caption_variants=true", "objective.distance.kind=l2"]
    words += ["teacher.steps=2", "data.samples=2", "train.batch_size=2"]
    open_run(recipes.load(name, words), str(tmp_path / "run"), False, runs=tmp_path)
    assert len([line for line in said if line.startswith(NOTHING)]) == 1


def test_prompts_of_a_file_are_what_they_are(tmp_path, said):
    """A recipe that asks for variants serves other data too, and says that there are none."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    words = ["data.caption_variants=true", f"data.prompts={prompts}", "data.samples=2"]
    recipe = recipes.load("emoji-lcm", [*words, "teacher.steps=1", "train.batch_size=2"])
    run = open_run(recipe, str(tmp_path / "run"), False, runs=tmp_path)
    assert set(run.source.prompts(64, torch.Generator().manual_seed(0))) == {"a cat", "a dog"}
    assert any(line.startswith(NOTHING) for line in said)
