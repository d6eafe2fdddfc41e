"""LatentLPIPS on the latents of real emoji, and files of its features."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from edgedistill.assets import ROOT
from edgedistill.diffusion.distances import Distance, Ensemble, distance, ensembled
from edgedistill.diffusion.perceptual import LatentFeatures, trained

SHIPPED = ROOT / "features" / "emoji.safetensors"
LPIPS = Distance(kind="latent-lpips")


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return load_file(ROOT / "emoji" / "data.safetensors")["latents"].float()


def softened(x: torch.Tensor, rounds: int) -> torch.Tensor:
    for _ in range(rounds):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x


def test_it_is_lpips_in_the_weights_of_the_file(latents: torch.Tensor):
    a, b = latents[:5], latents[5:10]
    weights = load_file(SHIPPED)
    layers, u, v = [], a, b
    for i, stride in enumerate((1, 1, 2, 1, 2)):
        kernel, bias = (weights[f"layers.{i}.{name}"].float() for name in ("weight", "bias"))
        u, v = (F.conv2d(x, kernel, bias, stride, 1).clamp(min=0) for x in (u, v))
        unit_u, unit_v = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-6) for x in (u, v))
        layers.append((unit_u - unit_v).square().sum(1).mean((1, 2)))
    torch.testing.assert_close(distance(LPIPS, a, b), torch.stack(layers).mean(0))
    assert SHIPPED.stat().st_size < 2 * 2**20


def test_it_is_zero_for_equals_and_symmetric(latents: torch.Tensor):
    a, b = latents[:64], latents[64:128]
    assert bool((distance(LPIPS, a, a) == 0).all())
    found = distance(LPIPS, a, b)
    assert torch.equal(found, distance(LPIPS, b, a))
    assert found.min() > 0.1


def test_more_noise_and_more_blur_are_farther(latents: torch.Tensor):
    noise = torch.randn(latents.shape, generator=drawn())
    for changed in (
        [latents + amount * noise for amount in (0.05, 0.1, 0.2, 0.4, 0.8)],
        [softened(latents, rounds) for rounds in (1, 2, 4, 8)],
    ):
        found = torch.stack([distance(LPIPS, latents, each) for each in changed])
        assert bool((found.mean(1).diff() > 0).all())
        assert (found.diff(dim=0) > 0).float().mean() > 0.95  # of single pictures
        assert found[0].mean() < 0.5 * found[-1].mean()


def test_the_two_drawings_of_a_concept_are_nearer_than_in_random_features(latents: torch.Tensor):
    """Its training names concepts, so its nearest twemoji to a noto is often the same concept."""
    captions = json.loads((ROOT / "emoji" / "prompts.json").read_text("utf-8"))["train"]
    place = {caption: i for i, caption in enumerate(captions)}
    concepts = [c.rsplit(", ", 1)[0] for c in captions if c.endswith(", noto")]
    both = [c for c in concepts if f"{c}, twemoji" in place][:60]
    ours, others = (
        latents[[place[f"{c}, {style}"] for c in both]] for style in ("noto", "twemoji")
    )
    share = {}
    for kind in ("latent-lpips", "features", "l2"):
        rows = [distance(Distance(kind=kind), x.expand_as(others), others) for x in ours]
        share[kind] = (torch.stack(rows).argmin(1) == torch.arange(60)).float().mean().item()
    assert share["latent-lpips"] > max(share["features"], share["l2"]) + 0.1


def test_an_ensemble_repeats_with_its_generator_and_is_the_default(latents: torch.Tensor):
    a, b = latents[:16], latents[16:32]
    config = Ensemble(kind="latent-lpips", ensemble=2)
    assert bool((ensembled(config, a, a, drawn()) == 0).all())
    found = ensembled(config, a, b, drawn())
    assert torch.equal(found, ensembled(config, a, b, drawn()))
    assert not torch.equal(found, ensembled(config, a, b, drawn(1)))
    assert Ensemble(kind="latent-lpips").draws == 1
    slight = ensembled(config, a, a + 0.1 * torch.randn(a.shape, generator=drawn(2)), drawn())
    assert bool((slight < found).all())


def test_latents_have_a_gradient_and_weights_none(latents: torch.Tensor):
    state = torch.random.get_rng_state()
    a = latents[:1].double().requires_grad_()
    (slope,) = torch.autograd.grad(distance(LPIPS, a, latents[1:2].double()).sum(), a)
    assert slope.norm() > 0
    assert torch.equal(state, torch.random.get_rng_state())
    net = trained("emoji", latents)
    assert not any(weight.requires_grad for weight in net.parameters())


def test_a_file_of_ones_own_is_opened_by_its_path_and_again_when_it_changes(tmp_path):
    path = tmp_path / "mine.safetensors"
    a, b = (torch.randn(2, 3, 8, 8, generator=drawn(seed)) for seed in (1, 2))
    config = Distance(kind="latent-lpips", network=str(path))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        LatentFeatures(3, (4, 6), (1, 2)).save(path, {"latents": "test"})
        again = LatentFeatures.open(path)
        assert again.strides == (1, 2)
        assert [tuple(f.shape) for f in again(a)] == [(2, 4, 8, 8), (2, 6, 4, 4)]
        found.append(distance(config, a, b))
    assert not torch.equal(*found)


def test_wrong_files_and_other_latents_are_named(tmp_path, latents: torch.Tensor):
    with pytest.raises(ValueError, match=r"features of distance.network .* 16 channels, not of 3"):
        distance(LPIPS, latents[:2, :3], latents[:2, :3])
    with pytest.raises(ValueError, match=r"distance.kind=latent-lpips: x0 of shape \(2,\)"):
        distance(LPIPS, torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="unknown feature 'emojy'"):
        distance(Distance(kind="latent-lpips", network="emojy"), latents, latents)
    with pytest.raises(ValueError, match=r"no file at '.*none\.safetensors'; shipped features"):
        distance(Distance(kind="latent-lpips", network="/none.safetensors"), latents, latents)
    text, other, damaged = (tmp_path / f"{name}.safetensors" for name in ("text", "other", "cut"))
    text.write_text("no tensors")
    save_file({"a": torch.zeros(2)}, other)
    kept = load_file(SHIPPED)
    del kept["layers.3.bias"]
    save_file(kept, damaged, {"strides": "[1, 1, 2, 1, 2]"})
    for path in (text, other, damaged):
        with pytest.raises(ValueError, match="no features of latents; a file of them is made by"):
            distance(Distance(kind="latent-lpips", network=str(path)), latents, latents)
