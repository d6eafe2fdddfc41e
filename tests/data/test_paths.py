"""Stored paths: they are the ODE's, a folder can be taken up again, and others' are refused."""

import dataclasses
import json
import sys

import pytest
import torch
from oracles import Gaussian
from safetensors.torch import load_file, save_file

from edgedistill import cli, recipes
from edgedistill.data.paths import Paths, captions_of, follow, make_paths, open_paths, spec_of
from edgedistill.diffusion.schedules import Discrete, Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.times import refine
from edgedistill.runs.run_dir import open_run
from edgedistill.runs.synth import synth
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.teachers.families.stable_diffusion import StableDiffusion

TIMES = time_grid(Trig(), 4)


@pytest.fixture
def teacher(two_modes) -> Mixture:
    return Mixture.load(str(two_modes))


def silent(_) -> None:
    pass


def spec_for(teacher, **other):
    given = {"guidance": 1.0, "solver": "heun", "steps": 8, "times": TIMES, "seed": 3, **other}
    return spec_of(teacher, captions_of(teacher, None), **given)


def write(folder, teacher, count, **other):
    spec = spec_for(teacher, **other)
    make_paths(folder, teacher, spec, [""], count, silent)
    return spec


def everything(folder):
    shards = [load_file(file)["path"] for file in sorted(folder.glob("*.safetensors"))]
    return torch.cat(shards)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m"])
def test_a_path_is_where_the_ode_is(solver):
    data = Gaussian([0.7, -0.4], 0.5, Trig())
    noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = follow(data.denoiser(), noise, TIMES, 400, {}, solver)
    assert path.shape == (256, 5, 2)
    torch.testing.assert_close(path[:, 0], noise)
    x0 = data.consistency(noise, TIMES[:1])
    tolerance = {"ddim": 1e-2, "heun": 2e-4, "dpm++2m": 1e-3}[solver]
    for i, t in enumerate(TIMES.tolist()):
        # Along the ODE a Gaussian keeps its quantile.
        alpha, deviation = data.deviation(torch.tensor([t]), x0)
        exact = alpha * data.mean + (x0 - data.mean) / data.scale * deviation
        torch.testing.assert_close(path[:, i], exact, atol=tolerance, rtol=0)


def test_the_grid_of_the_ode_holds_the_kept_times():
    schedule = Discrete(torch.linspace(0.99, 0.01, 20))
    times = time_grid(schedule, 4)
    fine = refine(schedule, times, 10)
    assert bool((fine.diff() < 0).all())
    assert set(times.tolist()) <= set(fine.tolist())
    assert len(fine) == 21  # every timestep and 0: finer than that there is nothing
    torch.testing.assert_close(refine(Trig(), torch.tensor([1.0, 0.0]).double(), 4), TIMES)


def test_a_folder_grows_and_keeps_what_it_has(teacher, tmp_path):
    write(tmp_path, teacher, 1030)
    first = everything(tmp_path)
    stamp = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    write(tmp_path, teacher, 2500)
    grown = everything(tmp_path)
    assert (len(first), len(grown)) == (1030, 2500)
    assert torch.equal(grown[:1030], first)
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == stamp
    write(tmp_path, teacher, 10)
    assert len(everything(tmp_path)) == 2500
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("harm", ["cut", "other", "short"])
def test_a_broken_shard_is_named_and_made_again(teacher, tmp_path, said, harm):
    write(tmp_path, teacher, 2048)
    shard, right = tmp_path / "00001.safetensors", everything(tmp_path)
    (tmp_path / "00000.safetensors").unlink()
    tensors = load_file(shard)
    tensors = {name: value.clone() for name, value in tensors.items()}
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif harm == "other":
        save_file(tensors, shard, metadata={"spec": "0"})
    else:
        digest = json.loads((tmp_path / "manifest.json").read_text())["digest"]
        short = {name: value[:5] for name, value in tensors.items()}
        save_file(short, shard, metadata={"spec": digest})
    spec = spec_for(teacher)
    with pytest.raises(ValueError, match=r"00000.safetensors: missing; `edgedistill synth`"):
        open_paths(tmp_path, teacher, spec, TIMES)
    assert said == []
    write(tmp_path, teacher, 2048)
    assert len(said) == 1
    assert said[0].startswith(f"{shard}: ")
    assert torch.equal(everything(tmp_path), right)


