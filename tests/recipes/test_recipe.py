"""Recipes: what is written is what runs, and a mistake is one line that names the way out."""

import shlex
from pathlib import Path

import pytest
import yaml

from edgedistill import recipes
from edgedistill.objectives import OBJECTIVES


def write(folder: Path, name: str, text: str) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


MINIMAL = """
teacher: {family: mixture, path: ring}
objective: {name: lcm}
train: {steps: 10, batch_size: 4}
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=5", r"unknown key train\.step \(did you mean train\.steps\?\)"),
        ("trian.steps=5", r"unknown key trian \(did you mean train\?\)"),
        ("train.optim.lrr=1", r"unknown key train\.optim\.lrr \(did you mean train\.optim\.lr\?"),
        ("objective.solver_step=9", r"objective\.solver_step \(did you mean objective\.solver_st"),
        ("evaluate.sample=9", r"unknown key evaluate\.sample \(did you mean evaluate\.samples\?"),
        ("train.zzz=1", r"unknown key train\.zzz; known here: accumulate, .*steps"),
    ],
)
def test_unknown_key_names_the_nearest(override, message):
    with pytest.raises(ValueError, match=message):
        recipes.load("mixture-lcm", [override])


def test_an_unknown_recipe_names_near_ones_and_not_all_hundred():
    with pytest.raises(ValueError, match="unknown recipe 'emoji-4stp'") as raised:
        recipes.load("emoji-4stp")
    line = str(raised.value)
    assert "(did you mean 'emoji-4step', " in line
    assert line.endswith("; `edgedistill recipes` lists all")
    assert len(line) < 160


def test_unknown_key_of_a_method_names_the_nearest():
    with pytest.raises(ValueError, match=r"objective\.turn \(did you mean objective\.turns\?\)"):
        recipes.load("mixture-dmd2", ["objective.turn=4"])
    with pytest.raises(
        ValueError, match=r"objective\.fake_score\.lrr \(did you mean objective\.f"
    ):
        recipes.load("mixture-dmd2", ["objective.fake_score.lrr=4"])


TEXTS = ["[red]x[/red].txt", "a: b: c", "{x", "'a", "it's: [", '"', "@x", "`x`", "%y", "[a]$b\\"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_yaml_cannot_read_is_told_with_its_quotes(text):
    with pytest.raises(ValueError, match="is not YAML; quote a value that is text: ") as refused:
        recipes.load("mixture-lcm", [f"data.prompts={text}"])
    (typed,) = shlex.split(str(refused.value).partition("is text: ")[2])
    assert recipes.load("mixture-lcm", [typed]).data.prompts == text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.name=lmc"], r"unknown method 'lmc' \(did you mean 'lcm'\?\); choose from"),
        (["objective=lcm"], "objective"),
        (["teacher.solver=dimm"], r"unknown solver 'dimm' \(did you mean 'ddim'\?\); choose from"),
        (["student.sampler=noise"], "unknown sampler 'noise'.*choose from ddim, renoise"),
        (["student.spacing=x"], "unknown spacing 'x'; choose from"),
        (["train.steps"], r"override 'train\.steps' is not key=value"),
        (["=5"], "override '=5' is not key=value"),
        (["train.steps=0"], r"train\.steps=0: "),
        (["train.steps=many"], r"train\.steps='many': "),
        (["train.lr_schedule=cosin"], r"train\.lr_schedule='cosin': .*'cosine'"),
        (["objective.ema=1"], r"objective\.ema=1: "),
        (["objective.huber_c=0"], r"objective\.huber_c=0: "),
        (["train=3"], "train"),
        (["compress.remove=5"], r"compress\.remove=5: a list expected, compress\.remove=\[\.\.\."),
        (["compress.elastic.small=2"], "elastic: small=2: a share above 0 and below 1 expected"),
        (["teacher.path=[1, 2"], "override"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        recipes.load("mixture-lcm", overrides)
    assert len(str(caught.value).splitlines()) == 1


NO_STRIDE = (
    r"^compress\.attention_stages=2: attention_stride=1 means no stride .*; set "
    r"compress\.attention_stride to a number from 2 to 8, or leave attention_stages out$"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compress.attention_stride=9"], r"attention_stride=9: .* less than or equal to 8"),
        (["compress.attention_stages=2"], NO_STRIDE),
        (["compress.attention_stages=2", "compress.attention_stride=1"], NO_STRIDE),
        (
            ["compress.attention_stride=2", "teacher.family=flux", "teacher.path=x"],
            "attention_stride=2: self-attention of flux networks can have no stride; that of stab",
        ),
        (
            ["compress.attention_stride=2", "teacher.family=unet2d", "teacher.path=x"],
            "of unet2d networks can have no stride",
        ),
        (
            ["compress.attention_stride=2", "train.roles=adapters"],
            "attention_stride=2: a LoRA of the teacher cannot say it; choose train.roles=copies",
        ),
    ],
)
def test_a_stride_of_attention_that_cannot_be_is_refused_when_the_recipe_is_read(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        recipes.load("emoji-4step", words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixture-lmc", "no/such.yaml"])
def test_an_unknown_recipe_is_named(name):
    with pytest.raises(ValueError, match=name):
        recipes.load(name)
    with pytest.raises(ValueError, match="did you mean 'mixture-lcm'"):
        recipes.load("mixture-lmc")


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_yaml_exponents_are_numbers(tmp_path, text):
    """PyYAML alone reads 1e-4 as a string."""
    path = write(
        tmp_path, "r", MINIMAL.replace("batch_size", f"optim: {{lr: {text}}}, batch_size")
    )
    assert recipes.load(path).train.optim.lr == 1e-4
    assert recipes.load("mixture-lcm", [f"train.optim.lr={text}"]).train.optim.lr == 1e-4


def test_base_is_merged_one_level_deep(tmp_path):
    child = write(tmp_path, "child", "base: mixture-lcm\ntrain: {steps: 7}\n")
    recipe, base = recipes.load(child), recipes.load("mixture-lcm")
    assert recipe.name == "child"
    assert recipe.train.steps == 7
    assert recipe.train.batch_size == base.train.batch_size
    assert recipe.objective == base.objective
    grandchild = write(tmp_path, "grandchild", "base: child.yaml\n")
    with pytest.raises(ValueError, match=r"base 'child\.yaml' has a base itself"):
        recipes.load(grandchild)


def test_base_with_another_method_drops_the_method_of_the_base(tmp_path):
    child = write(tmp_path, "child", "base: mixture-lcm\nobjective: {name: dmd2, turns: 2}\n")
    recipe = recipes.load(child)
    assert recipe.objective["name"] == "dmd2"
    assert recipe.objective["turns"] == 2
    assert "solver_steps" not in recipe.objective


def test_another_method_on_the_command_line_begins_with_its_own_defaults():
    recipe = recipes.load("mixture-dmd2", ["objective.name=lcm", "objective.solver_steps=7"])
    config = recipe.method().Config(solver_steps=7)
    assert recipe.objective == {"name": "lcm", **config.model_dump(mode="json")}
    same = recipes.load("mixture-dmd2", ["objective.name=dmd2", "objective.turns=3"])
    assert same.objective["max_time"] == 0.98


def test_an_unknown_base_is_named_with_the_nearest(tmp_path):
    child = write(tmp_path, "child", "base: mixture-lmc\n")
    with pytest.raises(ValueError, match=r"'mixture-lmc'.*did you mean 'mixture-lcm'"):
        recipes.load(child)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks teacher"),
        ("- 1\n- 2\n", "mapping of sections"),
        ("train: [", "broken"),
        ("base: mixture-lcm\nobjective: lcm\n", "objective"),
        ("train: {steps: 3, batch_size: 1}\nobjective: {name: lcm}\n", "lacks teacher"),
        (MINIMAL.replace("name: lcm", "huber_c: 1"), "choose from .*dmd2, .*lcm"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, text, message):
    path = write(tmp_path, "broken", text)
    with pytest.raises(ValueError, match=message) as caught:
        recipes.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"description: caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin\.yaml"):
        recipes.load(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("name", sorted(recipes.shipped()))
def test_every_shipped_recipe_resolves_and_survives_its_own_dump(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.objective["name"] in OBJECTIVES
    again = recipes.resolve(yaml.safe_load(recipes.dump(recipe)))
    assert again == recipe
    assert recipes.dump(again) == recipes.dump(recipe)


def test_a_dump_names_every_key_of_the_method():
    dumped = yaml.safe_load(recipes.dump(recipes.load("mixture-dmd2", ["objective.turns=3"])))
    assert dumped["objective"]["turns"] == 3
    assert dumped["objective"]["max_time"] == 0.98
    assert dumped["train"]["optim"]["betas"] == [0.0, 0.99]


def test_a_recipe_is_frozen():
    recipe = recipes.load("mixture-lcm")
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.steps = 3


def test_reading_recipes_waits_for_no_diffusers():
    import subprocess
    import sys

    code = "import sys, edgedistill.recipes.schema; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_file_of_one_s_own_lacks_is_told_with_its_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {steps: 2}\n")
    with pytest.raises(ValueError, match=r"^recipe 'mine' lacks teacher$"):
        recipes.load(str(tmp_path / "mine.yaml"))
    (tmp_path / "over.yaml").write_text("base: nope\n")
    with pytest.raises(ValueError, match=r"over\.yaml: base: unknown recipe 'nope'"):
        recipes.load(str(tmp_path / "over.yaml"))


def test_a_word_in_place_of_a_section_says_how_its_keys_are_set():
    for key in ("objective", "train"):
        with pytest.raises(ValueError, match=rf"{key} is a section; set its keys, {key}\.KEY="):
            recipes.load("mixture-lcm", [f"{key}=3"])
