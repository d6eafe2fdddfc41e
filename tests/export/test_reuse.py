"""A student whose steps reuse deep blocks is one graph, in which these run in the other steps."""

import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from diffusers import DDPMScheduler
from tiny import save

from edgedistill.common.files import read_json
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.converting import convert
from edgedistill.students.folder import load_student
from edgedistill.teachers.families.stable_diffusion import StableDiffusion
from edgedistill.teachers.families.unet2d import UNet2D
from edgedistill.tiny import unet2d
from edgedistill_export import export_student
from edgedistill_export.auto import choosing
from edgedistill_export.auto.choosing import choose
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.dry_run import plan_exports
from edgedistill_export.layouts import LAYOUTS
from edgedistill_export.layouts.pipeline import check_layout
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import Manifest
from edgedistill_runtime.noise import noise as draw_noise

FUSED = ExportSettings(fused=True)
DEEP, OUTER = (
    "denoiser.unet.mid_block.resnets.0.conv1",
    "denoiser.unet.up_blocks.1.resnets.0.conv1",
)


def reusing(folder, teacher, steps, rows, layers=None):
    """A student of a teacher as it is, of whose steps some reuse."""
    schedule, prediction = teacher.denoiser.schedule, teacher.denoiser.prediction
    times = student_times(schedule, steps, "trailing", "renoise")
    table = few_step_table(schedule, prediction, times, "renoise").reusing(rows, layers)
    changes = {"step_table": table.to_json()}
    return save(folder, teacher, teacher.net, prediction, steps, changes=changes)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Three steps, the last without deep blocks."""
    root = tmp_path_factory.mktemp("pixels")
    torch.manual_seed(0)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    unet2d.pipeline(scheduler=scheduler).save_pretrained(root / "tiny")
    teacher = UNet2D.load(str(root / "tiny"))
    return reusing(root / "student", teacher, 3, [2])


@pytest.fixture(scope="module")
def texts(tiny_sd, tmp_path_factory):
    """Two steps of latents, the second without deep blocks."""
    teacher = StableDiffusion.load(str(tiny_sd))
    return reusing(tmp_path_factory.mktemp("texts") / "student", teacher, 2, [1])


@torch.no_grad()
def drawn_by_hand(folder, noise, sources):
    """x0 of a U-Net whose last up block is fed the deep states of other rows by a hook.

    Args:
        folder: The student.
        noise: Its noise.
        sources: For a row that reuses, the row whose deep state it takes.
    """
    student = load_student(folder)
    unet, table, entered = student.net.unet, student.table, {}
    x, fresh = table.init_scale * noise[0], iter(noise[1:])
    for index, row in enumerate(table.rows):

        def feed(module, args, index=index):
            entered[index] = entered[sources[index]] if index in sources else args[0]
            return (entered[index], *args[1:])

        hook = unet.up_blocks[-1].register_forward_pre_hook(feed)
        f = student.net(row.scale * x, torch.full((len(x),), row.t))
        hook.remove()
        x = row.a * x + row.b * f + (row.c * next(fresh) if row.c else 0)
    return x.numpy()


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_the_graph_takes_the_state_of_the_row_before(pixels, tmp_path, target):
    place = export_student(pixels, target, "fp32", tmp_path / "b", settings=FUSED)
    manifest = Manifest.read(place)
    assert manifest.schema_version == 3
    assert manifest.parity.final.worst > 60
    shapes = load_student(pixels).table.shapes((3, 8, 8))
    noise = draw_noise(5, 0, 3, shapes)
    found = Pipeline.load(place, threads=1).samples(3, noise=noise).samples
    given = [torch.from_numpy(each) for each in noise]

    def apart(sources):
        wanted = drawn_by_hand(pixels, given, sources)
        return np.abs(found - wanted).max() / np.abs(wanted).max()

    assert apart({2: 1}) < 1e-5
    assert apart({2: 0}) > 1e-3  # of an earlier row
    assert apart({}) > 1e-3  # of its own


def test_the_deep_blocks_are_in_the_graph_as_often_as_they_run(pixels, tmp_path):
    place = export_student(pixels, out=tmp_path / "b", settings=FUSED)
    model = onnx.load(place / Manifest.read(place).graphs["pipeline"].file)
    layers = Counter(node.name.rpartition("/")[0] for node in model.graph.node)
    assert (layers[DEEP], layers[OUTER]) == (2, 3)


def test_a_cut_between_layers_is_in_the_graph_and_in_the_folder(tmp_path):
    torch.manual_seed(0)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    unet2d.pipeline(scheduler=scheduler).save_pretrained(tmp_path / "tiny")
    teacher = UNet2D.load(str(tmp_path / "tiny"))
    student = reusing(tmp_path / "student", teacher, 3, [1, 2], layers=1)
    assert read_json(student / "student.json")["schema_version"] == 5
    assert load_student(student).table.reuse_layers == 1
    manifest = Manifest.read(place := export_student(student, out=tmp_path / "b", settings=FUSED))
    assert manifest.parity.final.worst > 60
    model = onnx.load(place / manifest.graphs["pipeline"].file)
    layers = Counter(node.name.rpartition("/")[0] for node in model.graph.node)
    block = OUTER.removesuffix("0.conv1")
    first = "denoiser.unet.down_blocks.0.resnets.0.conv1"
    assert (layers[DEEP], layers[OUTER], layers[f"{block}1.conv1"]) == (1, 1, 3)
    assert layers[first] == 1


def test_the_fused_graph_of_a_text_student_is_its_student(texts, tmp_path):
    manifest = Manifest.read(export_student(texts, out=tmp_path / "b", settings=FUSED))
    assert manifest.parity.graphs["pipeline"].worst > 60
    assert manifest.parity.final.worst > 60


def test_a_bundle_of_single_steps_is_refused_in_one_line(texts, tmp_path):
    for attempt in (
        lambda: export_student(texts, out=tmp_path / "b"),
        lambda: plan_exports(texts, [("ort", "fp32")], tmp_path / "b", ExportSettings()),
    ):
        with pytest.raises(ValueError, match=r"reuse deep blocks.*; add --fused") as error:
            attempt()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "b").exists()
    assert plan_exports(texts, [("ort", "fp32")], tmp_path / "b", FUSED)[0].state == "new"


def test_the_command_line_says_what_to_do(texts, monkeypatch, capsys):
    from edgedistill import cli

    monkeypatch.setattr(sys, "argv", ["edgedistill", "export", str(texts), "--target", "ort"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "add --fused" in " ".join(capsys.readouterr().err.split())


def test_other_programs_are_told_what_they_cannot_draw(texts, tmp_path):
    info = load_student(texts).info
    with pytest.raises(ValueError, match=r"--layout optimum: the student's steps reuse"):
        check_layout(LAYOUTS["optimum"], info, texts, "ort")
    with pytest.raises(ValueError, match="steps reuse deep blocks, and no other program draws so"):
        convert(texts, "single-file", tmp_path / "one.safetensors")


def test_auto_builds_and_measures_one_graph_of_each_candidate(pixels, monkeypatch):
    def measure(subject, runs, threads, options):
        return {"p50_s": 0.01, "load_s": 0.1, "first_s": 0.1, "peak_rss_mb": 100.0}

    monkeypatch.setattr(choosing, "measure", measure)
    monkeypatch.setattr(choosing, "CANDIDATES", (("openvino", "fp32"), ("ort", "fp32")))
    chosen = choose(pixels, "latency", ExportSettings(), "{}")
    names = ["openvino-fp32-fused", "ort-fp32-fused"]
    assert [(row.name, row.error) for row in chosen.rows] == [(name, "") for name in names]
    assert {speed.bundle for speed in chosen.choice.speeds} == set(names)
    assert chosen.place.name in names


def test_a_folder_of_an_older_reader_stays_as_it_was(student_dir, pixels):
    old, new = (read_json(folder / "student.json") for folder in (student_dir, pixels))
    assert (old["schema_version"], new["schema_version"]) == (2, 4)
    assert not any("reuse" in row for row in old["step_table"]["rows"])
    assert TorchStepTable.from_json(new["step_table"]).reuses
