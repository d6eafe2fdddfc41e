# %% [markdown]
# # Your own teacher
#
# A small pixel DDPM is trained on pictures that are made here, saved as diffusers does, and
# distilled to four steps. Any folder that `DiffusionPipeline.from_pretrained` opens takes the same
# way. It takes about two minutes on two CPU cores; with `--quick` it trains for a few steps only.

# %%
import sys
import tempfile
from pathlib import Path

import edgedistill as ed
import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from torch.nn import functional as F

quick = "--quick" in sys.argv
place = Path(tempfile.mkdtemp(prefix="your-own-"))

# %% [markdown]
# ## Pictures
#
# Soft discs of random place and size, grey, 8x8. Yours lie in a folder, or in webdataset shards.

# %%
rng = np.random.default_rng(0)
rows, columns = np.mgrid[:8, :8]
(place / "pictures").mkdir()
for i in range(32 if quick else 512):
    y, x, radius = rng.uniform((2, 2, 1.5), (5, 5, 3))
    disc = np.clip(radius + 0.5 - np.hypot(rows - y, columns - x), 0, 1)
    Image.fromarray((255 * disc).astype(np.uint8)).save(place / "pictures" / f"{i:03}.png")

# %% [markdown]
# ## The teacher
#
# The loop of diffusers' own example: the network learns the noise that the scheduler added.

# %%
torch.manual_seed(0)
files = sorted((place / "pictures").glob("*.png"))
pixels = np.stack([np.asarray(Image.open(file)) for file in files])
pictures = torch.from_numpy(pixels)[:, None].float() / 127.5 - 1
net = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    norm_num_groups=8,
)
scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
losses = []
for _ in range(20 if quick else 1500):
    x0 = pictures[torch.randint(len(pictures), (32,))]
    noise, t = torch.randn_like(x0), torch.randint(0, 1000, (32,))
    loss = F.mse_loss(net(scheduler.add_noise(x0, noise, t), t).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"teacher: loss {losses[0]:.3f}, then {np.mean(losses[-10:]):.3f}")
DDPMPipeline(net, scheduler).save_pretrained(place / "teacher")
(place / "teacher" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# discs\n")

# %% [markdown]
# ## Distil it
#
# The recipe names the family and the folder. Before anything trains, the teacher is compared with
# its own pipeline, and refused if it is drawn differently.

# %%
keys = {
    "teacher.path": place / "teacher",
    "data.pictures": place / "pictures",
    **({"train.steps": 4, "train.batch_size": 4} if quick else {"train.steps": 300}),
}
here = Path(__file__).parent if "__file__" in globals() else Path("examples")
recipe = ed.load_recipe(str(here / "own_teacher" / "pixels-4step.yaml"), **keys)
run = ed.distill(recipe, out=place / "run")
run.student.draw(seed=3, count=16).save(place / "discs.png")
print(f"{run.student}: {place / 'discs.png'}")

# %% [markdown]
# ## Measure it, and ship it

# %%
figures = ed.evaluate(run.student, samples=32 if quick else 512)
for name in ("teacher", "student"):
    print(f"{name}: FD {figures[name]['fd']:.3f} in {figures[name]['calls']} calls")
bundle = run.student.export(target="ort")
assert np.array_equal(bundle.samples(seed=3, count=4), run.student.samples(seed=3, count=4)) or (
    np.abs(bundle.samples(seed=3).astype(int) - run.student.samples(seed=3).astype(int)).max() <= 1
)
print(f"{bundle}: it draws the student's pictures")
