"""Core ML programs, built and proven without a Mac."""

import platform
import shutil
from dataclasses import replace
from itertools import combinations
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import ParityError, export_student
from edgedistill_export.bundle import ExportSettings
from edgedistill_export.parity import psnr
from edgedistill_export.targets import Job, find_target
from edgedistill_export.trace import ports
from edgedistill_runtime import Manifest, Pipeline
from edgedistill_runtime.manifest import BundleError
from edgedistill_runtime.manifest import Graph as Entry

ct = pytest.importorskip("coremltools")

from edgedistill_export.backends.coreml import CoreMLSession  # noqa: E402
from edgedistill_export.mil import Interpreter, read_package  # noqa: E402
from edgedistill_export.mil.constexpr import CONSTEXPR  # noqa: E402
from edgedistill_export.targets import coreml as target  # noqa: E402
from edgedistill_export.targets.coreml_palette import find_palette  # noqa: E402
from edgedistill_export.targets.coreml_weights import SCHEMES  # noqa: E402

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
RED = ExportSettings(prompts=["red"])


class Net(nn.Module):
    """A layer of each kind, and a time embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 96, 3, padding=1)
        self.time = nn.Linear(64, 96)
        self.words = nn.Embedding(100, 32)
        self.out = nn.Linear(96, 32)

    def forward(self, x, t, ids):
        words = self.words(ids)
        scale = self.time(torch.sin(t[:, None] * torch.arange(64.0) / 8))
        h = nn.functional.silu(self.conv(x)) * scale[:, :, None, None]
        return self.out(h.flatten(2).transpose(1, 2)) + words


X = torch.linspace(-3, 3, 512).sin().reshape(2, 4, 8, 8)
INPUTS = {"x": X, "t": torch.tensor([997.0, 3.0]), "ids": torch.tensor([[5], [99]])}
NET = ExportGraph(Net(), INPUTS, ("f",))


def build(folder, precision="fp16", name="denoiser", keep=(), **options):
    """NET built, and its session."""
    given = find_target("coreml").options(options)
    job = Job(
        name=name,
        graph=NET,
        precision=precision,
        folder=folder,
        options=given,
        keep=frozenset(keep),
    )
    built = target.build(job)
    return built, CoreMLSession(built.files[0], entry(built))


def entry(built) -> Entry:
    inputs, outputs = ports(NET, built.batch)
    return Entry(
        file=built.files[0].name,
        sha256={},
        precision="",
        inputs=inputs,
        outputs=outputs,
        notes=dict(built.notes),
    )


def agreement(session) -> float:
    """The least PSNR over both rows of the example."""
    with torch.no_grad():
        expected = NET.module(**INPUTS).numpy()
    rows = [{k: v[i : i + 1].numpy() for k, v in INPUTS.items()} for i in range(2)]
    return min(psnr(expected, np.concatenate([session(**row)["f"] for row in rows])))


def size(path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


LEAST = {
    "fp32": 140,
    "fp16": 70,
    "pal8": 50,
    "pal6": 39,
    "pal4": 26,
    "pal3": 19,
    "pal2": 14,
    "pal1": 10,
    "int8": 50,
    "int4": 25,
    "joint": 26,
}
"""PSNR that a precision keeps on NET."""

PALETTE, LINEAR = "constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"
UNPACKED_BY = {
    **{f"pal{bits}": {PALETTE} for bits in (8, 6, 4, 3, 2, 1)},
    "int8": {"constexpr_affine_dequantize"},
    "int4": {LINEAR},
    "joint": {PALETTE, LINEAR},
}


@pytest.fixture(scope="module")
def fp16(tmp_path_factory):
    return build(tmp_path_factory.mktemp("fp16"))


@pytest.mark.parametrize("precision", LEAST)
def test_each_precision_means_what_the_network_means(precision, fp16, tmp_path):
    built, session = build(tmp_path, precision)
    assert built.batch == 1
    assert built.notes["deployment_target"] == SCHEMES[precision].opset
    assert agreement(session) > LEAST[precision]
    kinds = {operation.kind for operation in read_package(built.files[0]).operations}
    assert kinds & CONSTEXPR.keys() == UNPACKED_BY.get(precision, set())
    if SCHEMES[precision].steps:
        assert size(built.files[0]) < 0.8 * size(fp16[0].files[0])


def test_every_precision_of_the_target_has_a_scheme_and_a_floor():
    assert find_target("coreml").precisions.keys() == SCHEMES.keys() == LEAST.keys()


def test_angles_stay_in_float32(fp16):
    kinds = {
        operation.kind: operation.outputs[0].stored.name
        for operation in read_package(fp16[0].files[0]).operations
    }
    assert kinds["sin"] == "fp32"
    assert kinds["conv"] == "fp16"


def weights(package) -> set[str]:
    return {name for name in read_package(package).constants if "weight_to_fp16" in name}


def test_layers_to_keep_stay_as_they_are(tmp_path):
    built, _ = build(tmp_path, "int8", keep=["conv", "words"])
    plain = {name for name in weights(built.files[0]) if name.endswith("weight_to_fp16")}
    assert plain == {"p_conv_weight_to_fp16", "p_words_weight_to_fp16"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"keep": ["cnov"]}, r"unknown layer to keep 'cnov' \(did you mean 'conv'\?\)"),
        (
            {"precision": "pal3", "deployment_target": "macOS14"},
            "deployment_target=macOS14 is too old for precision 'pal3'; "
            "choose from iOS18, macOS15, iOS26, macOS26",
        ),
        ({"deployment_target": "iOS9"}, r"deployment_target='iOS9'.*'iOS17', 'macOS14'"),
        ({"compute_units": "gpu"}, r"compute_units='gpu'.*'cpu_and_gpu'"),
        ({"chunks": "2"}, r"unknown option .*'chunks' \(did you mean 'chunk'\?\)"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(choice, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **choice)
    assert list(tmp_path.iterdir()) == []


def test_a_later_system_may_be_asked_for(tmp_path):
    built, session = build(tmp_path, deployment_target="macOS15")
    assert read_package(built.files[0]).opset == "CoreML8"
    assert built.notes == {"deployment_target": "macOS15", "compute_units": "all"}
    assert agreement(session) > LEAST["fp16"]


@pytest.mark.parametrize("precision", ["fp16", "pal6", "int4"])
def test_halves_run_one_after_the_other(precision, tmp_path):
    whole, one = build(tmp_path, precision, name="decoder", chunk="true")
    assert whole.files[0].name == "decoder.mlpackage"
    built, session = build(tmp_path, precision, chunk="true")
    assert built.files[0].name == "denoiser"
    assert built.notes["chunks"] == "2"
    halves = sorted(built.files[0].iterdir())
    assert [half.name for half in halves] == [
        "denoiser_chunk1.mlpackage",
        "denoiser_chunk2.mlpackage",
    ]
    assert max(size(half) for half in halves) < 0.9 * size(whole.files[0])
    assert agreement(session) == pytest.approx(agreement(one), abs=0.5)


@pytest.fixture(scope="module")
def bundle(student_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("coreml") / "fp16"
    return export_student(student_dir, "coreml", out=out, settings=RED)


def test_a_student_becomes_programs_that_draw_what_it_draws(student, bundle):
    manifest = Manifest.read(bundle)
    manifest.verify(bundle)
    assert (manifest.precision, manifest.parity.tier) == ("fp16", "fp16")
    assert manifest.parity.passed
    assert min(figures.worst for figures in manifest.parity.graphs.values()) > 50
    assert all(graph.batch == 1 for graph in manifest.graphs.values())
    assert manifest.graphs["text_encoder"].inputs[0].dtype == "int64"
    pipe = Pipeline.load(bundle, threads=1)
    prompts = ["red", "a longer prompt than fits", ""]
    generator = torch.Generator().manual_seed(3)
    noise = student.table.draw((3, *student.teacher.sample_shape), generator)
    x0 = student.sample(student.teacher.encode(prompts), noise)
    result = pipe(prompts, noise=[tensor.numpy() for tensor in noise])
    np.testing.assert_allclose(result.samples, x0.numpy(), atol=0.02)


def test_a_planar_student_needs_no_text(planar_dir, tmp_path):
    out = export_student(planar_dir, "coreml", "fp32", tmp_path / "planar")
    parity = Manifest.read(out).parity
    assert parity.passed
    assert parity.graphs["denoiser"].worst > 100


def test_a_package_holds_nothing_but_the_program(bundle):
    package = bundle / "denoiser.mlpackage"
    files = {file.relative_to(package).as_posix() for file in package.rglob("*.*")}
    home = "Data/com.apple.CoreML"
    assert files == {"Manifest.json", home, f"{home}/model.mlmodel", WEIGHTS}


def negate(package, name):
    """Change the sign of one weight in a saved package."""
    weight = read_package(package).constants[name].tobytes()
    file = package / WEIGHTS
    data = file.read_bytes()
    assert data.count(weight) == 1
    file.write_bytes(data.replace(weight, (-np.frombuffer(weight, np.float16)).tobytes()))


def test_a_negated_weight_in_the_file_fails_and_leaves_nothing(student_dir, tmp_path, monkeypatch):
    def build_wrong(job, build=target.build):
        built = build(job)
        if job.name == "denoiser":
            negate(built.files[0], "p_unet_conv_in_weight_to_fp16")
        return built

    monkeypatch.setattr(target, "build", build_wrong)
    with pytest.raises(ParityError, match=r"student: denoiser \d+\.\d dB \(floor 40\)"):
        export_student(student_dir, "coreml", out=tmp_path / "wrong", settings=RED)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_in_the_file_is_noticed(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    file = copy / "denoiser.mlpackage" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"weight\.bin: damaged or changed"):
        Manifest.read(copy).verify(copy)


def squared_error(values, centres) -> float:
    return float(np.min((values[:, None] - np.asarray(centres)) ** 2, axis=1).sum())


def best_palette(values, k) -> float:
    """The least error of any way to cut sorted numbers into k runs."""
    values = np.sort(values)
    runs = (np.split(values, cuts) for cuts in combinations(range(1, len(values)), k - 1))
    return min(sum(((run - run.mean()) ** 2).sum() for run in parts) for parts in runs)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("draw", ["normal", "standard_t", "uniform"])
def test_a_palette_is_nearly_the_best(bits, draw):
    rng = np.random.default_rng(0)
    values = getattr(rng, draw)(*([3] if draw == "standard_t" else []), size=40)
    centres, indices = find_palette(values, bits)
    assert squared_error(values, centres) <= 1.1 * best_palette(values, 2**bits)
    np.testing.assert_allclose(
        squared_error(values, centres), ((values - centres[indices]) ** 2).sum()
    )


def test_a_palette_of_few_numbers_is_exact():
    weight = np.float16([[3, -1, 3], [0.5, -1, 0.5]])
    centres, indices = find_palette(weight, 3)
    assert centres.dtype == np.float16
    assert centres.shape == (8,)
    np.testing.assert_array_equal(centres[indices].reshape(2, 3), weight)


def test_more_bits_are_closer():
    weight = np.random.default_rng(0).standard_t(3, size=20000).astype(np.float16)
    errors = [inf]
    for bits in (1, 2, 3, 4, 6, 8):
        centres, indices = find_palette(weight, bits)
        errors.append(float(((weight - centres[indices]).astype(np.float64) ** 2).mean()))
        assert errors[-1] < errors[-2] / 1.5


def test_compute_units_need_a_mac(fp16):
    built, _ = fp16
    path, graph = built.files[0], entry(built)
    with pytest.raises(ValueError, match="unknown compute units 'gpu'; choose from all, "):
        CoreMLSession(path, graph, providers=["gpu"])
    if platform.system() != "Darwin":
        with pytest.raises(ValueError, match="compute units 'cpu_only' are a Mac's"):
            CoreMLSession(path, graph, providers=["cpu_only"])


def test_a_folder_without_programs_is_refused(fp16, tmp_path):
    with pytest.raises(BundleError, match=r"no \.mlpackage in it"):
        CoreMLSession(tmp_path, entry(fp16[0]))


class Framework:
    """Stands in for Core ML: takes exactly what a program declares."""

    units = None

    def __init__(self, path, compute_units):
        Framework.units = compute_units
        self.spec = ct.utils.load_spec(path)
        self.run = Interpreter(read_package(Path(path)))

    def get_spec(self):
        return self.spec

    def predict(self, given):
        assert {name: value.dtype for name, value in given.items()} == {
            "x": np.float32,
            "t": np.float32,
            "ids": np.int32,
        }
        return self.run(**given)


@pytest.mark.parametrize(
    ("providers", "units"), [(None, "CPU_AND_NE"), (["cpu_and_gpu"], "CPU_AND_GPU")]
)
def test_a_mac_runs_the_program_itself(providers, units, fp16, monkeypatch):
    built, _ = fp16
    graph = replace(entry(built), notes={"compute_units": "cpu_and_ne"})
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(ct.models, "MLModel", Framework)
    session = CoreMLSession(built.files[0], graph, providers=providers)
    assert Framework.units == ct.ComputeUnit[units]
    assert agreement(session) > LEAST["fp16"]
