"""`export --dry-run` builds nothing, and says what the export then does."""

import pytest

from edgedistill_export.dry_run import as_json, bits_of, plan_exports, table
from edgedistill_export.many import ExportSettings, export_many, pairs


def test_what_is_planned_is_what_is_built(planar_dir, tmp_path):
    out, wanted = tmp_path / "bundle", pairs(["ort"], ["fp32"])
    (row,) = plan_exports(planar_dir, wanted, out, ExportSettings())
    assert (row.name, row.place, row.state, row.proof) == ("ort-fp32", out, "new", "ort")
    assert list(tmp_path.iterdir()) == []
    (made,) = export_many(planar_dir, wanted, out, ExportSettings())
    assert made.name == row.name
    assert made.parity.samples == row.samples
    assert (made.parity.floor_db, made.parity.final_floor_db) == (row.graph_db, row.final_db)
    weights = sum(file.stat().st_size for file in out.glob("*.onnx*")) / 2**20
    # The plan does not know how much the time path takes, which becomes tables.
    assert 0.75 * row.size_mb < weights < 1.05 * row.size_mb
    (again,) = plan_exports(planar_dir, wanted, out, ExportSettings())
    assert again.state == "up to date"
    other = plan_exports(planar_dir, pairs(["ort"], ["int8"]), out, ExportSettings())
    assert other[0].state == "replaces the bundle there"
    assert other[0].size_mb < row.size_mb


def test_precisions_have_their_bits():
    names = ["fp32", "bf16", "int8-weights", "int4", "pal6", "pal1", "joint", "fp8"]
    assert [bits_of(name) for name in names] == [32, 16, 8, 4, 6, 1, 4, 8]


def test_a_wrong_request_is_refused_as_by_the_export(planar_dir, tmp_path):
    with pytest.raises(ValueError, match="takes no options"):
        plan_exports(planar_dir, [("ort", "fp32")], None, ExportSettings(options={"a": "b"}))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no bundle"):
        plan_exports(planar_dir, [("ort", "fp32")], tmp_path, ExportSettings())


def test_it_is_a_table_and_json(planar_dir):
    rows = plan_exports(planar_dir, pairs(["ort"], ["all"]), None, ExportSettings(min_psnr=50.0))
    assert table(rows).row_count == len(rows) == 6
    assert as_json(rows[0])["final_db"] == 50.0
    assert isinstance(as_json(rows[0])["place"], str)
