"""The sensitivity scan, and what a budget makes of it."""

import math

import numpy as np
import pytest
import torch

from edgedistill.networks.fake_quant import SCHEMES, FakeQuantize
from edgedistill_export.quantize.budget import Budget, scan_file, scheme_of
from edgedistill_export.quantize.scan import Cost, Scan, keep_for_psnr, keep_for_size, scan
from edgedistill_export.walk import walk
from edgedistill_runtime.noise import noise
from edgedistill_runtime.pipeline import to_uint8


@pytest.fixture(scope="module")
def found(student):
    return scan(student, "int8", ["red", "blue"])


def test_every_layer_in_use_is_measured_the_costliest_first(student, found):
    names = {(cost.graph, cost.layer) for cost in found.layers}
    assert len(names) == len(found.layers)
    assert ("denoiser", "unet.conv_in") in names
    assert ("decoder", "vae.decoder.conv_out") in names
    assert any(graph == "text_encoder" for graph, _ in names)
    assert not any("vae.encoder" in layer for _, layer in names), "an encoder is never called"
    costs = [cost.mse for cost in found.layers]
    assert costs == sorted(costs, reverse=True)
    assert 0 < costs[0] < 1
    assert found.prompts == 2
    assert found.student == student.sha256


def test_a_cost_is_the_error_of_that_layer_alone(student, found):
    cost = found.layers[0]
    layer = student.teacher.graphs()[cost.graph].module.get_submodule(cost.layer)
    ids = student.teacher.tokenize(["red", "blue"])
    drawn = noise(2, 0, 2, student.table.shapes(student.teacher.sample_shape))
    pictures = []
    for modules in ([], [layer]):
        with FakeQuantize(modules, SCHEMES["int8"]):
            way = walk(student, ids, [torch.from_numpy(n.copy()) for n in drawn])
        pictures.append(to_uint8(way.images.numpy()) / 255.0)
    truth, low = pictures
    assert cost.mse == pytest.approx(np.mean(((low - truth) / truth.max()) ** 2), rel=1e-4)
    assert cost.weights == layer.weight.numel()


def test_a_planar_student_is_scanned_too(planar_dir):
    from edgedistill.students.folder import load_student

    result = scan(load_student(planar_dir), "int4-weights", ["", ""])
    assert {cost.graph for cost in result.layers} == {"denoiser"}
    assert {"embed", "head"} <= {cost.layer for cost in result.layers}


def test_it_survives_its_file(found, tmp_path):
    found.write(tmp_path / "scan.json")
    assert Scan.read(tmp_path / "scan.json") == found
    (tmp_path / "scan.json").write_text('{"schema_version": 2, "layers": [{}]}')
    with pytest.raises(ValueError, match=r"scan\.json: no sensitivity scan"):
        Scan.read(tmp_path / "scan.json")


def test_without_prompts_there_is_nothing_to_scan(student):
    with pytest.raises(ValueError, match="at least one prompt"):
        scan(student, "int8", [])


def made(*costs: tuple[str, float, int], together: float | None = None, other: int = 0) -> Scan:
    layers = tuple(Cost(graph=n[0], layer=n, weights=w, bits=8, mse=m) for n, m, w in costs)
    total = sum(cost.mse for cost in layers)
    return Scan(
        student="",
        scheme="int8",
        prompts=1,
        together=total if together is None else together,
        layers=layers,
        other=other,
    )


THREE = made(("a1", 1e-2, 1000), ("b1", 1e-3, 1000), ("a2", 1e-4, 1000))


@pytest.mark.parametrize(
    ("decibel", "kept"),
    [
        (19.0, {}),
        (25.0, {"a": {"a1"}}),
        (35.0, {"a": {"a1"}, "b": {"b1"}}),
        (60.0, {"a": {"a1", "a2"}, "b": {"b1"}}),
    ],
)
def test_the_costliest_stay_until_the_rest_fits(decibel, kept):
    assert keep_for_psnr(THREE, decibel) == kept


def test_costs_are_scaled_to_what_the_whole_measures():
    twice = made(("a1", 1e-2, 1), ("b1", 1e-3, 1), together=2.2e-2)
    half = made(("a1", 1e-2, 1), ("b1", 1e-3, 1), together=1.1e-3)
    level = -10 * math.log10(1.9e-3)
    assert keep_for_psnr(twice, level) == {"a": {"a1"}, "b": {"b1"}}
    assert keep_for_psnr(half, level) == {}


def test_a_size_keeps_the_most_error_a_byte():
    cheap = made(("a1", 1e-2, 100_000), ("b1", 9e-3, 1000), ("a2", 1e-5, 1000), other=1000)
    least = (4 * 1000 + 102_000) / 2**20
    assert keep_for_size(cheap, least + 1e-9) == {}
    assert keep_for_size(cheap, least + 3000 / 2**20) == {"b": {"b1"}}
    assert keep_for_size(cheap, 10) == {"a": {"a1", "a2"}, "b": {"b1"}}


def test_impossible_budgets_are_named():
    with pytest.raises(ValueError, match=r"0\.001 MiB is too small: all layers quantized take"):
        keep_for_size(THREE, 0.001)
    with pytest.raises(ValueError, match="is no budget"):
        keep_for_psnr(THREE, 0)


def test_precisions_have_schemes():
    assert scheme_of("int8-hybrid") == "int8"
    with pytest.raises(
        ValueError, match=r"not fp16: --precision int8, int8-weights, int4-weights"
    ):
        scheme_of("fp16")


def test_a_budget_corrects_itself_by_what_was_reached(student, found):
    file = scan_file(student, "int8")
    found.write(file)
    try:
        aim = -10 * math.log10(found.together) + 3
        budget = Budget(student, "int8", aim, None)
        sizes = []
        for keep in budget.proposals({"denoiser": frozenset({"mine"})}):
            assert "mine" in keep["denoiser"]
            sizes.append(sum(map(len, keep.values())))
            budget.reached = aim - 2 if len(sizes) < 3 else aim
        assert len(sizes) == 3
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
    finally:
        file.unlink()


def test_one_budget_at_a_time(student):
    with pytest.raises(ValueError, match="not both"):
        Budget(student, "int8", 30.0, 10.0)
