"""Help and completion: full sentences, and the values that there are."""

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import typer.main

import edgedistill
from edgedistill.adoption import KINDS, SOLVERS
from edgedistill.cli import app
from edgedistill.commands import complete
from edgedistill.commands.general import with_value
from edgedistill.recipes.files import shipped
from edgedistill.verbs.init import FAMILIES_HERE
from edgedistill_export.targets import TARGETS

ROOT = typer.main.get_command(app)


def commands(command=ROOT, name="edgedistill") -> Iterator[tuple[str, object]]:
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}")


COMMANDS = dict(commands())


def params(name):
    command = COMMANDS[name]
    context = command.make_context(name, [], resilient_parsing=True)
    return command.get_params(context)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_is_a_sentence(name):
    texts = {"the command": COMMANDS[name].help, **{p.name: p.help for p in params(name)}}
    wrong = {
        what: text
        for what, text in texts.items()
        if not text
        or not (text[0].isupper() or text[0].isdigit())
        or (what != "the command" and text[-1] != ".")
    }
    assert wrong == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_show_no_type_and_every_option_can_be_read(name):
    shown = subprocess_help(name)
    assert "<bool>" not in shown
    assert "list[str]" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def subprocess_help(name) -> str:
    from typer.testing import CliRunner

    words = [*name.split()[1:], "--help"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "80"}, terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.stdout


def help_of(command, option):
    return next(p.help for p in params(f"edgedistill {command}") if p.name == option)


def test_help_shows_the_values():
    assert set(TARGETS) <= set(words_of(help_of("export", "target")))
    found = words_of(help_of("export", "precision"))
    for target in TARGETS.values():
        after = found[found.index(target.name) + 1 :]
        assert after[: len(target.precisions)] == list(target.precisions), target.name
    kinds = words_of(help_of("adopt", "kind"))
    assert [word for word in kinds if word in KINDS] == list(KINDS)
    assert tuple(KINDS) == complete.KINDS
    assert [word for word in kinds if word in SOLVERS] == list(SOLVERS)
    assert tuple(SOLVERS) == complete.SOLVERS


def words_of(text):
    return text.replace(",", " ").replace(";", " ").replace(":", " ").replace(".", " ").split()


def given(**params):
    """What a completion reads of typer's context: the values typed so far."""
    return SimpleNamespace(params=params)


def test_values_are_completed():
    assert complete.target_names("o") == ["openvino", "ort"]
    assert {*TARGETS, "all"} == set(complete.target_names(""))
    assert complete.target_precisions(given(target=["executorch"]), "") == [
        "fp32",
        "int8",
        "all",
    ]
    assert "pal6" in complete.target_precisions(given(target=None), "pal")
    assert complete.target_precisions(given(target=["no-such"]), "fp8") == ["fp8"]
    assert complete.student_kinds("dmd2") == ["dmd2", "dmd2-lora"]
    assert complete.recipe_names("sd3") == ["sd3-4step"]
    assert complete.recipe_families("sd") == ["sd15", "sd3", "sdxl"]
    assert complete.gpu_names("H1") == ["H100", "H100-PCIe"]
    assert complete.teacher_families("") == list(FAMILIES_HERE)
    assert set(FAMILIES_HERE) <= set(words_of(help_of("init", "family")))


@pytest.mark.parametrize(
    ("typed", "incomplete", "found"),
    [
        ([], "rec", ["recipe="]),
        ([], "recipe=sd3", ["recipe=sd3-4step"]),
        (["recipe"], "=", list(shipped())),  # bash takes = for a word of its own
        (["recipe", "="], "sd3", ["sd3-4step"]),
        (["recipe=sd3-4step"], "recipe=sd3", []),
        ([], "train", []),
    ],
)
def test_recipe_words_are_completed(typed, incomplete, found):
    assert complete.recipe_words(given(words=typed), incomplete) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("edgedistill export --target exe", ["executorch"]),
        ("edgedistill recipes show emoji-4step-q", ["emoji-4step-qat"]),
        ("edgedistill plan recipe = sd3", ["sd3-4step"]),
    ],
)
def test_the_shell_is_answered_without_torch(line, found):
    words = line.split()
    program = (
        "import sys; sys.argv[0] = 'edgedistill'\n"
        "from edgedistill.cli import main\n"
        "try: main()\n"
        "finally: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "_EDGEDISTILL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == found, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--json"], ["--json", "-"]),
        (["--json", "-"], ["--json", "-"]),
        (["--json", "a.json"], ["--json", "a.json"]),
        (["--json", "--shard"], ["--json", "-", "--shard"]),
        (["--json", "recipe=x"], ["--json", "-", "recipe=x"]),
        (["x", "--json=a=b"], ["x", "--json=a=b"]),
        (["--", "--json"], ["--", "--json"]),
    ],
)
def test_json_without_a_value_is_standard_output(words, found):
    assert with_value(words, "--json", "-") == found


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "edgedistill", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == edgedistill.__version__
