"""Several exports in one call."""

from dataclasses import replace

import pytest
from rich.console import Console

from edgedistill_export import many, targets
from edgedistill_export.bundle import ExportSettings, check_gate, default_place, export_student
from edgedistill_export.many import export_many, memory_lines, pairs, table
from edgedistill_export.parity import TIERS, ParityError
from edgedistill_export.targets import Built, Options, Target, ort
from edgedistill_runtime import Manifest
from edgedistill_runtime.manifest import Figures

RED = ExportSettings(prompts=["red"], calibration=["red", "blue"])


def test_each_precision_for_each_target():
    assert pairs(["ort"], []) == [("ort", "fp32")]
    assert pairs(["ort"], ["int8", "fp16", "int8"]) == [("ort", "int8"), ("ort", "fp16")]
    assert {p for t, p in pairs(["all"], ["all"]) if t == "ort"} == set(
        targets.TARGETS["ort"].precisions
    )
    with pytest.raises(ValueError, match="unknown precision for target 'ort': 'int3'"):
        pairs(["ort"], ["int3"])
    with pytest.raises(ValueError, match="unknown target 'frob'"):
        pairs(["frob"], [])


def test_all_leaves_out_what_does_not_build_here(monkeypatch):
    broken = replace(targets.TARGETS["ort"], requires=("no_such_sdk",), extra="frob")
    monkeypatch.setitem(targets.TARGETS, "ort", broken)
    assert "ort" not in dict(pairs(["all"], []))
    with pytest.raises(ValueError, match=r"needs no_such_sdk: pip install 'edgedistill\[frob\]'"):
        pairs(["ort"], [])


