"""`--target auto`: builds, proves, measures, chooses, and remembers."""

import json
import subprocess
import sys

import pytest

from edgedistill_export.auto import choosing, kept
from edgedistill_export.auto.choosing import choose
from edgedistill_export.auto.kept import find_choice
from edgedistill_export.bundle import ExportSettings
from edgedistill_runtime import Manifest, Pipeline

SETTINGS = ExportSettings()


@pytest.fixture
def folder(planar_dir, tmp_path):
    """A student dir of its own."""
    import shutil

    shutil.copytree(planar_dir, tmp_path / "run" / "student")
    return tmp_path / "run" / "student"


@pytest.fixture
def measured(monkeypatch):
    """Figures in place of processes: ort draws faster, with one thread; openvino starts faster."""
    asked = []

    def measure(subject, runs, threads, options):
        asked.append((subject.name, threads, options[-1]))
        ort, fused = subject.name.startswith("ort"), subject.name.endswith("fused")
        one = (0.010 if ort else 0.020) * (1.1 if fused else 1)
        return {
            "p50_s": one * threads * int(options[-1]) ** 0.5,
            "load_s": 0.5 if ort else 0.1,
            "first_s": 0.1,
            "peak_rss_mb": 100.0,
        }

    monkeypatch.setattr(choosing, "measure", measure)
    monkeypatch.setattr(choosing, "cores", lambda: 2)
    monkeypatch.setattr(choosing, "CANDIDATES", (("openvino", "fp32"), ("ort", "fp32")))
    return asked


@pytest.mark.parametrize(
    ("purpose", "best"), [("latency", "ort-fp32"), ("start", "openvino-fp32")]
)
def test_the_best_for_its_purpose_is_chosen_and_has_the_table(folder, measured, purpose, best):
    chosen = choose(folder, purpose, SETTINGS, "{}")
    assert chosen.place == folder.parent / "bundles" / best
    manifest = Manifest.read(chosen.place)
    manifest.verify(chosen.place)
    assert manifest.schema_version == 5
    (choice,) = manifest.choices
    assert (choice.purpose, choice.threads) == (purpose, 1)
    found = {speed.bundle: speed for speed in choice.speeds}
    fused = {"ort-fp32-fused"} if purpose == "latency" else set()
    assert found.keys() == {"ort-fp32", "openvino-fp32"} | fused
    assert (found["ort-fp32"].p50_s, found["openvino-fp32"].p50_s) == (0.010, 0.020)
    assert found["ort-fp32"].pictures_per_s == pytest.approx(8 / (0.010 * 8**0.5))
    turns = [name for name, _, _ in measured]
    assert turns[6:10] == ["openvino-fp32", "ort-fp32"] * 2
    assert find_choice(folder, purpose, "{}") == find_choice(folder.parent, purpose, "{}")
    assert find_choice(folder, purpose, "{}") == chosen.place


def test_one_graph_is_chosen_where_it_is_faster(folder, measured, monkeypatch):
    plain = choosing.measure

    def measure(subject, *arguments):
        figures = plain(subject, *arguments)
        return {**figures, "p50_s": figures["p50_s"] * (0.5 if "fused" in subject.name else 1)}

    monkeypatch.setattr(choosing, "measure", measure)
    chosen = choose(folder, "latency", SETTINGS, "{}")
    assert chosen.place.name == "ort-fp32-fused"
    assert [row.name for row in chosen.rows] == ["openvino-fp32", "ort-fp32", "ort-fp32-fused"]
    assert find_choice(folder, "latency", "{}") == chosen.place


def test_what_is_chosen_is_the_least_of_the_table(folder, measured, monkeypatch):
    """Other work may slow a measurement: ort is the best at first, and the worst at last."""
    plain = choosing.measure
    monkeypatch.setattr(choosing, "FINALISTS", 1)  # so that openvino is not measured again

    def measure(subject, *arguments):
        slow = "ort" in subject.name and any("fused" in name for name, _, _ in measured)
        figures = plain(subject, *arguments)
        return {
            **figures,
            "p50_s": figures["p50_s"] * (5 if slow or "fused" in subject.name else 1),
        }

    monkeypatch.setattr(choosing, "measure", measure)
    chosen = choose(folder, "latency", SETTINGS, "{}")
    assert chosen.place.name == "openvino-fp32"
    assert min(chosen.choice.speeds, key=lambda speed: speed.p50_s).bundle == "openvino-fp32"


