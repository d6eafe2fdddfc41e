"""What lists recipes and targets: quick, without torch, and true."""

import json
import subprocess
import sys

import pytest
import yaml

from edgedistill import doctor, recipes
from edgedistill.objectives import OBJECTIVES
from edgedistill.recipes.explain import explained, meanings
from edgedistill.recipes.files import layered
from edgedistill.recipes.listing import chosen, shipped, summaries
from edgedistill.recipes.old_keys import section
from edgedistill.recipes.schema import Recipe
from edgedistill_export.backends import web_home
from edgedistill_export.targets import TARGETS, Target

HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "omegaconf", "matplotlib"}


@pytest.mark.parametrize("words", [["recipes"], ["doctor"], ["recipes", "--for", "sdxl"]])
def test_it_imports_nothing_heavy(words):
    program = f"""
import sys, time
from edgedistill import cli
sys.argv = ["edgedistill", *{words!r}]
try: cli.main()
except SystemExit as stop: code = stop.code
heavy = {HEAVY!r} & set(sys.modules)
assert not heavy, heavy
assert time.process_time() < 1.0, time.process_time()
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_summary_is_what_the_recipe_says():
    found = summaries()
    assert set(found) == set(shipped())
    for name, file in shipped().items():
        data = layered(file, ())
        summary = found[name]
        assert (summary.description, summary.family) == (
            data["description"],
            data["teacher"]["family"],
        )


def test_recipes_for_real_models_come_first():
    firsts = [name.partition("-")[0] for name in summaries()]
    emoji, mixture = firsts.index("emoji"), firsts.index("mixture")
    assert firsts.index("sd15") < emoji < mixture
    assert set(firsts[mixture:]) == {"mixture"}
    assert "mixture" not in firsts[:mixture]


@pytest.mark.parametrize(
    ("word", "first", "families"),
    [
        ("sd15", "sd15-1step", {"stable_diffusion"}),
        ("stable_diffusion", "sd15-1step", {"stable_diffusion"}),
        ("emoji", "emoji-1step", {"stable_diffusion"}),
        ("sdxl", "sdxl-1step", {"sdxl"}),
        ("mixture", "mixture-add", {"mixture"}),
    ],
)
def test_recipes_for_a_family(word, first, families):
    found = chosen(word)
    assert next(iter(found)) == first
    assert {each.family for each in found.values()} == families
    assert word != "emoji" or all(name.startswith("emoji-") for name in found)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ValueError, match=r"'sdx' \(did you mean 'sdxl'\?\)"):
        chosen("sdx")


@pytest.mark.parametrize("name", ["emoji-4step", "sdxl-4step-lora", "emoji-4step-reward"])
def test_an_explained_recipe_loads_to_the_same_and_says_what_keys_mean(name, tmp_path):
    recipe = recipes.load(name)
    text = explained(recipe)
    assert max(map(len, text.splitlines())) <= 100
    assert recipes.resolve(yaml.safe_load(text)) == recipe
    flat = " ".join(text.replace("#", " ").split())
    told = meanings(Recipe) | meanings(type(recipe.method_config()))
    for key, words in told.items():
        if key in recipe.model_dump() or key in recipe.objective:
            assert " ".join(words.split()) in flat, key
    assert "# Gradient norm above which gradients are scaled down." in text


def untold(kind, place=""):
    """Keys of a recipe that say nothing, those of methods aside."""
    told = meanings(kind)
    for key in kind.model_fields:
        part = section(kind, key)
        if part is None and key not in told:
            yield place + key
        elif part is not None and "objectives" not in part.__module__:
            yield from untold(part, f"{place}{key}.")


def test_every_key_of_a_recipe_says_what_it_means():
    assert list(untold(Recipe)) == []


def test_an_older_name_is_explained_with_the_newer_one():
    recipe = recipes.load("sdxl-4step-lora")
    older = [key for key in type(recipe.method_config()).all_old_keys() if key in recipe.objective]
    text = explained(recipe)
    assert older
    assert text.count("Newer name: ") >= len(older)


def test_showing_a_recipe_says_its_source():
    assert recipes.header("sdxl-4step-lora").count("arXiv 2405.14867") == 1


@pytest.mark.parametrize("name", sorted(OBJECTIVES)[::20])
def test_meanings_are_read_of_any_method(name):
    from edgedistill import objectives

    config = objectives.find(name).Config
    assert set(meanings(config)) <= set(config.model_fields)


def test_doctor_says_what_works_here_first(capsys):
    found = doctor.examine()
    states = [target["problem"] is None for target in found["targets"]]
    assert states == sorted(states, reverse=True)
    assert {target["name"] for target in found["targets"]} >= set(TARGETS)
    assert "methods" not in found
    lines = doctor.report_lines(found)
    assert any(line.startswith("  ort: yes (fp32, ") for line in lines)
    assert lines[-1].startswith("edgedistill doctor --all lists")
    json.dumps(found)


def test_doctor_prints_the_brackets_of_an_extra(monkeypatch, capsys):
    from edgedistill.common.tables import paragraph

    target = Target(
        name="x", module="", backend="", precisions={"fp32": "fp32"}, extra="red", requires=("no",)
    )
    monkeypatch.setitem(TARGETS, "x", target)
    for columns in ("", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        for line in doctor.report_lines(doctor.examine()):
            paragraph(line)
        shown = " ".join(capsys.readouterr().out.split())
        assert "x: no: target 'x' needs no: pip install 'edgedistill[red]'" in shown


def test_doctor_names_two_onnx_runtimes(monkeypatch):
    assert doctor.clashes(["onnxruntime"]) == doctor.clashes([]) == []
    held = {"onnxruntime": "1.20", "onnxruntime-gpu": "1.21", "torch": "2.8"}
    monkeypatch.setattr(doctor, "_version", held.get)
    found = doctor.examine()
    assert found["packages"]["onnxruntime-gpu"] == "1.21"
    (line,) = [x for x in doctor.report_lines(found) if x.startswith("warning: ")]
    assert "onnxruntime and onnxruntime-gpu overwrite" in line


def test_doctor_reads_the_driver_s_names_of_gpus(tmp_path):
    for index, name in enumerate(["NVIDIA H200", "NVIDIA L4"]):
        folder = tmp_path / f"0000:0{index}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:  1\n")
    assert doctor.gpu_names(tmp_path) == ["NVIDIA H200", "NVIDIA L4"]


@pytest.mark.parametrize("wheel", [False, True])
def test_the_web_target_says_what_is_missing_as_its_export_does(tmp_path, monkeypatch, wheel):
    home = tmp_path / "runtime" / "web"
    home.mkdir(parents=True)
    if not wheel:
        (home / "package.json").write_text("{}")
    monkeypatch.setattr(web_home, "_CHECKOUT", home)
    monkeypatch.delenv(web_home.HOME, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda program: program)
    said = TARGETS["web"].problem()
    with pytest.raises(ValueError, match="no npm package") as error:
        web_home.package_version()
    assert said == str(error.value)
    assert ("npm install onnxruntime-web," in said) == wheel
    assert ("--prefix runtime/web" in said) == (not wheel)
    package = tmp_path / "node_modules" / "onnxruntime-web" / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text('{"version": "1.0"}')
    assert TARGETS["web"].problem() is None


def test_a_run_that_is_there_already_is_told_before_the_libraries_load(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/recipe.yaml").write_text("name: mine\n")
    program = f"""
import sys
sys.argv = ["edgedistill", "distill", "recipe=emoji-4step", {f"out={tmp_path / 'mine'}"!r}]
from edgedistill import cli
try:
    cli.main()
finally:
    print({HEAVY!r} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "set()\n"
    said = "holds a run already; add --resume (resume=True in Python) or choose another out="
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "mine/recipe.yaml").read_text() == "name: mine\n"
