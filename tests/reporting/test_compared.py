"""Runs of a folder compared: which are beaten by none, and which cannot be compared."""

import json
from dataclasses import replace

import pytest
import typer.testing

import edgedistill as ed
from edgedistill.cli import app
from edgedistill.reporting import compared
from edgedistill.reporting.compared import Entry, Scope, front, groups_of, is_folder_of_runs


def entry(name, seconds, quality):
    return Entry("", name, "", 4, quality, None, seconds, "")


def test_the_front_is_what_no_other_beats_in_both():
    """Against the definition: none is as fast and as good, and better in one."""
    entries = [entry(f"{s}-{q}", s, q) for s in (1.0, 2.0, 3.0) for q in (3.0, 1.0, 2.0)]
    entries += [entry("slow and best", 9.0, 0.5), entry("untimed", None, 0.1)]
    timed = [e for e in entries if e.seconds]

    def beaten(one):
        return any(
            o.seconds <= one.seconds
            and o.quality <= one.quality
            and (o.seconds, o.quality) != (one.seconds, one.quality)
            for o in timed
        )

    assert front(entries) == [e for e in timed if not beaten(e)]
    assert [e.subject for e in front(entries)] == ["1.0-1.0", "slow and best"]


@pytest.fixture
def runs(tmp_path):
    """Two runs with figures of both kinds, one not evaluated, one of fewer samples."""

    def make(name, student, samples=100, timed=True):
        run = tmp_path / name
        (run / "student").mkdir(parents=True)
        info = {"method": "lcm", "teacher": {"name": "emoji"}}
        (run / "student" / "student.json").write_text(json.dumps(info))
        if student is None:
            return
        row = {"calls": 4, "fd": student, "samples": samples, "spread": {"fd_interval": 0.25}}
        teacher = {"calls": 50, "fd": 0.9, "samples": samples}
        figures = {"about": {}, "teacher": teacher, "student": row}
        (run / "eval.json").write_text(json.dumps(figures))
        times = {"student": {"p50_s": 0.05}, "teacher": {"p50_s": 0.4}} if timed else {}
        (run / "bench.json").write_text(json.dumps({**times, "machine": {"processor": "Z80"}}))

    make("good", 0.8)
    make("other", 1.5, timed=False)
    make("fewer", 0.7, samples=10)
    make("new", None)
    (tmp_path / "latest").symlink_to("good")
    return tmp_path


def test_only_equal_numbers_of_samples_are_compared(runs):
    groups, without = groups_of(runs)
    names = {group.samples: {e.name for e in entries} for group, entries in groups.items()}
    assert names == {
        100: {"teacher", "good student", "other student"},
        10: {"teacher", "fewer student"},
    }
    assert without == ["new"]
    (teacher,) = (e for e in groups[next(g for g in groups if g.samples == 100)] if not e.run)
    assert teacher.seconds == 0.4  # of the run that timed it


def test_the_command_prints_the_tables_and_writes_a_page(runs):
    done = typer.testing.CliRunner().invoke(app, ["report", str(runs)])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == str(runs / "compared.html")
    (best,) = (line.split() for line in lines if line.startswith("*") and "0.8" in line)
    assert best == ["*", "good", "student", "4", "50", "0.8", "\u00b1", "0.25"]
    page = (runs / "compared.html").read_text(encoding="utf-8")
    assert "On the front, the fastest first: good student." in page
    assert "new: run edgedistill evaluate" in page
    assert "Times of Z80." in page
    assert page.count("<img") == page.count('<div class="chart"><img class="wide"') == 2
    assert ".wide { display: block; max-width: max(100%, 56rem);" in page  # readable, scrolls
    assert page.count('<div class="scroll">') == page.count("<table>")
    assert "* on the Pareto front: no other row of its table is at least as fast" in done.stdout
    assert "without figures: new; run edgedistill evaluate" in done.stdout
    assert ed.compare(runs).notes == lines[-3:-1]


def test_milliseconds_are_plain_digits(runs):
    file = runs / "good" / "bench.json"
    file.write_text(file.read_text().replace("0.05", "2.0196"))
    done = typer.testing.CliRunner().invoke(app, ["report", str(runs)])
    assert " 2020 " in done.stdout
    assert "e+03" not in done.stdout + (runs / "compared.html").read_text()


def test_no_point_is_cut_by_the_edge_of_its_chart(monkeypatch):
    """Figures that are nearly equal lie at the top."""
    drawn = []
    monkeypatch.setattr(compared, "figure_uri", lambda figure: drawn.append(figure) or "")
    several = [replace(entry("a", 1.0, 5.0), interval=0.5), entry("b", 2.0, 5.01)]
    assert compared.chart(Scope("t", "fd", 2), several) == ""
    low, high = drawn[0].axes[0].get_ylim()
    assert (low, high) == (0, pytest.approx(1.15 * 5.5))


def test_a_run_is_no_folder_of_runs(runs, tmp_path):
    assert is_folder_of_runs(runs)
    assert not is_folder_of_runs(runs / "good")
    assert not is_folder_of_runs(runs / "good" / "student")
    assert not is_folder_of_runs(tmp_path / "nowhere")


def test_runs_without_figures_are_a_line(runs):
    for name in ("good", "other", "fewer"):
        (runs / name / "eval.json").unlink()
    with pytest.raises(ValueError, match="no run has figures; run edgedistill evaluate"):
        ed.compare(runs)
    assert not (runs / "compared.html").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("student/student.json", "{}"),
        ("student/student.json", '{"method": "lcm", "teacher": 3}'),
        ("eval.json", '{"student": {"calls": 4, "fd": 1.0}}'),
        ("eval.json", '{"student": {"calls": 4, "fd": [1], "samples": 2}}'),
        ("eval.json", "[]"),
        ("eval.json", "{"),
        ("bench.json", '{"machine": 3}'),
    ],
)
def test_a_file_of_another_form_names_its_run(runs, file, text):
    (runs / "good" / file).write_text(text)
    with pytest.raises(ValueError, match="good"):
        ed.compare(runs)
    assert not (runs / "compared.html").exists()
