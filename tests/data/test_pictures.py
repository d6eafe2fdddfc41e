"""A person's own pictures: what is drawn is the autoencoder's latent of a picture, made once."""

import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from heard import hearing
from PIL import Image
from safetensors.torch import load_file
from tars import write_tar

from edgedistill import cli
from edgedistill.data import latents
from edgedistill.data.latents import CachedLatents, find_pictures
from edgedistill.data.pictures import FAULTS, Codec, list_pictures, read_picture
from edgedistill.data.shards import write_shard
from edgedistill.objectives.compression.decoder import TinyDecoder
from edgedistill.recipes.loading import load
from edgedistill.runs.run_dir import open_run
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny

KINDS = {"png": "PNG", "jpg": "JPEG", "ebp": "WEBP"}


def silent(_) -> None:
    pass


def picture(seed, width=24, height=20, mode="RGB"):
    """Noise in coarse blocks."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    blocks = noise[:, :, : len(Image.new(mode, (1, 1)).getbands())]
    image = Image.fromarray(blocks.squeeze(-1) if blocks.shape[-1] == 1 else blocks, mode)
    return image.resize((width, height), Image.Resampling.NEAREST)


def encoded(image, kind="PNG"):
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A function (family, seed) -> a tiny teacher."""
    root = tmp_path_factory.mktemp("teachers")

    def teacher(family="stable_diffusion", seed=0):
        folder = root / f"{family}-{seed}"
        return load_teacher(family, folder if folder.exists() else make_tiny(family, folder, seed))

    return teacher


@pytest.fixture
def folder(tmp_path):
    """Six pictures, captions in three ways."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "c.webp", "d.png", "e.png", "sub/f.PNG"]):
        (root / name).write_bytes(encoded(picture(i), KINDS[name[-3:].lower()]))
    (root / "a.txt").write_text(" red \n")
    rows = [{"file_name": "b.jpg", "text": "blue"}, {"file_name": "sub/f.PNG", "text": "red red"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    (root / ".hidden.png").write_bytes(b"")
    return root


def find(teacher, path, tmp_path, **other):
    given = {"cache": tmp_path / "cache", "key": "caption", "run": tmp_path / "run", **other}
    return find_pictures(teacher, str(path), **given)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two pictures."""
    monkeypatch.setattr(latents, "SHARD", 2 * 4 * 4 * 4)


# --- Reading ------------------------------------------------------------------------------------


def test_a_picture_is_cut_at_its_centre():
    image = picture(0, 64, 32)
    image.paste((255, 0, 0), (0, 0, 16, 32))  # cut away
    image.paste((0, 255, 0), (16, 0, 48, 32))
    read = read_picture(encoded(image), 3, 16, 16)
    assert read.shape == (3, 16, 16)
    assert torch.equal(read[:, 8, 8], torch.tensor([0, 255, 0], dtype=torch.uint8))
    # The filter looks a little over the edge.
    torch.testing.assert_close(
        read.float().mean((1, 2)), torch.tensor([0.0, 255.0, 0.0]), rtol=0, atol=4
    )


def test_a_picture_of_the_size_stays_as_it_is():
    image = picture(1, 24, 20)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(read_picture(encoded(image), 3, 20, 24), values)
    grey = torch.from_numpy(np.array(image.convert("L")))
    assert torch.equal(read_picture(encoded(image), 1, 20, 24)[0], grey)


def test_transparency_is_white_and_exif_turns():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert bool((read_picture(encoded(clear), 3, 16, 16) == 255).all())
    image = picture(2, 32, 16)
    turned, data = image.getexif(), io.BytesIO()
    turned[0x0112] = 6  # a quarter turn clockwise
    image.save(data, "PNG", exif=turned)
    wanted = np.array(image.transpose(Image.Transpose.ROTATE_270))
    read = read_picture(data.getvalue(), 3, 32, 16)
    assert torch.equal(read, torch.from_numpy(wanted).permute(2, 0, 1))


