"""What runs share on disk: damage is named, rows of no numbers stay out, old folders read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from edgedistill.data import latents, open_source
from edgedistill.data.latents import find_pictures
from edgedistill.data.paths import captions_of, make_paths, open_paths, spec_of
from edgedistill.data.shards import fault_of, write_shard
from edgedistill.diffusion.schedules import Trig
from edgedistill.diffusion.solvers import time_grid
from edgedistill.teachers import load_teacher
from edgedistill.teachers.families.mixture import Mixture
from edgedistill.tiny import make_tiny

OLD = Path(__file__).parents[1] / "old"
"""Folders as they were written at commit a5ebfff."""

TIMES = time_grid(Trig(), 4)


def silent(_) -> None:
    pass


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


# --- A shard ------------------------------------------------------------------------------------


def rows() -> torch.Tensor:
    return torch.arange(24.0).view(4, 6)


def test_a_shard_is_what_was_written(tmp_path):
    shard = tmp_path / "0.safetensors"
    tricky = json.dumps(['a "sha256":"b"', "\\", "\u2028"])
    write_shard(shard, {"x0": rows(), "n": torch.arange(3)}, {"captions": tricky})
    assert fault_of(shard, "x0", hashed=True) == ""
    assert torch.equal(load_file(shard)["x0"], rows())
    with safe_open(shard, "pt") as file:
        assert file.metadata()["captions"] == tricky
        assert len(file.metadata()["sha256"]) == 64
    write_shard(tmp_path / "1.safetensors", load_file(shard), {"captions": tricky})
    assert (tmp_path / "1.safetensors").read_bytes() == shard.read_bytes()


def test_a_bit_anywhere_in_a_shard_is_seen(tmp_path):
    shard = tmp_path / "0.safetensors"
    write_shard(shard, {"x0": rows()}, {"captions": "red"})
    whole = shard.read_bytes()
    for place in range(len(whole)):
        flip(shard, place)
        assert fault_of(shard, "x0", hashed=True), place
        shard.write_bytes(whole)
    for text in (whole[:-1], whole + b"0", b"", whole[:8]):
        shard.write_bytes(text)
        assert fault_of(shard, "x0", hashed=True)
    save_file({"x0": rows()}, shard)
    assert "not what its sha256 says" in fault_of(shard, "x0", hashed=True)
    assert fault_of(shard, "x0", hashed=False) == ""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_first_row_that_is_not_finite_is_named(tmp_path, bad, kind):
    shard, values = tmp_path / "0.safetensors", rows().to(kind)
    values[2, 5] = values[3, 1] = bad
    write_shard(shard, {"x0": values})
    assert fault_of(shard, "x0", hashed=True) == "x0: row 2 is not finite"
    assert fault_of(shard, "other", hashed=True)


def test_a_killed_shard_is_collected_by_the_next(tmp_path):
    program = """
