"""What is wrong with a request is said before what is wrong with the place of its result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import save

from edgedistill import cli
from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.planar import PlanarNet
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_runtime.routes import ROUTES, Routes


@pytest.fixture(scope="module")
def places(tmp_path_factory, two_modes, tiny_sd) -> dict[str, str]:
    """Folders and files for arguments to name. Nothing can be written to `taken`, `full`, `file`,
    and what is inside `file`.
    """
    root = tmp_path_factory.mktemp("places")
    for name, inside in (("taken", "recipe.yaml"), ("full", "notes"), ("bundle", "manifest.json")):
        (root / name).mkdir()
        (root / name / inside).write_text("{}")
    for end in ("", ".yaml", ".safetensors"):
        (root / f"file{end}").write_text("mine")
    torch.manual_seed(0)
    planar, drawn = Mixture.load(str(two_modes)), StableDiffusion.load(str(tiny_sd))
    net = PlanarNet(width=8)
    for name, teacher, own, prediction in (
        ("runs/two/student", planar, net, Prediction.V),
        ("students/0", planar, net, Prediction.V),
        ("students/1", planar, net, Prediction.V),
        ("sd/student", drawn, drawn.net, Prediction.EPS),
    ):
        about = {"name": "mine", "teacher": {"family": teacher.family, "path": teacher.path}}
        save(root / name, teacher, own, prediction, 2, changes={"recipe": about})
    routes = Routes("label", ((0.0,), (1.0,)))
    (root / "students" / ROUTES).write_text(json.dumps(routes.to_json()))
    names = ("taken", "full", "bundle", "file", "runs", "students", "nowhere")
    return {
        "two": str(root / "runs/two/student"),
        "sd": str(root / "sd/student"),
        "pipeline": str(tiny_sd),
        "unet": str(tiny_sd / "unet" / "diffusion_pytorch_model.safetensors"),
        **{name: str(root / name) for name in names},
    }


ORDERED = [
    (
        "distill recipe=mixture-lcm out={taken}",
        "train.steps=0",
        "train.steps=0: input should be greater than 0",
        "{taken} holds a run already",
    ),
    (
        "distill recipe=mixture-lcm out={taken}",
        "train.step=1",
        "unknown key train.step",
        "{taken} holds a run already",
    ),
    (
        "synth recipe=mixture-kd out={file}/x",
        "data.samples=0",
        "data.samples=0",
        "cannot write there",
    ),
    ("export {two} --out {full}", "--option static=1", "takes no options", "is no bundle"),
    ("export {two} --out {full}", "--target orb", "'orb'", "is no bundle"),
    ("export {two} --out {full}", "--min-psnr 30", "not fp32", "is no bundle"),
    ("export {two} --out {full} --precision int8", "--max-size -1", "above 0", "is no bundle"),
    ("export {two} --out {full}", "--depth small", "has one depth only", "is no bundle"),
    ("export {two} --out {full} --dry-run", "--depth small", "has one depth", "is no bundle"),
    (
        "export {students} --out {bundle}",
        "--option static=1",
        "takes no options",
        "holds one bundle",
    ),
    (
        "adopt {unet} --as turbo --out {full} --base {pipeline}",
        "--base {nowhere}",
        "--base {nowhere}: no pipeline folder",
        "a folder that is no student is there",
    ),
    (
        "adopt {pipeline} --as ddim --out {full}",
        "--steps 2000",
        "--steps 2000: 1 to 1000 expected",
        "a folder that is no student is there",
    ),
    (
        "evaluate {sd} --samples 2 --json {file}/x",
        "--prompts {nowhere}",
        "{nowhere}: No such file",
        "cannot write there",
    ),
    (
        "evaluate {sd} --samples 2 --json {file}/x",
        "--features {nowhere}",
        "features={nowhere}: no vision model there",
        "cannot write there",
    ),
    ("convert {sd} {file}.safetensors", "--to lora", "was not trained as a LoRA", "exists"),
    ("init {pipeline} --out {file}.yaml --prompts x", "--method lmc", "'lmc'", "exists"),
    ("generate {two} --out {file}/x.npy", "prompt", "takes no prompt", "cannot write there"),
    ("generate {two} --out {file}/x.npy", "--negative red", "takes no prompt", "cannot write"),
]
"""A request whose place cannot be taken, words that make it wrong besides, and what is said with
and without these words."""


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """A function (words) -> (exit code, standard error) that runs the command in a new folder."""
    monkeypatch.chdir(tmp_path)
    Path("x").write_text("red\n")

    def call(words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edgedistill", *words.split()])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capfd.readouterr().err

    return call


def told(found: tuple[int, str]) -> str:
    """The one line of a refused request."""
    code, err = found
    assert (code, len(err.splitlines())) == (2, 1), err
    return err


@pytest.mark.parametrize(
    ("words", "wrong", "named", "place"), ORDERED, ids=[f"{x} {y}" for x, y, *_ in ORDERED]
)
def test_a_wrong_value_is_told_before_a_place_that_is_taken(
    run, places, words, wrong, named, place
):
    assert place.format(**places) in told(run(words.format(**places)))
    assert named.format(**places) in told(run(f"{words} {wrong}".format(**places)))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("report {taken} --out {file}/x.html", "{taken}/student"),
        ("report {runs} --out {file}/x.html", "{runs}: no run has figures"),
        ("bench {full} --json {file}/x", "{full}: neither a bundle"),
        ("convert {full} {file}.safetensors", "{full}: no student.json"),
        ("init {nowhere} --out {file}.yaml", "{nowhere}"),
        ("generate {full} --out {file}/x.npy", "{full}: no student.json"),
        ("export {full} --out {taken}", "{full}: no student.json"),
    ],
)
def test_a_wrong_source_is_told_before_a_place_that_is_taken(run, places, words, named):
    assert named.format(**places) in told(run(words.format(**places)))