def test_bits_flipped_anywhere_raise_nothing_else():
    """Only the faults that are skipped, or a picture."""
    generator = np.random.default_rng(0)
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP"):
        good = bytearray(encoded(picture(3), kind))
        for _ in range(100):
            data = bytearray(good)
            for at in generator.integers(0, len(data), 4):
                data[at] ^= int(generator.integers(1, 256))
            try:
                read_picture(bytes(data[: generator.integers(1, 2 * len(data))]), 3, 8, 8)
                outcomes.add("read")
            except FAULTS:
                outcomes.add("fault")
    assert outcomes == {"read", "fault"}


def test_captions(folder):
    found = {
        record.name: record.read()[1] for record in list_pictures(folder, "caption").records()
    }
    own = {"a.png": "red", "b.jpg": "blue", "sub/f.PNG": "red red"}
    assert found == {**own, "c.webp": "c", "d.png": "d", "e.png": "e"}


# --- The cache ----------------------------------------------------------------------------------


def test_a_latent_is_the_autoencoder_s(teachers, folder, tmp_path):
    teacher = teachers()
    source = find(teacher, folder, tmp_path).open()
    vae = teacher.autoencoder
    assert source.captions == ["red", "blue", "c", "d", "e", "red red"]
    for i, name in enumerate(["a.png", "b.jpg", "c.webp", "d.png", "e.png", "sub/f.PNG"]):
        pixels = read_picture((folder / name).read_bytes(), 3, 8, 8)[None].float() / 127.5 - 1
        z = vae.encode(pixels).latent_dist.mean
        x0 = z * vae.config.scaling_factor
        torch.testing.assert_close(source.shards[0][i], x0[0], rtol=1e-4, atol=1e-5)


