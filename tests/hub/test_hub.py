"""Push to a Hub and pull from it: a small server speaks its endpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread

import huggingface_hub.constants as constants
import numpy as np
import pytest
import torch
import yaml
from hub_server import serving
from tiny import make_pipeline, save

import edgedistill as ed
from edgedistill import cli
from edgedistill.common.hashes import files_in
from edgedistill.diffusion.prediction import Prediction
from edgedistill.networks.planar import PlanarNet
from edgedistill.students.folder import load_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill_runtime import Pipeline
from edgedistill_runtime.hub import HubError, hub_name, local_folder, wanted


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub that the client's settings name; the working folder is empty."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    make_pipeline().save_pretrained(folder / "teacher")
    teacher = StableDiffusion.load(str(folder / "teacher"))
    teacher.path = "someone/tiny-sd"
    figures = {"trained": {"fd": 0.8125}}
    return save(
        folder / "run/student",
        teacher,
        teacher.net,
        Prediction.V,
        2,
        changes={"evaluation": figures},
    )


@pytest.fixture(scope="module")
def bundle(student) -> Path:
    return ed.load_student(student).export(target="ort").path


@pytest.fixture(scope="module")
def planar(two_modes, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    net = PlanarNet(width=8, depth=1)
    place = tmp_path_factory.mktemp("planar") / "student"
    return save(place, Mixture.load(str(two_modes)), net, Prediction.V, steps=2)


def test_a_pushed_student_is_pulled_the_same(hub, student):
    url = ed.push(student, "me/tiny-2step", prompts=["red", "a red cat"])
    assert url == f"{hub.endpoint}/me/tiny-2step"
    there = hub.files("me/tiny-2step")
    assert set(files_in(student)) | {"samples.png", ".gitattributes"} == set(there)
    pulled = ed.load_student("me/tiny-2step")
    assert pulled.path == Path("runs/tiny-2step/student")
    assert load_student(pulled.path).sha256 == load_student(student).sha256
    drawn = ed.load_student(student).samples("red", seed=3)
    assert np.array_equal(pulled.samples("red", seed=3), drawn)
    assert pulled.export(target="ort").path == Path("runs/tiny-2step/bundles/ort-fp32")


def test_the_card_says_what_the_student_is_and_how_to_run_it(hub, student):
    ed.push(student, "me/tiny-2step", prompts=["red", "a red cat"])
    _, front, text = hub.files("me/tiny-2step")["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": "someone/tiny-sd",
        "license": "mit",
        "tags": ["edgedistill", "few-step", "2-step", "lcm", "stable_diffusion"],
    }
    assert 'DiffusionPipeline.from_pretrained("me/tiny-2step")' in text
    assert 'edgedistill generate me/tiny-2step "red" --seed 0' in text
    assert "](samples.png)" in text
    assert "| Frechet distance, trained | 0.8125 |" in text


def test_a_pushed_bundle_runs_by_its_name(hub, bundle):
    ed.push(bundle, "me/tiny-ort")
    pixels = Pipeline.load("me/tiny-ort")("red", seed=3).images
    assert np.array_equal(pixels, Pipeline.load(bundle)("red", seed=3).images)
    text = hub.files("me/tiny-ort")["README.md"].decode()
    assert 'Pipeline.load("me/tiny-ort")' in text
    assert "- ort\n" in text


def test_a_planar_student_is_pushed_and_drawn(hub, planar):
    ed.push(planar, "me/planar")
    assert ed.load_student("me/planar").samples(count=3).shape == (3, 2)


def test_the_command_tells_where_it_went_as_json(hub, planar, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["edgedistill", "push", str(planar), "me/told", "--json", "-"]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out)["url"].endswith("/me/told")


def test_a_second_push_replaces_the_first_and_keeps_its_commit(hub, planar, student):
    ed.push(student, "me/mine", prompts=["red"])
    first = hub.repos["me/mine"][-1][0]
    ed.push(planar, "me/mine")
    assert "unet/config.json" not in hub.files("me/mine")
    assert local_folder(f"me/mine@{first}").joinpath("unet/config.json").is_file()
    assert not local_folder("me/mine").joinpath("unet").exists()
    ed.load_student("me/mine")
    with pytest.raises(HubError, match=r"'me/mine@v9', and the Hub knows no such revision"):
        local_folder("me/mine@v9")


def test_a_repository_of_something_else_is_kept(hub, planar):
    hub.commit("me/notes", {"notes.txt": b"mine"})
    with pytest.raises(ValueError, match=r"me/notes: holds notes\.txt and no student"):
        ed.push(planar, "me/notes")
    assert hub.files("me/notes") == {"notes.txt": b"mine"}
    ed.push(planar, "me/notes", replace=True)
    assert "notes.txt" not in hub.files("me/notes")


def test_a_damaged_student_is_not_pushed(hub, planar, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(planar, copy)
    with (copy / "net/diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="damaged or changed"):
        ed.push(copy, "me/planar")
    assert hub.asked == []


def test_a_stranger_is_told_to_log_in(hub, planar, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match=r"not pushed to me/planar: .*log in with `hf auth login`"):
        ed.push(planar, "me/planar")


def test_a_teacher_on_the_hub_is_fetched_without_pickles_and_variants(hub, tiny_sd):
    other = {
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
        "v1-5-pruned.safetensors": b"one file",
        "v1-5.ckpt": b"pickle",
        "unet/model.onnx": b"graph",
        "safety_checker/model.safetensors": b"heavy",
        "modeling.py": b"import os",
        "LICENSE.txt": b"MIT License",
        "README.md": b"---\nlicense: mit\n---\n",
    }
    files = {f.relative_to(tiny_sd).as_posix(): f.read_bytes() for f in tiny_sd.rglob("*.*")}
    hub.commit("someone/tiny-sd", {**files, **other})
    teacher = load_teacher("stable_diffusion", "someone/tiny-sd")
    assert hub.fetched() == {*files, "LICENSE.txt", "README.md"}
    assert teacher.path == "someone/tiny-sd"
    assert teacher.licences == ["mit"]
    own = load_teacher("stable_diffusion", str(tiny_sd))
    key = "encoder_hidden_states"
    assert torch.equal(teacher.encode(["red"])[key], own.encode(["red"])[key])


def test_a_pickle_is_never_fetched(hub):
    names = ["a/model.xml", "a/model.bin", "b/pytorch_model.bin", "c.pt", "d.ckpt", "e.py"]
    names += [
        "f.safetensors",
        "g.pkl",
        "LICENSE",
        "m.mlpackage/Data/weights/weight.bin",
        ".x.json",
    ]
    found = ["LICENSE", "a/model.bin", "a/model.xml", "f.safetensors"]
    assert wanted(names) == [*found, "m.mlpackage/Data/weights/weight.bin"]
    hub.commit("someone/pickles", {"pytorch_model.bin": b"x"})
    with pytest.raises(HubError, match="the Hub has no file there that is read"):
        local_folder("someone/pickles")


def test_a_copy_is_used_where_the_hub_is_switched_off(hub, planar, monkeypatch):
    ed.push(planar, "me/planar")
    here = local_folder("me/planar")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_folder("me/planar") == here
    with pytest.raises(HubError, match=r"no folder at 'me/other', and the Hub is switched off"):
        local_folder("me/other")


def test_a_local_folder_wins(hub, planar):
    Path("me").mkdir()
    assert hub_name("me/planar") is None
    shutil.copytree(planar, "me/planar")
    assert ed.load_student("me/planar").path == Path("me/planar")
    assert hub_name("runs/planar") is None
    assert hub_name("a/b/c") is None
    assert hub_name("some/one@v1").revision == "v1"
    assert hub.asked == []


def test_no_network_is_said_at_once_in_a_line(tmp_path, planar):
    """A Hub that hangs up is not asked again and again."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        calls = []
        Thread(target=_hang_up, args=(server, calls), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        for words in (["generate", "me/planar"], ["push", str(planar), "me/planar"]):
            calls.clear()
            command = [sys.executable, "-m", "edgedistill.cli", *words]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path
            )
            assert done.returncode == 2, done.stderr
            [line] = done.stderr.splitlines()
            assert "the Hub could not be reached" in line
            assert len(calls) <= 3


def _hang_up(server: socket.socket, calls: list[object]) -> None:
    with suppress(OSError):
        while True:
            connection, address = server.accept()
            calls.append(address)
            connection.close()