def test_a_second_purpose_keeps_the_first_ones_table(folder, measured):
    for purpose in ("latency", "size", "latency"):
        place = choose(folder, purpose, SETTINGS, "{}").place
    kinds = {choice.purpose for choice in Manifest.read(place).choices}
    assert kinds >= {"latency"}
    assert len(kinds) == len(Manifest.read(place).choices)


@pytest.mark.parametrize("change", ["student", "bundle", "settings", "version", "file"])
def test_a_choice_is_forgotten_when_what_it_depends_on_changes(
    folder, measured, monkeypatch, change
):
    place = choose(folder, "latency", SETTINGS, "{}").place
    file = place.parent / kept.FILE
    assert find_choice(folder, "latency", "{}") == place
    if change == "student":
        (folder / "student.json").write_text((folder / "student.json").read_text() + "\n")
    if change == "bundle":
        (place / "manifest.json").unlink()
    if change == "version":
        monkeypatch.setattr(kept, "version", lambda name: "99")
    if change == "file":
        file.write_text(file.read_text()[:-20])
    asked = json.dumps({"strict": "False"}) if change == "settings" else "{}"
    assert find_choice(folder, "latency", asked) is None


def test_the_chosen_number_of_threads_is_used_on_that_device_only(folder, measured, monkeypatch):
    from edgedistill_runtime import pipeline

    place = choose(folder, "latency", SETTINGS, "{}").place
    asked = []

    def opened(*arguments, threads, providers):
        asked.append(threads)

    monkeypatch.setattr(pipeline, "open_graph", opened)
    for here in (Manifest.read(place).choices[0].device, "another"):
        monkeypatch.setattr(pipeline, "device", lambda here=here: here)
        Pipeline.load(place)
    Pipeline.load(place, threads=7)
    assert asked == [1, None, 7]


def test_a_wrong_purpose_is_named_before_any_work(folder):
    with pytest.raises(ValueError, match=r"unknown purpose 'speed'; choose from latency, memory"):
        choose(folder, "speed", SETTINGS, "{}")
    assert not (folder.parent / "bundles").exists()


def test_the_command_answers_the_second_time_without_torch(folder, measured):
    place = choose(folder, "latency", SETTINGS, "{}").place
    program = f"""
import sys
from edgedistill import cli
sys.argv = ["edgedistill", "export", {str(folder)!r}, "--target", "auto", "--json", "-"]
try: cli.main()
except SystemExit as stop: code = stop.code
assert not {{"torch", "diffusers", "onnx"}} & set(sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"] == str(place)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "fp32"], "chooses target and precision itself"),
        (["--target", "ort"], "chooses target and precision itself"),
        (["--out", "x"], "leave out --out"),
        (["--dry-run"], "name targets for --dry-run"),
        (["--layout", "optimum"], "--layout optimum: name the target that it is for"),
    ],
)
def test_what_it_chooses_itself_cannot_be_asked_for(folder, monkeypatch, capsys, words, said):
    from edgedistill import cli

    monkeypatch.setattr(
        sys, "argv", ["edgedistill", "export", str(folder), "--target", "auto", *words]
    )
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_one_that_was_really_measured(folder, monkeypatch):
    monkeypatch.setattr(choosing, "CANDIDATES", (("ort", "fp32"),))
    monkeypatch.setattr(choosing, "ROUNDS", 1)
    monkeypatch.setattr(choosing, "cores", lambda: 1)
    chosen = choose(folder, "latency", SETTINGS, "{}")
    speed = next(each for each in chosen.choice.speeds if each.bundle == "ort-fp32")
    assert 0 < speed.p50_s < speed.start_s
    assert speed.pictures_per_s > 1
    assert speed.worst_db > 40