def test_a_shift_comes_before_the_scale(teachers, folder, tmp_path):
    teacher = teachers("sd3")
    source = find(teacher, folder, tmp_path).open()
    _, height, width = Codec(teacher).shape
    data = (folder / "a.png").read_bytes()
    pixels = read_picture(data, 3, height, width)[None].float() / 127.5 - 1
    z = teacher.autoencoder.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(source.shards[0][:1], (z - 0.0609) * 1.5305, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sana", "unet2d"])
def test_x0_has_the_teacher_s_shape_and_decodes_to_it(teachers, folder, tmp_path, family):
    """Sana's autoencoder has no posterior; unet2d learns pictures themselves."""
    teacher = teachers(family)
    x0, cond = find(teacher, folder, tmp_path).open().draw(3, torch.Generator())
    assert x0.shape == (3, *teacher.sample_shape)
    assert cond.keys() == teacher.encode([""]).keys()
    assert teacher.decode(x0).shape[-2:] == Codec(teacher).shape[-2:]


def test_a_pixel_teacher_takes_the_picture(teachers, folder, tmp_path):
    teacher = teachers("unet2d")
    source = find(teacher, folder, tmp_path).open()
    pixels = read_picture((folder / "d.png").read_bytes(), 3, 8, 8).float()
    torch.testing.assert_close(teacher.decode(source.shards[0][3:4])[0], pixels / 127.5 - 1)


def test_draws_are_those_of_the_generator(teachers, folder, tmp_path, small_shards):
    teacher = teachers()
    first = find(teacher, folder, tmp_path).open()
    again = find(teacher, folder, tmp_path).open()
    assert [len(shard) for shard in first.shards] == [2, 2, 2]
    x0, cond = first.draw(64, torch.Generator().manual_seed(5))
    same, _ = again.draw(64, torch.Generator().manual_seed(5))
    assert torch.equal(x0, same)
    rows = torch.cat(first.shards)
    index = torch.randint(6, (64,), generator=torch.Generator().manual_seed(5))
    assert torch.equal(x0, rows[index])
    captions = [first.captions[i] for i in index.tolist()]
    for name, value in teacher.encode(captions).items():
        assert torch.equal(cond[name], value)


def test_pictures_are_kept_beside_their_latents_if_asked(teachers, folder, tmp_path, small_shards):
    teacher = teachers()
    plain = find(teacher, folder, tmp_path).open()
    assert plain.originals(3, torch.Generator()) is None
    for _ in range(2):  # made, then read
        source = find(teacher, folder, tmp_path, run=tmp_path / "kept", keep=True).open()
        assert len(source.shards) > 1
        x0, _ = source.draw(16, torch.Generator().manual_seed(2))
        originals = source.originals(16, torch.Generator().manual_seed(2))
        assert originals.shape == (16, 3, 8, 8)
        z = teacher.autoencoder.encode(originals).latent_dist.mean
        factor = teacher.autoencoder.config.scaling_factor
        torch.testing.assert_close(x0, z * factor, rtol=1e-4, atol=1e-5)
    pixels = read_picture((folder / "a.png").read_bytes(), 3, 8, 8)
    assert torch.equal(source.pictures[0][0], pixels)


def test_draws_step_over_empty_shards(teachers):
    teacher = teachers()
    shards = [torch.empty(0, 1), torch.tensor([[0.0]]), torch.empty(0, 1), torch.tensor([[1.0]])]
    x0, _ = CachedLatents(shards, ["a", "b"], teacher).draw(32, torch.Generator().manual_seed(0))
    index = torch.randint(2, (32,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x0[:, 0], index.float())
    with pytest.raises(ValueError, match="2 latents but 1 captions"):
        CachedLatents(shards, ["a"], teacher)


def test_only_missing_shards_are_made(teachers, folder, tmp_path, small_shards, monkeypatch, said):
    teacher = teachers()
    whole = torch.cat(find(teacher, folder, tmp_path).open().shards)

    def stop(line) -> None:
        if line == "pictures read 4":
            raise KeyboardInterrupt

    other = {"cache": tmp_path / "other"}
    pictures = find(teacher, folder, tmp_path, **other)
    with pytest.raises(KeyboardInterrupt), hearing(stop):
        pictures.open()
    done = sorted(pictures.folder.glob("*.safetensors"))
    assert [file.name for file in done] == ["00000.safetensors", "00001.safetensors"]
    times = [file.stat().st_mtime_ns for file in done]
    said.clear()
    resumed = find(teacher, folder, tmp_path, **other).open()
    assert "3 of 6 pictures match no row of metadata.jsonl" in said[0]
    assert said[1:] == ["pictures read 6"]
    assert [file.stat().st_mtime_ns for file in done] == times
    assert torch.equal(torch.cat(resumed.shards), whole)
    # Once complete no picture is opened again.
    monkeypatch.setattr(latents, "read_picture", None)
    assert torch.equal(torch.cat(find(teacher, folder, tmp_path).open().shards), whole)


def test_a_broken_shard_is_made_again(teachers, folder, tmp_path, small_shards, said):
    teacher = teachers()
    pictures = find(teacher, folder, tmp_path)
    whole = torch.cat(pictures.open().shards).clone()
    shard = pictures.folder / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])
    said.clear()
    source = find(teacher, folder, tmp_path).open()
    assert len(said) == 3
    assert said[1].startswith(f"{shard}: ")
    assert said[1].endswith("; made again")
    assert torch.equal(torch.cat(source.shards), whole)
    write_shard(shard, load_file(shard), {"digest": "0"})
    source = find(teacher, folder, tmp_path).open()
    assert said[4] == f"{shard}: of other pictures; made again"
    assert torch.equal(torch.cat(source.shards), whole)


