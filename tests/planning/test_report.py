import json
import subprocess
import sys
import time

import pytest
from tiny import save
from transformers import CLIPModel

import edgedistill as ed
from edgedistill import assets, recipes
from edgedistill.compress.token_stride import TokenStride, stride_attention
from edgedistill.networks.diffusion_decoder import DiffusionDecoder
from edgedistill.networks.patch_decoder import PatchDecoder
from edgedistill.planning.costs import costs
from edgedistill.planning.fit import Switch, fit, parse_bytes, switches
from edgedistill.planning.flops import calls
from edgedistill.planning.memory import Launch, memory
from edgedistill.planning.networks import planned_networks
from edgedistill.planning.report import as_json, plan, tables
from edgedistill.teachers.families.stable_diffusion import StableDiffusion

SDXL = ("teacher.family=sdxl", "teacher.path=stabilityai/stable-diffusion-xl-base-1.0")
SD15 = "teacher.path=runwayml/stable-diffusion-v1-5"
EMOJI = "recipe=emoji-4step"
ADAMW = "train.optim.name=adamw"
"""Two moments of everything, where the recipe's Muon has one of matrices."""


def cli(*words):
    command = [sys.executable, "-m", "edgedistill.cli", "plan", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sdxl_and_its_student_of_another_size_as_json():
    done = cli(EMOJI, ADAMW, *SDXL, "compress.preset=koala-700m", "train.batch_size=1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["teacher"]["denoiser"]["parameters"] == 2_567_463_684
    assert found["student"]["denoiser"]["parameters"] == 782_822_724
    memory = found["memory_gb"]
    assert memory["student"] == pytest.approx(4 * 4 * 0.782822724, abs=1e-3)
    assert memory["total"] == pytest.approx(
        sum(size for role, size in memory.items() if role != "total"), abs=0.01
    )


def test_a_teacher_of_another_family_is_refused_as_by_distill():
    done = cli(EMOJI, SDXL[1])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "it looks like sdxl: choose teacher.family=sdxl" in done.stderr


def test_a_resolved_recipe_is_planned_as_its_name():
    words = ["train.batch_size=2"]
    named = ed.plan("emoji-4step", words, memory="8GB")
    resolved = ed.plan(ed.load_recipe("emoji-4step", words), memory="8GB")
    assert resolved.to_json() == named.to_json()
    # Its verdict tries switches, which go on top of the recipe.
    small = ed.plan(ed.load_recipe("emoji-4step"), memory="100MB").verdict
    assert str(small) == str(ed.plan("emoji-4step", memory="100MB").verdict)
    assert not small.fits


def test_several_students_are_planned_one_after_the_other():
    one, two = (costs(recipes.load("emoji-4step", words), Launch()) for words in ([], PARTS))
    assert two.memory == one.memory
    assert two.disk == {**one.disk, **{k: 2 * one.disk[k] for k in ("student", "checkpoints")}}
    assert two.samples["drawn"] == 2 * one.samples["drawn"]
    assert costs(recipes.load("emoji-4step", [*PARTS, "parts.only=1"]), Launch()).students == 1
    done = cli(EMOJI, *PARTS)
    assert done.returncode == 0
    assert "students, one after the other" in done.stdout
    refused = cli(EMOJI, *PARTS, "compress.elastic.small=0.8")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "parts.count=2: compress.elastic" in refused.stderr


PARTS = ["parts.count=2"]


@pytest.mark.parametrize(
    ("preset", "left"), [("bk-sdm-base", 579_384_964), ("bk-sdm-tiny", 323_384_964)]
)
def test_presets_of_sd15(preset, left):
    words = [SD15, f"compress.preset={preset}", "train.batch_size=1"]
    found = costs(recipes.load("emoji-4step", words), Launch())
    assert found.parameters["teacher"]["denoiser"] == 859_520_964
    assert found.parameters["student"]["denoiser"] == left
    assert found.trained == left
    assert found.flops["student_call"] < found.flops["teacher_call"]


@pytest.mark.parametrize(
    ("words", "attentions", "width"),
    [([SD15], 5, 320), ([*SDXL, "compress.attention_stages=2"], 10, 640)],
)
def test_a_stride_of_attention_saves_its_part_of_the_products(words, attentions, width):
    """Of 4096 tokens, 1024 give keys and values, in layers and in both products."""
    words = [*words, "compress.attention_stride=2", "train.batch_size=1"]
    found = costs(recipes.load("emoji-4step", words), Launch())
    layers, products = 2 * 2 * width**2, 2 * 2 * 4096 * width
    saved = attentions * (4096 - 1024) * (layers + products)
    assert found.flops["teacher_call"] - found.flops["student_call"] == saved
    student = 4 * found.flops["student_call"] + found.flops["decoder"]
    assert found.flops["student_sample"] == student
    assert found.parameters["student"]["denoiser"] == found.parameters["teacher"]["denoiser"]


def test_a_student_to_start_from_is_planned_with_its_stride(attentive_sd, tmp_path):
    teacher = StableDiffusion.load(str(attentive_sd))
    plain = save(tmp_path / "plain", teacher, teacher.net, teacher.denoiser.prediction, 2)
    stride_attention(teacher.net.unet, TokenStride(stride=2))
    strided = save(tmp_path / "strided", teacher, teacher.net, teacher.denoiser.prediction, 2)

    def calls(folder):
        words = [f"teacher.path={attentive_sd}", f"student.init={folder}", "train.batch_size=1"]
        return costs(recipes.load("emoji-4step", words), Launch()).flops

    whole, less = calls(plain), calls(strided)
    assert whole["student_call"] == whole["teacher_call"] == less["teacher_call"]
    saved = 3 * (64 - 16) * (2 * 2 * 16**2 + 2 * 2 * 64 * 16)
    assert whole["student_call"] - less["student_call"] == saved


def test_adapters_are_no_switch_of_a_student_with_a_stride():
    plain, strided = (
        {str(switch) for switch in switches(recipes.load("emoji-4step", words))}
        for words in ([], ["compress.attention_stride=2"])
    )
    assert plain - strided == {"train.roles=adapters"}


def test_the_shipped_recipe_of_bk_sdm_tiny_is_planned():
    found = costs(recipes.load("sd15-bk-tiny-4step", ["train.batch_size=1"]), Launch())
    assert found.parameters["student"]["denoiser"] == 323_384_964


def test_operations_of_sampling():
    found = costs(
        recipes.load("emoji-4step", ["train.batch_size=1", "teacher.steps=10"]), Launch()
    )
    call, decoder = found.flops["teacher_call"], found.flops["decoder"]
    assert found.flops["teacher_sample"] == 10 * 2 * call + decoder  # guided: two calls
    assert found.flops["student_sample"] == 4 * call + decoder
    assert decoder == pytest.approx(574e6, rel=0.01)  # README


def test_solvers_are_asked_how_often_they_call():
    assert calls("ddim", 10) == 10
    assert calls("heun", 10) == 19  # all but the last step twice


def test_samples_are_made_only_where_the_teacher_brings_none():
    words = ["train.batch_size=2", "train.steps=10"]
    own, none = (
        costs(recipes.load("emoji-4step", [*words, *more]), Launch()).samples
        for more in ([], [SD15, "data.samples=7"])
    )
    assert own == {"made": 0, "drawn": 20}
    assert none == {"made": 7, "drawn": 20}


def test_disk_holds_float32():
    found = costs(recipes.load("emoji-4step", [ADAMW, "train.batch_size=1"]), Launch())
    whole = 4 * sum(found.parameters["teacher"].values())
    # Position ids and the like come on top.
    assert found.disk["teacher"] == found.disk["student"] == pytest.approx(whole, rel=1e-4)
    # Student, its target, the average and two moments, twice.
    assert found.disk["checkpoints"] == pytest.approx(2 * 5 * 4 * found.trained, rel=1e-4)


def test_adapters_train_less_than_the_network():
    words = ["train.roles=adapters", "train.adapter.rank=8", "train.batch_size=1"]
    found = costs(recipes.load("emoji-4step", words), Launch())
    assert found.parameters["student"]["denoiser"] == 6_492_192
    assert found.trained < 1_000_000
    assert found.memory.roles["student"].weights == 4 * found.trained


def test_a_reward_and_a_frozen_discriminator_are_counted_and_in_no_checkpoint():
    words = [ADAMW, "train.batch_size=2", "objective.name=ladd"]
    plain, judged = (
        costs(recipes.load("emoji-lcm", [*words, *more]), Launch())
        for more in ([], ["reward.name=clip"])
    )
    found = judged.to_json()
    assert found["reward"]["clip"]["parameters"] == sum(
        p.numel() for p in CLIPModel.from_pretrained(assets.ROOT / "emoji" / "clip").parameters()
    )
    teacher = found["teacher"]["denoiser"]["parameters"]
    assert found["discriminator"]["frozen"]["parameters"] == teacher
    assert found["memory_gb"]["reward"] == pytest.approx(4 * 1_198_081 / 1e9, abs=1e-3)
    assert judged.disk == plain.disk
    trained = judged.trained + found["discriminator"]["trained"]["parameters"]
    # Weights and two moments of both, the average of the student, twice.
    assert judged.disk["checkpoints"] == 2 * 4 * (3 * trained + judged.trained)
    text = [table.columns[0]._cells for table in tables(judged)]
    assert "reward" in text[0]
    assert {"reward clip", "discriminator frozen"} <= set(text[1])


def test_switches_are_those_that_a_reward_leaves():
    def offered(*words):
        recipe = recipes.load("emoji-lcm", ["reward.name=clip", "train.batch_size=32", *words])
        return {str(switch) for switch in switches(recipe)}

    by_gradient = offered()
    assert "train.batch_size=1 train.accumulate=32" in by_gradient
    assert "train.offload=true" not in by_gradient
    by_values = offered("reward.kind=black-box", "reward.group=8")
    assert {"train.batch_size=8 train.accumulate=4", "train.offload=true"} <= by_values
    least = offered("reward.kind=black-box", "reward.group=8", "train.batch_size=8")
    assert not [switch for switch in least if "batch_size" in switch]
    assert {"train.batch_size=1 train.accumulate=32", "train.offload=true"} <= offered(
        "objective.name=pso"
    )


def test_decoder_runs_make_a_decoder():
    found = as_json(costs(recipes.load("emoji-decoder", ["train.batch_size=1"]), Launch()), None)
    assert found["student"]["decoder"]["parameters"] > 0
    assert "denoiser" not in found["student"]


def test_what_fits_says_how_much_is_left():
    found, verdict = plan([EMOJI, "train.batch_size=1"], "24GB")
    spare = (24e9 - found.memory.total) / 1e9
    assert str(verdict) == f"fits 24 GB with {spare:.3g} GB to spare"


def needs(*words, launch=Launch()):  # noqa: B008  frozen
    return memory(planned_networks(recipes.load("emoji-4step", words)), launch).total


def test_each_switch_that_is_named_was_planned_itself():
    words = [ADAMW, "train.adapter.rank=8", "train.batch_size=8"]
    whole = needs(*words)
    verdict = fit("emoji-4step", words, Launch(), int(0.99 * whole), whole)
    assert {str(way.switch): way.bytes for way in verdict.ways} == {
        "train.batch_size=1 train.accumulate=8": needs(
            *words, "train.batch_size=1", "train.accumulate=8"
        ),
        "train.offload=true": needs(*words, "train.offload=true"),
        "train.moments=8bit": needs(*words, "train.moments=8bit"),
        "train.roles=adapters": needs(*words, "train.roles=adapters"),
    }
    assert needs(*words, "train.checkpointing=true") > 0.99 * whole
    begin = f"does not fit {int(0.99 * whole) / 1e9:g} GB (needs {whole / 1e9:.3g}): "
    assert str(verdict).startswith(begin)
    assert f"train.roles=adapters would need {verdict.ways[-1].bytes / 1e9:.3g}" in str(verdict)


def test_switches_add_up_where_none_is_enough():
    words = [ADAMW, "train.adapter.rank=4", "train.batch_size=64"]
    verdict = fit("emoji-4step", words, Launch(), 100 * 10**6, 10**9)
    (way,) = verdict.ways
    more = ["train.batch_size=1", "train.accumulate=64", "train.checkpointing=true"]
    more += ["train.offload=true", "train.moments=8bit", "train.roles=adapters"]
    assert str(way.switch) == " ".join(more)
    assert way.bytes == needs(*words, *more)


def test_what_no_switch_makes_fit_says_what_all_of_them_need():
    verdict = fit("emoji-4step", [ADAMW, "train.adapter.rank=8"], Launch(), 10**6, 10**9)
    assert verdict.ways == ()
    words = str(verdict.least.switch).split()
    assert verdict.least.bytes == needs(ADAMW, "train.adapter.rank=8", *words)
    assert {"train.precision=bf16", "train.base=bf16", "train.moments=8bit"} <= set(words)
    assert f"nor with all switches: {' '.join(words)} would need 0." in str(verdict)
    # Each is thrown, so that none is left.
    assert switches(recipes.load("emoji-4step", [ADAMW, *words])) == []
    (size,) = verdict.to_json()["all_switches"].values()
    assert size == round(verdict.least.bytes / 1e9, 3)


def test_the_frozen_weights_precision_is_thrown_with_the_runs():
    words = [ADAMW, "train.adapter.rank=8"]
    with_all = fit("emoji-4step", words, Launch(), 10**6, 10**9).least
    (way,) = fit("emoji-4step", words, Launch(), with_all.bytes, 10**9).ways
    assert way == with_all


def test_a_recipe_with_every_switch_thrown_leaves_none():
    thrown = ["train.roles=adapters", "train.precision=bf16", "train.batch_size=1"]
    thrown += ["train.checkpointing=true", "train.offload=true"]
    thrown += ["train.base=bf16", "train.moments=8bit"]
    assert switches(recipes.load("emoji-4step", thrown)) == []
    verdict = fit("emoji-4step", thrown, Launch(), 1, 10**9)
    assert "leaves no switch" in str(verdict)


def test_moments_in_bytes_are_offered_to_adamw_alone():
    muon = recipes.load("emoji-4step", ["train.optim.name=muon"])
    adamw = recipes.load("emoji-4step", [ADAMW])
    assert [str(switch) for switch in switches(adamw)] == [
        *("train.precision=bf16", "train.batch_size=1 train.accumulate=32"),
        *("train.checkpointing=true", "train.offload=true"),
        *("train.moments=8bit", "train.roles=adapters"),
    ]
    assert set(switches(adamw)) - set(switches(muon)) == {Switch(("train.moments=8bit",))}


def test_switches_are_written_as_they_are_typed():
    assert str(Switch(("a=1", "b=2")) + Switch(("c=3",))) == "a=1 b=2 c=3"


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "0GB", "-1GB", "3 parsecs"])
def test_wrong_sizes_name_the_units(text):
    with pytest.raises(ValueError, match="such as 24GB expected, in MB, GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one recipe"),
        ([EMOJI, "recipe=emoji-dmd2"], "name one recipe"),
        (["recipe=mixture-lcm"], "a mixture is a closed form"),
        ([EMOJI, "teacher.path=nobody/nothing"], "unknown architecture 'nobody/nothing'"),
        ([EMOJI, "compress.budget=0.7"], "measured on the weights"),
        ([EMOJI, "compress.preset=bk-sdm-small", "train.roles=adapters"], "choose train.roles"),
        ([EMOJI, "compress.preset=koala-1b", SD15], "koala-1b: needs"),
        ([EMOJI, *SDXL, "compress.attention_stride=2"], "choose compress.attention_stages=2"),
        ([EMOJI, "reward.name=linear", "reward.options.direction=[1]"], "plan .* reward=null"),
        ([EMOJI, "reward.name=clip", SD15], "name the folder of a CLIPModel"),
        (["recipe=cifar10-1step", "reward.name=clip"], "takes no prompts"),
        ([EMOJI, "reward.name=clip", "train.offload=true"], "takes the decoder away"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(words)
    assert "\n" not in str(caught.value)


def test_exit_codes_and_the_last_line():
    fits = cli(EMOJI, "train.batch_size=1", "--memory", "24GB")
    assert (fits.returncode, fits.stderr) == (0, "")
    assert fits.stdout.splitlines()[-1].startswith("fits 24 GB with 23.")
    assert cli("recipe=mixture-dmd2").returncode == 2


def test_sdxl_takes_seconds():
    started = time.process_time()
    found = costs(recipes.load("emoji-4step", SDXL), Launch())
    assert time.process_time() - started < 20
    assert found.parameters["student"]["denoiser"] == 2_567_463_684
    assert [table.columns[0].header for table in tables(found)] == [
        "memory (GB)",
        "network",
        "further costs",
    ]


def test_a_method_that_trains_nothing_is_planned(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(
        "teacher: {family: stable_diffusion, path: emoji}\n"
        "student: {steps: 4, sampler: ddim}\n"
        "objective: {name: oss}\ntrain: {steps: 1, batch_size: 4}\n"
    )
    assert costs(recipes.load(str(file)), Launch()).memory.activations == 0


@pytest.mark.parametrize("make", [PatchDecoder, DiffusionDecoder])
def test_a_decoder_that_is_named_is_planned_as_what_it_is(make, tmp_path):
    net = make(16, (8, 0, 0, 0), (1, 0, 0, 0))
    net.save_pretrained(tmp_path / "decoder")
    words = [f"student.decoder={tmp_path / 'decoder'}", "train.batch_size=1"]
    found = as_json(costs(recipes.load("emoji-4step", words), Launch()), None)
    assert found["teacher"]["vae"]["parameters"] == sum(p.numel() for p in net.parameters())


def test_steps_that_grow_take_less_than_steps_of_one_size():
    grown, whole = (
        costs(recipes.load("emoji-swd", [f"objective.sizes={sizes}"]), Launch()).flops
        for sizes in ("[0.5,0.5,1,1]", "[1,1,1,1]")
    )
    assert grown["student_call"] == whole["student_call"]
    saved = whole["student_sample"] - grown["student_sample"]
    assert 1.3 * whole["student_call"] < saved < 1.6 * whole["student_call"]
