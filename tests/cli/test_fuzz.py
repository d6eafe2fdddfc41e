"""Damaged files of every format are read, or refused in one short line; nothing else happens.

`FUZZ=5000 python -m pytest tests/cli/test_fuzz.py` tries so many of each in place of a few, and
`FUZZ_SEED=1` others.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from fuzzing import (
    damaged_bytes,
    damaged_json,
    damaged_safetensors,
    damaged_yaml,
    odd_overrides,
    outcome,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from senseless import GOLDEN, rehash

from edgedistill import recipes
from edgedistill.common.reading import check_yaml, parse_json
from edgedistill_runtime import Pipeline
from edgedistill_runtime.manifest import sha256
from edgedistill_runtime.routes import Routes

EXAMPLES = int(os.environ.get("FUZZ", "40"))

SEED = os.environ.get("FUZZ_SEED", "")
"""Another number tries other inputs."""

bounds = settings(
    max_examples=EXAMPLES,
    derandomize=not SEED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def fuzz(run):
    """Run a test on inputs that are the same each time."""
    return bounds(seed(int(SEED))(run) if SEED else run)


LARGE = 2 * 2**30
"""Bytes by which no input may make a process grow."""


@pytest.fixture(autouse=True)
def _bounded():
    """No input may take more than 2 GiB."""
    resource = pytest.importorskip("resource")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * os.sysconf("SC_PAGE_SIZE") + LARGE
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def drawn(folder):
    """What a bundle draws is finite, or it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = Pipeline.load(folder, threads=1)
        made = pipe("red", seed=1) if pipe.tokenizer else pipe.samples(1, seed=1)
    assert np.isfinite(made.samples).all()


@pytest.mark.parametrize("name", ["planar", "picture"])
@pytest.mark.parametrize("schema", [2, 3, 4])
def test_manifests(name, schema, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / "bundle"))
    document = json.loads((folder / "manifest.json").read_text()) | {"schema_version": schema}
    if schema == 4:
        document["steps"]["rows"][-1]["past"] = [[0.5, -0.25]]

    @fuzz
    @given(text=damaged_json(document))
    def run(text):
        (folder / "manifest.json").write_bytes(text)
        rehash(folder)
        outcome(lambda: drawn(folder), longest=1000)

    run()


@pytest.mark.parametrize("file", ["denoiser.onnx", "text_encoder.onnx", "tokenizer.json"])
def test_graphs_and_tokenizers_whose_hash_is_right(file, tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "picture", tmp_path / "bundle"))
    data = (folder / file).read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    key = file.partition(".")[0]
    part = manifest["graphs"].get(key) or manifest[key]
    damaged = damaged_bytes(data)
    if file.endswith(".json"):
        damaged |= damaged_json(json.loads(data))

    @fuzz
    @given(damage=damaged)
    def run(damage):
        (folder / file).write_bytes(damage)
        part["sha256"][file] = sha256(folder / file)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        outcome(lambda: drawn(folder), longest=1000)

    run()


@pytest.mark.parametrize(
    "document",
    [
        {"schema_version": 1, "kind": "label", "labels": [[0, 1], [2, 3]]},
        {"schema_version": 1, "kind": "prompt", "centroids": [[0.1, 1.0], [0.3, 2.0]]},
        Routes("label", ((0.0, 1.0), (2.0, 3.0))).to_json(),
    ],
)
def test_students_json(document, tmp_path):
    def read():
        routes = Routes.read(tmp_path)
        if routes.kind == "prompt":
            routes.of(np.zeros((2, 3, len(routes.parts[0])), np.float32))

    @fuzz
    @given(text=damaged_json(document))
    def run(text):
        (tmp_path / "students.json").write_bytes(text)
        outcome(read)

    run()


RECIPES = ["mixture-lcm", "mixture-dmd2", "emoji-4step-small", "emoji-4step-reward", "sdxl-1step"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name, tmp_path):
    document = yaml.safe_load(recipes.find(name).read_text())
    file = tmp_path / "recipe.yaml"

    @fuzz
    @given(text=damaged_yaml(document))
    def run(text):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        outcome(lambda: recipes.dump(recipes.load(str(file))))

    run()


@pytest.mark.parametrize("name", RECIPES)
def test_overrides(name):
    full = recipes.load(name).model_dump(mode="json")
    keys = [
        f"{a}.{b}" for a, section in full.items() if isinstance(section, dict) for b in section
    ]

    @fuzz
    @given(words=odd_overrides([*full, *keys]))
    def run(words):
        outcome(lambda: recipes.dump(recipes.load(name, words)))

    run()


@fuzz
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_json_and_yaml_of_any_bytes(data):
    outcome(lambda: parse_json(data, strict=True))
    outcome(lambda: _yaml(data))


def _yaml(data):
    try:
        check_yaml(data.decode("utf-8", "ignore"))
    except yaml.YAMLError:
        return


@pytest.fixture(scope="module")
def student(two_modes, tmp_path_factory):
    """A planar student as the first schema had them, which has no hashes."""
    from tiny import save

    from edgedistill.teachers.families.mixture import Mixture

    teacher = Mixture.load(str(two_modes))
    made = teacher.spawn()
    folder = save(
        tmp_path_factory.mktemp("fuzz") / "student", teacher, made.net, made.prediction, steps=2
    )
    info = json.loads((folder / "student.json").read_text())
    info |= {"schema_version": 1}
    info.pop("sha256", None)
    (folder / "student.json").write_text(json.dumps(info))
    return folder


def opened(folder):
    import torch

    from edgedistill.students.folder import load_student

    student = load_student(folder)
    shape = (2, *student.teacher.sample_shape)
    noise = student.table.draw(shape, torch.Generator().manual_seed(0))
    student.sample({}, noise)


def test_student_json(student, tmp_path):
    folder = Path(shutil.copytree(student, tmp_path / "student"))
    document = json.loads((folder / "student.json").read_text())

    @fuzz
    @given(text=damaged_json(document))
    def run(text):
        (folder / "student.json").write_bytes(text)
        outcome(lambda: opened(folder))

    run()


@pytest.mark.parametrize("file", ["net/config.json", "mixture.json"])
def test_other_json_of_a_student(file, student, tmp_path):
    folder = Path(shutil.copytree(student, tmp_path / "student"))
    document = json.loads((folder / file).read_text())

    @fuzz
    @given(text=damaged_json(document))
    def run(text):
        (folder / file).write_bytes(text)
        outcome(lambda: opened(folder))

    run()


def test_safetensors(student, tmp_path):
    from edgedistill.common.finite import bad_tensor

    folder = Path(shutil.copytree(student, tmp_path / "student"))
    (file,) = folder.rglob("*.safetensors")
    data = file.read_bytes()

    @fuzz
    @given(damage=damaged_safetensors(data))
    def run(damage):
        file.write_bytes(damage)
        outcome(lambda: opened(folder))
        outcome(lambda: bad_tensor(file))

    run()