def test_tars(teachers, folder, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    png, jpg = (folder / "a.png").read_bytes(), (folder / "b.jpg").read_bytes()
    files = {
        "0.jpg": jpg,
        "0.json": '{"alt": "blue"}',
        "1.png": png,
        "1.txt": "red",
        "2.txt": "no",
    }
    write_tar(shards / "x.tar", files)
    teacher = teachers()
    source = find(teacher, shards, tmp_path, key="alt").open()
    assert source.captions == ["blue", "red"]
    plain = find(teacher, folder, tmp_path, run=tmp_path / "plain").open()
    torch.testing.assert_close(source.shards[0], plain.shards[0][[1, 0]], rtol=1e-4, atol=1e-5)
    one = find(teacher, shards / "x.tar", tmp_path, key="alt").open()
    assert torch.equal(one.shards[0], source.shards[0])


# --- What is broken -----------------------------------------------------------------------------


def test_broken_pictures_are_skipped_and_named(teachers, folder, tmp_path, small_shards, said):
    good = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(good[: len(good) // 2])
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "e.png").write_bytes(encoded(picture(0, 7, 40)))
    (folder / "c.txt").write_bytes(b"\xff")
    write_tar(folder / "t.tar", {"0.png": good, "0.txt": "red", "1.png": good, "2.png": good})
    source = find(teachers(), folder, tmp_path).open()
    assert source.captions == ["blue", "red red", "red"]
    assert said[-1].startswith("6 of 9 pictures skipped: a.png (image file is truncated")
    assert said[-1].endswith(
        "c.webp (caption not UTF-8 text (byte 0); save it as UTF-8), d.png (no JPEG, PNG, WEBP, "
        "BMP, GIF or TIFF), ..."
    )
    # The same is said of a finished cache.
    first, *_, last = said
    said.clear()
    find(teachers(), folder, tmp_path).open()
    assert said == [first, last]


def test_why_a_picture_is_skipped(teachers, folder, tmp_path, said):
    for file in folder.glob("*.*"):
        file.unlink()
    good = (folder / "sub" / "f.PNG").read_bytes()
    tar = write_tar(folder / "t.tar", {"0.png": good, "0.txt": "red", "1.png": good})
    (folder / "s.png").write_bytes(encoded(picture(0, 7, 40)))
    find(teachers(), folder, tmp_path).open()
    assert said[-1] == "2 of 4 pictures skipped: s.png (7 x 40 pixels), t.tar/1.png (no caption)"
    (folder / "s.png").write_bytes(encoded(Image.new("F", (20, 20)), "TIFF"))
    tar.write_bytes(tar.read_bytes()[: 512 + 100])
    find(teachers(), folder, tmp_path, run=tmp_path / "2").open()
    assert said[-1] == (
        "2 of 3 pictures skipped: s.png (numbers without a scale: mode F; save it as 8 or 16 "
        "bits), t.tar (unexpected end of data)"
    )


def test_none_left(teachers, tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    (root / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 pictures can be read: a\.png \(no JPEG"):
        find(teachers(), root, tmp_path).open()
    (root / "a.png").unlink()
    with pytest.raises(ValueError, match=r"pictures: none of \.jpg, .*\.tar in it$"):
        find(teachers(), root, tmp_path)
    write_tar(root / "a.tar", {"0.txt": "red"})
    with pytest.raises(ValueError, match=r"a\.tar/0 \(no picture among \.txt\)$"):
        find(teachers(), root, tmp_path).open()
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder$"):
        find(teachers(), tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", ": not JSON"),
        ("[]", " is no JSON object"),
        ('{"name": "a.png", "text": "red"}', ' names no picture under "file_name"; it has name'),
        ('{"file_name": "a.png", "text": [1]}', ": text: text or a whole number expected"),
        ("[" * 10**5, ": not JSON: nested deeper"),
    ],
)
def test_broken_metadata(folder, line, what):
    (folder / "metadata.jsonl").write_text("\n" + line)
    with pytest.raises(ValueError, match=rf"metadata\.jsonl: line 2{what}"):
        list_pictures(folder, "caption")


def test_a_cache_of_another_teacher(teachers, folder, tmp_path):
    find(teachers(), folder, tmp_path).open()
    with pytest.raises(ValueError, match=r"cache: wrong latent cache: made with autoencoder=\w+,"):
        find(teachers(seed=1), folder, tmp_path)
    with pytest.raises(ValueError, match="wrong latent cache"):
        find(teachers("unet2d"), folder, tmp_path)
    (tmp_path / "cache" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: not readable as JSON"):
        find(teachers(), folder, tmp_path)


def test_other_pictures_share_a_cache_but_not_a_run(teachers, folder, tmp_path):
    teacher = teachers()
    first = find(teacher, folder, tmp_path)
    first.open()
    stat = (folder / "a.txt").stat()
    os.utime(folder / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    with pytest.raises(ValueError, match="pictures are not as they were when the run began"):
        find(teacher, folder, tmp_path)
    second = find(teacher, folder, tmp_path, run=tmp_path / "second")
    assert second.folder.parent == first.folder.parent
    assert second.folder != first.folder
    assert len(second.open().captions) == 6


def test_a_class_it_does_not_know(teachers, folder, tmp_path):
    with pytest.raises(ValueError, match="unknown class 'c'"):
        find(teachers("dit"), folder, tmp_path).open()


def test_who_takes_no_pictures(teachers, folder, tmp_path):
    with pytest.raises(ValueError, match="wan teachers do not learn from pictures"):
        find(teachers("wan"), folder, tmp_path)


# --- Runs ---------------------------------------------------------------------------------------

SD = ["teacher.family=stable_diffusion", "teacher.tiny=true", "train.batch_size=2"]


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (folder / "d.png").write_bytes(b"")
    words = ["recipe=emoji-lcm", *SD, f"data.pictures={folder}", "train.steps=2", "out=mine"]
    monkeypatch.setattr(sys, "argv", ["edgedistill", "distill", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 0, said
    assert "1 of 6 pictures skipped: d.png (no JPEG, PNG, WEBP, " in said
    assert (tmp_path / "mine" / "student" / "student.json").is_file()
    (shard,) = (tmp_path / "mine" / "data" / "pictures").glob("*/*.safetensors")
    assert len(load_file(shard)["x0"]) == 5


DECODER = ["objective.channels=8", "objective.blocks=[1,0]", "objective.target=originals"]


def test_a_decoder_learns_the_pictures_themselves(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny("stable_diffusion", tmp_path / "tiny")
    (tmp_path / "tiny" / "originals.safetensors").unlink()
    given = ["teacher.family=stable_diffusion", "teacher.path=tiny", "train.batch_size=2"]
    words = [*given, *DECODER, "train.steps=1"]
    with pytest.raises(ValueError, match=r"^objective\.target=originals: .*with data\.pictures"):
        open_run(load("emoji-decoder", words), "none", False)
    words.append(f"data.pictures={folder}")
    batches, loss = [], TinyDecoder.loss
    monkeypatch.setattr(TinyDecoder, "loss", lambda s, n, b: batches.append(b) or loss(s, n, b))
    opened = open_run(load("emoji-decoder", words), "own", False)
    opened.train(lambda step, figures: None)
    (batch,) = batches
    z = opened.teacher.autoencoder.encode(batch.originals).latent_dist.mean
    factor = opened.teacher.autoencoder.config.scaling_factor
    torch.testing.assert_close(batch.x0, z * factor, rtol=1e-4, atol=1e-5)


def test_emoji_brings_the_pictures_of_its_latents():
    teacher = load_teacher("stable_diffusion", "emoji")
    source = teacher.source()
    x0, _ = source.draw(8, torch.Generator().manual_seed(1))
    originals = source.originals(8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = teacher.autoencoder.encode(originals).latent_dist.mean
    torch.testing.assert_close(x0, z, rtol=0, atol=5e-3)  # kept as float16


def test_a_resumed_run_is_the_same(folder, tmp_path, monkeypatch, small_shards):
    monkeypatch.chdir(tmp_path)
    (folder / "d.png").write_bytes(b"")
    words = [*SD, f"data.pictures={folder}", "data.cache=cache"]
    ends = {}
    for name, stages in {"whole": [4], "cut": [2, 4]}.items():
        for i, steps in enumerate(stages):
            recipe = load(
                "emoji-lcm", [*words, "train.lr_schedule=constant", f"train.steps={steps}"]
            )
            run = open_run(recipe, name, i > 0)
            assert run.restore() == (2 if i else 0)
            run.train(lambda step, figures: None)
        ends[name] = torch.cat([p.flatten() for p in run.student.parameters()])
    assert torch.equal(ends["whole"], ends["cut"])
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("recipe=emoji-lcm data.cache=x", "cache is for pictures"),
        ("recipe=emoji-lcm data.pictures={folder} data.prompts=p", "leave prompts and paths out"),
        ("recipe=emoji-lcm data.pictures={folder} data.paths=p", "leave prompts and paths out"),
        ("recipe=emoji-lcm data.pictures=nowhere", "nowhere: no such file or folder"),
        ("recipe=mixture-kd data.pictures={folder}", "method 'kd' needs paths instead"),
        (
            "recipe=mixture-lcm data.pictures={folder}",
            "mixture teachers do not learn from pictures",
        ),
        (
            "recipe=emoji-lcm data.pictures={folder} data.cache={folder}/a.png",
            "cannot write there",
        ),
    ],
)
def test_what_a_run_refuses(words, line, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [word.format(folder=folder) for word in words.split()]
    monkeypatch.setattr(sys, "argv", ["edgedistill", "distill", *given])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert line in said
    assert not (tmp_path / "runs").exists()