import os, signal, sys, torch
from pathlib import Path
from edgedistill.data import shards
shards._sha256 = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
shards.write_shard(Path(sys.argv[1]), {"x0": torch.zeros(3)})
"""
    shard = tmp_path / "00003.safetensors"
    assert subprocess.run([sys.executable, "-c", program, str(shard)]).returncode == -9
    assert not shard.exists()
    assert len(list(tmp_path.iterdir())) == 1
    write_shard(tmp_path / "00004.safetensors", {"x0": rows()})
    assert [path.name for path in tmp_path.iterdir()] == ["00004.safetensors"]


# --- Paths --------------------------------------------------------------------------------------


@pytest.fixture
def teacher(two_modes) -> Mixture:
    return Mixture.load(str(two_modes))


def write(folder, teacher, count):
    given = {"guidance": 1.0, "solver": "heun", "steps": 8, "times": TIMES, "seed": 3}
    spec = spec_of(teacher, captions_of(teacher, None), **given)
    make_paths(folder, teacher, spec, [""], count, silent)
    return spec


def test_damage_to_paths_is_named_and_synth_makes_them_again(teacher, tmp_path, said):
    spec, shard = write(tmp_path, teacher, 20), tmp_path / "00000.safetensors"
    whole = shard.read_bytes()
    flip(shard, len(whole) - 60)
    with pytest.raises(ValueError, match=r"00000\.safetensors: damaged or changed: .* synth"):
        open_paths(tmp_path, teacher, spec, TIMES)
    assert said == []
    write(tmp_path, teacher, 20)
    assert shard.read_bytes() == whole
    assert len(said) == 1
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples": 20', '"samples": 10'))
    with pytest.raises(ValueError, match=r"manifest\.json: damaged or changed"):
        open_paths(tmp_path, teacher, spec, TIMES)
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(ValueError, match=r"manifest\.json: schema_version 3, 2 expected"):
        open_paths(tmp_path, teacher, spec, TIMES)


def swap(one: Path, other: Path) -> None:
    """Each file as the other, whole as both are."""
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def test_shards_of_paths_that_changed_places_are_named(teacher, tmp_path, said):
    spec = write(tmp_path, teacher, 2048)
    shards = [tmp_path / f"{number:05d}.safetensors" for number in range(2)]
    before = [shard.read_bytes() for shard in shards]
    swap(*shards)
    with pytest.raises(ValueError, match=r"0\.safetensors: once 00001\.safetensors, not 00000"):
        open_paths(tmp_path, teacher, spec, TIMES)
    write(tmp_path, teacher, 2048)
    assert [shard.read_bytes() for shard in shards] == before
    assert len(said) == 2


@pytest.mark.parametrize("row", [0, 13])
def test_paths_with_a_row_that_is_not_finite_stay_out(teacher, tmp_path, row):
    """However they came there."""
    spec, shard = write(tmp_path, teacher, 20), tmp_path / "00000.safetensors"
    tensors = load_file(shard)
    tensors["path"][row, 2] = float("nan")
    write_shard(shard, tensors, {"spec": spec.digest})
    with pytest.raises(ValueError, match=rf"00000\.safetensors: path: row {row} is not finite"):
        open_paths(tmp_path, teacher, spec, TIMES)


def test_paths_of_the_first_schema_read_and_grow(tmp_path, monkeypatch, capsys, said):
    shutil.copytree(OLD / "paths", tmp_path / "paths")
    monkeypatch.chdir(OLD)
    teacher, folder = Mixture.load("two.json"), tmp_path / "paths"
    stored = load_file(folder / "00000.safetensors")["path"].clone()
    given = {"guidance": 1.0, "solver": "heun", "steps": 8, "times": TIMES, "seed": 3}
    spec = spec_of(teacher, [""], **given)
    paths = open_paths(folder, teacher, spec, TIMES)
    assert torch.equal(paths.shards[0], stored)
    printed = " ".join(capsys.readouterr().err.split())
    assert printed == f"{folder}: schema 1 has no hashes: damage to its files is not seen"
    make_paths(folder, teacher, spec, [""], 5, silent)
    assert said == []
    make_paths(folder, teacher, spec, [""], 9, silent)
    grown = open_paths(folder, teacher, spec, TIMES)
    assert len(grown.shards[0]) == 9
    torch.testing.assert_close(grown.shards[0][:5], stored)


# --- Latents ------------------------------------------------------------------------------------


def test_latents_of_a_run_that_are_damaged_or_not_finite_are_refused(tiny_sd, tmp_path):
    teacher = load_teacher("stable_diffusion", str(tiny_sd))

    def opened():
        return open_source(teacher, ["a", "b"], 1.0, 2, 0, tmp_path, silent)

    opened()
    file = tmp_path / "data" / "latents.safetensors"
    whole = file.read_bytes()
    flip(file, len(whole) - 5)
    with pytest.raises(ValueError, match=r"latents\.safetensors: damaged .* remove it"):
        opened()
    file.unlink()
    opened()
    assert file.read_bytes() == whole
    save_file({"latents": torch.full((2, 4, 4, 4), float("nan"))}, file)
    with pytest.raises(ValueError, match=r"latents\.safetensors: latents: row 0 is not finite"):
        opened()


def test_a_teachers_own_latents_are_finite(tmp_path):
    folder = make_tiny("stable_diffusion", tmp_path / "tiny")
    latents_file = folder / "data.safetensors"
    tensors = load_file(latents_file)
    tensors["latents"][3, 0, 1, 1] = float("inf")
    save_file(tensors, latents_file)
    with pytest.raises(ValueError, match=r"data\.safetensors: latents: row 3 is not finite"):
        load_teacher("stable_diffusion", str(folder)).source()


# --- Pictures -----------------------------------------------------------------------------------


@pytest.fixture
def find(tmp_path, monkeypatch):
    """A function that finds the old pictures for a tiny teacher, in shards of one."""
    shutil.copytree(OLD / "pictures", tmp_path / "pictures")
    for file in (tmp_path / "pictures").iterdir():
        os.utime(file, ns=(10**18, 10**18))
    teacher = load_teacher("unet2d", str(make_tiny("unet2d", tmp_path / "unet2d")))

    def found(cache="cache"):
        place = tmp_path / cache
        return find_pictures(
            teacher, str(tmp_path / "pictures"), place, "caption", tmp_path / "run"
        )

    return found


def test_shards_of_pictures_that_changed_places_are_made_again(find, monkeypatch, said):
    monkeypatch.setattr(latents, "SHARD", 64 * 2)
    found = find()
    found.open()
    shards = sorted(found.folder.glob("*.safetensors"))
    before = [shard.read_bytes() for shard in shards]
    assert len(shards) > 1
    swap(*shards[:2])
    find().open()
    assert [shard.read_bytes() for shard in shards] == before
    assert sum("made again" in line for line in said) == 2


def test_damage_to_a_picture_cache_is_mended(find, monkeypatch, said):
    monkeypatch.setattr(latents, "SHARD", 3 * 8 * 8)
    pictures = find()
    whole = torch.cat(pictures.open().shards).clone()
    assert len(whole) == 2
    shard = pictures.folder / "00001.safetensors"
    flip(shard, shard.stat().st_size - 7)
    said.clear()
    source = find().open()
    assert said[0].startswith(f"{shard}: damaged or changed")
    assert torch.equal(torch.cat(source.shards), whole)


@pytest.mark.parametrize(
    "text",
    [
        *('{"shards": 1}', '{"shards": -1}', '{"shards": "x"}', '{"shards": 1e999}'),
        *("[", "", "[2]", '{"schema_version": 1, "shards": 1}'),
        '{"schema_version": 2, "shards": 2}',
        f'{{"schema_version": 1, "shards": {10**400}}}',
    ],
)
def test_an_index_that_is_wrong_is_named_and_no_picture_is_lost(find, monkeypatch, said, text):
    monkeypatch.setattr(latents, "SHARD", 3 * 8 * 8)
    pictures = find()
    whole = torch.cat(pictures.open().shards).clone()
    index = pictures.folder / "index.json"
    before = index.read_text()
    index.write_text(text)
    said.clear()
    assert torch.equal(torch.cat(find().open().shards), whole)
    assert said[0].startswith(f"{index}: ")
    assert said[0].endswith("; the pictures are counted again")
    assert json.loads(index.read_text())["shards"] == 2
    if '"schema_version": 1' not in text:
        assert index.read_text() == before


def test_a_picture_cache_of_the_first_schema_reads(find, tmp_path, capsys, said):
    shutil.copytree(OLD / "cache", tmp_path / "cache")
    shutil.copytree(OLD / "run", tmp_path / "run")
    source = find().open()
    assert said == []  # nothing was encoded
    stored = load_file(OLD / "cache" / "e97bbc8a49b5865b" / "00000.safetensors")["x0"]
    assert torch.equal(source.shards[0], stored)
    printed = " ".join(capsys.readouterr().err.split())
    assert "index.json: schema 1 has no hashes: damage to its shards is not seen" in printed
