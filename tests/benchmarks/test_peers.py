"""benchmarks/peers_tables.py: subjects in turns, medians, ratios, reasons; nothing is timed."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
tables = importlib.import_module("peers_tables")

OURS, PEER, BROKEN = (tables.Subject(name=name) for name in ("ours", "peer", "broken"))
MS = tables.Column("ms", ("p50_s",))


def rounds(name, *seconds):
    """Outcomes of one subject with a p50 for each round."""
    return {name: tables.Outcome([{"p50_s": s, "picture_s": s / 2} for s in seconds])}


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_subjects_are_measured_in_turns_and_one_that_failed_is_not_tried_again():
    called = []

    def measure(subject):
        called.append(subject.name)
        if subject is BROKEN and called.count("broken") == 2:
            raise tables.Failed("ended by SIGSEGV")
        return {"p50_s": float(len(called))}

    absent = tables.Subject(name="absent", reason="no compiler")
    outcomes = tables.take_turns([OURS, BROKEN, absent], 3, measure)
    assert called == ["ours", "broken", "ours", "broken", "ours"]
    assert outcomes["ours"].values(("p50_s",)) == [1.0, 3.0, 5.0]
    assert outcomes["broken"].values(("p50_s",)) == []
    assert outcomes["broken"].reason == "ended by SIGSEGV"
    assert outcomes["absent"].reason == "no compiler"


def test_a_table_has_medians_extremes_and_ratios_of_medians():
    outcomes = rounds("ours", 0.010, 0.012, 0.050) | rounds("peer", 0.030, 0.036, 0.020)
    head, _, ours, peer = cells(tables.table(outcomes, [MS], ["ours"]))
    assert head == ["subject", "ms", "x ours"]
    assert ours == ["ours", "12 (10..50)", "1.00"]
    assert peer == ["peer", "30 (20..36)", "2.50"]


def test_a_failed_subject_is_a_row_with_its_reason():
    outcomes = rounds("peer", 0.03) | {"ours": tables.Outcome(reason="no engine")}
    head, _, peer, ours = cells(tables.table(outcomes, [MS], ["ours"]))
    assert head == ["subject", "ms"]
    assert peer == ["peer", "30 (30..30)"]
    assert ours == ["ours", "no engine"]


def test_a_wide_table_compares_with_the_fastest_of_ours_in_each_setting():
    failed = {"peer": tables.Outcome(reason="a fused bundle")}
    settings = {
        "batch 1": rounds("slow", 0.2) | rounds("fast", 0.1) | rounds("peer", 0.4),
        "batch 2": rounds("slow", 0.2) | rounds("fast", 0.3) | failed,
    }
    text = tables.wide_table(settings, ["slow", "fast"])
    _, _, slow, fast, peer, *rest = cells(text)
    assert slow == ["slow", "100 (100..100), 2.00x", "100 (100..100), 1.00x"]
    assert fast == ["fast", "50 (50..50), 1.00x", "150 (150..150), 1.50x"]
    assert peer == ["peer", "200 (200..200), 4.00x", "-"]
    assert rest[-1] == ["- peer, batch 2: a fused bundle"]


def test_the_share_of_the_peak_is_of_rates():
    outcomes = {}
    for precision, seconds in zip(tables.PRECISIONS, (2.0, 1.0), strict=False):
        outcomes |= rounds(f"unet {precision}", seconds) | rounds(f"products {precision}", 0.5)
    outcomes["unet int8"] = tables.Outcome(reason="took over 9 s")
    outcomes |= rounds("products int8", 0.1)
    work = {"unet": 800.0, "products": 400.0}
    _, _, fp32, bf16, int8 = cells(tables.share_table(outcomes, work, ["unet"]))
    assert fp32 == ["unet fp32", "2 (2..2)", "400 (400..400)", "800 (800..800)", "0.50"]
    assert bf16[-1] == "1.00"
    assert int8[:2] == ["unet int8", "took over 9 s"]


def test_a_chain_takes_the_seconds_of_its_calls():
    outcomes = rounds("unet", 2.0, 4.0, 3.0) | rounds("decoder", 1.0, 1.0, 0.5)
    outcomes["peer"] = tables.Outcome(reason="took over 9 s")
    chains = {
        "teacher": {"unet": 10, "decoder": 1},
        "student": {"unet": 1, "decoder": 2},
        "other": {"peer": 1, "decoder": 1},
    }
    _, _, teacher, student, other = cells(tables.chain_table(outcomes, chains))
    assert teacher == ["teacher", "30.5 (21..41)", "1.00"]
    assert student == ["student", "4 (4..6)", "7.62"]
    assert other == ["other", "took over 9 s", ""]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.0123"), (12.34, "12.3"), (642.4, "642")]
)
def test_numbers_have_three_digits(value, shown):
    assert tables.number(value) == shown


def test_a_figure_that_a_round_lacks_is_no_figure():
    outcome = tables.Outcome([{"stages": {"decoder": {"p50_s": 1.0}}}, {"stages": {}}])
    assert outcome.values(("stages", "decoder", "p50_s")) == []
    assert tables.spread([]) == "-"
    assert tables.ratio([1.0], []) == "-"
