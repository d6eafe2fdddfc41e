import math
import re
from dataclasses import replace

import numpy as np
import pytest

from edgedistill.common.decibels import EQUAL_DB, NOT_FINITE_DB, decibels
from edgedistill_export.parity import _figures, compare, psnr, shortfall
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import Figures


def test_psnr_of_a_known_error():
    reference = np.array([[4.0, 0.0], [0.0, -4.0]])
    found = reference + np.array([[0.04, 0.04], [0.4, -0.4]])
    assert psnr(reference, found) == pytest.approx([40.0, 20.0])
    assert psnr(reference, found, peak=0.4) == pytest.approx([20.0, 0.0], abs=1e-9)


def test_psnr_of_equal_rows_is_finite_and_of_broken_ones_named():
    reference = np.ones((3, 2))
    found = np.array([[1, 1], [1, math.nan], [1, math.inf]])
    assert psnr(reference, found) == [EQUAL_DB, NOT_FINITE_DB, NOT_FINITE_DB]


def test_an_exported_bundle_is_its_student(student, bundle):
    parity = compare(
        student, Pipeline.load(bundle, threads=1), student.teacher.prompts[:3], "fp32"
    ).parity
    assert parity.passed
    assert set(parity.graphs) == {"text_encoder", "denoiser", "decoder"}
    for figures in parity.graphs.values():
        assert 100 < figures.worst <= figures.mean <= EQUAL_DB
    assert parity.final.worst > 60


def test_another_step_table_shows_in_the_final_picture_only(student, bundle):
    pipe = Pipeline.load(bundle, threads=1)
    rows = tuple(replace(row, b=0.5 * row.b) for row in pipe.manifest.steps.rows)
    table = replace(pipe.manifest.steps, rows=rows)
    pipe.manifest = replace(pipe.manifest, steps=table)
    parity = compare(student, pipe, student.teacher.prompts[:3], "fp32").parity
    assert parity.graphs["denoiser"].worst > 100
    assert not parity.passed
    assert re.fullmatch(
        r"not equal to its student: final \d+\.\d dB \(floor 40\)", shortfall(parity)
    )


def test_without_prompts_there_is_nothing_to_compare(student, bundle):
    with pytest.raises(ValueError, match="at least one prompt"):
        compare(student, Pipeline.load(bundle, threads=1), [], "fp32")


def test_what_is_not_finite_is_named_so(student, bundle):
    pipe = Pipeline.load(bundle, threads=1)
    pipe = Pipeline(pipe.manifest, dict(pipe.graphs), pipe.tokenizer, finite=False)
    run = pipe.graphs["denoiser"]

    def broken(**inputs):
        return {name: value * math.nan for name, value in run(**inputs).items()}

    pipe.graphs["denoiser"] = broken
    parity = compare(student, pipe, student.teacher.prompts[:2], "int8").parity
    assert shortfall(parity) == (
        "not equal to its student: denoiser not finite (floor 0), final not finite (floor 25)"
    )
    assert parity.graphs["denoiser"].mean == NOT_FINITE_DB
    assert parity.graphs["decoder"].worst > 100


def test_the_mean_is_the_psnr_of_the_mean_squared_error():
    """Of errors 0, 0 and 0.3 it is -10 log10(0.03); a mean of dB would be above 130."""
    assert _figures([0.0, 0.0, 0.3]).mean == pytest.approx(-10 * math.log10(0.03))
    assert _figures([0.0, 0.0, 0.3]).worst == pytest.approx(-20 * math.log10(0.3))
    assert _figures([0.0, 0.0]) == Figures(mean=EQUAL_DB, worst=EQUAL_DB)
    for lost in (math.nan, math.inf):
        assert _figures([0.0, lost]) == Figures(mean=NOT_FINITE_DB, worst=NOT_FINITE_DB)


def test_decibels_in_words():
    told = [decibels(value, " dB") for value in (EQUAL_DB, 31.26, 0.0, NOT_FINITE_DB)]
    assert told == ["identical", "31.3 dB", "0.0 dB", "not finite"]