def test_one_that_fails_stops_no_other(planar_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(TIERS, "int4", replace(TIERS["int4"], final_db=201.0))
    seen = []
    rows = export_many(
        planar_dir,
        [("ort", "int4-weights"), ("ort", "fp32")],
        None,
        RED,
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    assert [row.name for row in rows] == ["ort-int4-weights", "ort-fp32"]
    assert "(floor 201)" in rows[0].error
    assert rows[0].place is None
    assert rows[0].parity.final.mean == 200
    assert rows[1].place == default_place(planar_dir, "ort", "fp32")
    assert rows[1].size_mb > 0.1
    [(name, (peak, weights))] = rows[1].peaks.items()
    assert name == "denoiser"
    assert peak is None or peak > 50
    assert 0.1 < weights < 1
    assert len(memory_lines(rows[1])) == (peak is not None)
    assert seen[0] == (0, 4, "ort-int4-weights denoiser")
    assert seen[-1] == (4, 4, "ort-fp32 done")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table(rows))
    text = console.export_text()
    assert "identical" in text
    assert "200.0" not in text


def test_what_is_up_to_date_stays(planar_dir, tmp_path):
    def build(settings=RED, **more):
        place = export_student(
            planar_dir, "ort", "int8", tmp_path / "b", settings=settings, **more
        )
        return (place / "manifest.json").stat().st_mtime_ns

    first = build()
    assert build() == first
    assert build(rebuild=True) != first
    second = build(replace(RED, calibration=["green"]))
    assert second != first
    assert build(replace(RED, calibration=["green"])) == second
    (tmp_path / "b" / "denoiser.onnx").write_bytes(b"broken")
    assert build(replace(RED, calibration=["green"])) != second
    Manifest.read(tmp_path / "b").verify(tmp_path / "b")


class _Options(Options):
    static: bool = False
    batch: int = 1


class _Module:
    Options = _Options

    def __init__(self):
        self.jobs = []

    def build(self, job):
        self.jobs.append(job)
        file = job.folder / f"{job.name}.bin"
        file.write_bytes(b"x")
        return Built(files=[file], batch=1, notes={"units": "all"})


@pytest.fixture
def target(monkeypatch):
    module = _Module()
    made = Target(name="mine", module="m", backend="none", precisions={"fp32": "fp32"})
    monkeypatch.setitem(targets.TARGETS, "mine", made)
    monkeypatch.setattr(Target, "builder", lambda self: module)
    return made


def test_options_are_read_and_named(target):
    assert target.options({"static": "true", "batch": "4"}) == _Options(static=True, batch=4)
    with pytest.raises(
        ValueError, match=r"unknown option of target 'mine' 'statik' \(did you mean"
    ):
        target.options({"statik": "true"})
    with pytest.raises(ValueError, match=r"option batch='x': .*valid integer"):
        target.options({"batch": "x"})


def test_a_target_without_options_says_so():
    with pytest.raises(ValueError, match="target 'ort' takes no options, got 'fuse'"):
        targets.TARGETS["ort"].options({"fuse": "1"})


def test_an_sdk_that_fails_stops_no_other_bundle(planar_dir, tmp_path, monkeypatch):
    def fails(student, target, precision, *rest, **choices):
        if precision == "fp16":
            raise RuntimeError("execute() failed with error 0x10\nand more")
        return export_student(student, target, precision, tmp_path / precision)

    monkeypatch.setattr(many, "export_student", fails)
    both = [("ort", "fp16"), ("ort", "fp32")]
    failed, made = many.export_many(planar_dir, both, None, ExportSettings())
    assert failed.error == "RuntimeError: execute() failed with error 0x10"
    assert made.place == tmp_path / "fp32"
    # Alone it says all it can.
    with pytest.raises(RuntimeError, match="0x10"):
        many.export_many(planar_dir, both[:1], None, ExportSettings())
    (row,) = many.export_many(planar_dir, both[:1], None, ExportSettings(), keep_going=True)
    assert row.place is None


def test_a_refusal_of_one_target_stops_no_other(planar_dir, tmp_path, monkeypatch):
    build = ort.build

    def refuse(job):
        if job.precision == "fp16":
            raise ValueError("denoiser: takes no such network")
        return build(job)

    monkeypatch.setattr(ort, "build", refuse)
    both = [("ort", "fp16"), ("ort", "fp32")]
    rows = export_many(planar_dir, both, None, RED, rebuild=True)
    assert rows[0].error == "denoiser: takes no such network"
    assert rows[0].place is None
    assert rows[1].parity.passed
    # Alone, and where all say the same, the request is wrong.
    with pytest.raises(ValueError, match="takes no such network"):
        export_many(planar_dir, both[:1], None, RED)
    with pytest.raises(ValueError, match="no student or bundle folder"):
        export_many(tmp_path / "nowhere", both, None, RED)


def test_a_psnr_that_is_asked_for_is_that_of_the_worst_sample(planar_dir, tmp_path):
    manifest = Manifest.read(export_student(planar_dir, "ort", out=tmp_path / "b", settings=RED))
    asked = replace(RED, min_psnr=27.0)
    final = Figures(mean=35.4, worst=26.9)
    low = replace(manifest, parity=replace(manifest.parity, final=final))
    with pytest.raises(ParityError, match=r"worst sample 26\.9 dB with .* kept; 27 asked"):
        check_gate(low, asked)
    check_gate(low, RED)
    check_gate(replace(low, parity=replace(low.parity, final=replace(final, worst=27.0))), asked)


def test_what_is_under_the_floor_goes_on_to_what_was_asked(planar_dir, tmp_path, monkeypatch):
    few = ExportSettings(calibration=["red", "blue"])
    plain = export_student(planar_dir, "ort", "int8", tmp_path / "plain", settings=few)
    floor = Manifest.read(plain).parity.final.worst + 2
    monkeypatch.setitem(TIERS, "int8", replace(TIERS["int8"], final_db=floor))
    with pytest.raises(ParityError, match="not equal to its student: final"):
        export_student(planar_dir, "ort", "int8", tmp_path / "no", settings=few)
    asked = replace(few, min_psnr=floor - 3)
    place = export_student(planar_dir, "ort", "int8", tmp_path / "yes", settings=asked)
    assert Manifest.read(place).parity.final.worst >= floor


def test_an_unknown_target_is_answered_with_all_names_that_the_option_takes():
    with pytest.raises(ValueError, match=r"unknown target 'toaster'; choose from all, auto, core"):
        pairs(["toaster"], [])