def test_paths_are_drawn_at_a_students_times_by_the_generator_alone(teacher, tmp_path):
    spec = write(tmp_path, teacher, 1500)
    all_of_them = everything(tmp_path)
    two = time_grid(Trig(), 2)
    paths = open_paths(tmp_path, teacher, spec, two)
    assert isinstance(paths, Paths)
    drawn, cond = paths.draw_paths(300, torch.Generator().manual_seed(1))
    again, _ = paths.draw_paths(300, torch.Generator().manual_seed(1))
    assert cond == {}
    assert torch.equal(drawn, again)
    assert drawn.shape == (300, 3, 2)
    rows = [int((all_of_them[:, 0] == row[0]).all(1).nonzero()[0]) for row in drawn]
    assert torch.equal(drawn, all_of_them[rows][:, [0, 2, 4]])
    assert len({row // 1024 for row in rows}) == 2
    x0, _ = paths.draw(300, torch.Generator().manual_seed(1))
    assert torch.equal(x0, drawn[:, -1])


def test_what_other_paths_differ_in_is_named(teacher, tmp_path):
    spec = write(tmp_path, teacher, 4)
    for change, line in (
        ({"teacher": "other"}, "made with teacher=two, not other"),
        ({"guidance": 3.0}, "made with guidance=1.0, not 3.0"),
        ({"weights": "0"}, "made with weights="),
    ):
        with pytest.raises(ValueError, match=line):
            open_paths(tmp_path, teacher, dataclasses.replace(spec, **change), TIMES)
    with pytest.raises(ValueError, match=r"kept at times 1, 0.75, 0.5, 0.25, 0, not at 0.666"):
        open_paths(tmp_path, teacher, spec, time_grid(Trig(), 3))
    with pytest.raises(ValueError, match=r"from time 1, not from 0\.5"):
        open_paths(tmp_path, teacher, spec, TIMES[2:])
    with pytest.raises(ValueError, match=r"holds paths made with seed=3, not 4; choose another"):
        write(tmp_path, teacher, 4, seed=4)


def test_a_damaged_folder_is_refused(teacher, tmp_path):
    spec = write(tmp_path, teacher, 4)
    manifest = tmp_path / "manifest.json"
    whole = json.loads(manifest.read_text())
    for change, line in (({"seed": 9}, "digest"), ({"times": 3}, "of a wrong kind")):
        manifest.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=line):
            open_paths(tmp_path, teacher, spec, TIMES)
    manifest.write_text(json.dumps({k: v for k, v in whole.items() if k != "steps"}))
    with pytest.raises(ValueError, match="missing or of a wrong kind: 'steps'"):
        open_paths(tmp_path, teacher, spec, TIMES)
    manifest.write_text(json.dumps(whole))
    (tmp_path / "captions.json").write_text('{"captions": ["a"]}')
    with pytest.raises(ValueError, match="not the captions"):
        open_paths(tmp_path, teacher, spec, TIMES)
    with pytest.raises(ValueError, match="no such file"):
        open_paths(tmp_path / "nowhere", teacher, spec, TIMES)


def test_a_teacher_that_diverges_writes_nothing(teacher, tmp_path):
    teacher.means[0] = float("nan")
    teacher.denoiser.net.means[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"00000.safetensors: .* not finite"):
        write(tmp_path, teacher, 4)
    assert not list(tmp_path.glob("0*"))


def test_prompts_go_round_and_are_encoded(tiny_sd, tmp_path):
    teacher = StableDiffusion.load(str(tiny_sd))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\n")
    captions, times = captions_of(teacher, str(prompts)), time_grid(teacher.denoiser.schedule, 2)
    folder = tmp_path / "paths"
    given = {"guidance": 2.0, "solver": "ddim", "steps": 2, "times": times, "seed": 0}
    spec = spec_of(teacher, captions, **given)
    make_paths(folder, teacher, spec, captions, 5, silent)
    stored = load_file(folder / "00000.safetensors")
    assert stored["caption"].tolist() == [0, 1, 2, 0, 1]
    path, cond = open_paths(folder, teacher, spec, times).draw_paths(
        8, torch.Generator().manual_seed(0)
    )
    denoise, wanted = teacher.guided(2.0), teacher.encode(captions)["encoder_hidden_states"]
    for row, state in zip(path, cond["encoder_hidden_states"], strict=True):
        index = int((stored["path"][:, 0] == row[0]).flatten(1).all(1).nonzero()[0])
        assert torch.equal(state, wanted[index % 3])
    again = follow(denoise, path[:, 0], times, 2, cond, "ddim")
    torch.testing.assert_close(again, path, atol=1e-5, rtol=0)


# --- Runs and the verb --------------------------------------------------------------------------

SMALL = ("train.steps=3", "train.batch_size=8", "data.samples=20", "teacher.steps=4")


def test_a_run_makes_its_paths_or_takes_a_folders(two_modes, quick_fit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, f"teacher.path={two_modes}"]
    recipe = recipes.load("mixture-kd", words)
    own = open_run(recipe, "own", False)
    folder = synth(recipe, None, silent)
    assert folder.name == "mixture-kd"
    made, stored = tmp_path / "own" / "data" / "paths", folder / "00000.safetensors"
    assert (made / stored.name).read_bytes() == stored.read_bytes()
    other = open_run(recipes.load("mixture-kd", [*words, f"data.paths={folder}"]), "b", False)
    assert not (tmp_path / "b" / "data").exists()
    nets = []
    for run in (own, other):
        run.train(lambda step, figures: None)
        nets.append(torch.cat([p.flatten() for p in run.student.parameters()]))
    assert torch.equal(*nets)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("recipe=mixture-lcm data.paths=nowhere", "method 'lcm' needs no paths"),
        ("recipe=mixture-kd data.paths=nowhere", "nowhere/manifest.json: no such file"),
        ("recipe=mixture-kd data.paths=nowhere data.prompts=p", "leave data.prompts out"),
        ("recipe=mixture-kd data.paths={paths} teacher.path=ring", "teacher=two, not ring"),
        ("recipe=mixture-kd data.paths={paths} student.steps=3", "not at 0.666667"),
    ],
)
def test_what_a_run_refuses(words, line, two_modes, quick_fit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    synth(recipes.load("mixture-kd", [*SMALL, f"teacher.path={two_modes}"]), "p", silent)
    given = [word.format(paths="p") for word in words.split()]
    arguments = ["edgedistill", "distill", f"teacher.path={two_modes}", *SMALL, *given]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_the_verb(two_modes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["recipe=mixture-kd", *SMALL, f"teacher.path={two_modes}", "out=mine"]
    monkeypatch.setattr(sys, "argv", ["edgedistill", "synth", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert capsys.readouterr().out == "paths mine\n"
    assert len(load_file("mine/00000.safetensors")["path"]) == 20


def test_no_paths_are_made_that_a_run_would_refuse(two_modes, tmp_path):
    recipe = recipes.load("mixture-lcm", [*SMALL, f"teacher.path={two_modes}"])
    with pytest.raises(ValueError, match="method 'lcm' needs no paths"):
        synth(recipe, str(tmp_path / "p"), silent)
    assert not (tmp_path / "p").exists()


def test_pictures_make_no_paths(two_modes, tmp_path):
    words = [*SMALL, f"teacher.path={two_modes}", f"data.pictures={tmp_path}"]
    with pytest.raises(ValueError, match=r"data.pictures=.*: paths begin with noise"):
        synth(recipes.load("mixture-kd", words), str(tmp_path / "p"), silent)
    assert not (tmp_path / "p").exists()
