# %% [markdown]
# # The first hour, from Python
#
# A student of four steps of the emoji teacher that ships with the package, compiled for ONNX
# Runtime, proven and timed. It takes a few minutes on two CPU cores, without a download.
#
# `python examples/first_hour.py` runs it in a shell; editors show its cells as a notebook. With
# `--quick` it trains for two steps only, to try the way.

# %%
import sys
import tempfile
from pathlib import Path

import edgedistill as ed
import numpy as np

quick = "--quick" in sys.argv
place = Path(tempfile.mkdtemp(prefix="first-hour-"))
words = ["red apple, noto", "ghost, twemoji"]

# %% [markdown]
# ## Distil
#
# Every key of a recipe can be set. Without the second argument, this is the recipe as it ships.

# %%
short = {"train.steps": 2, "train.batch_size": 4, "data.samples": 8, "teacher.steps": 4}
recipe = ed.load_recipe("emoji-4step", **(short if quick else {}))
run = ed.distill(recipe, out=place / "run")
print(f"{run}: loss {run.metrics[-1]['student/loss']:.4f} after {run.metrics[-1]['step']} steps")

# %% [markdown]
# ## Draw
#
# In a notebook, `student.draw(...)` shows the picture.

# %%
student = run.student
student.draw(words[0], seed=3, count=4).save(place / "apples.png")
print(f"{student}: {place / 'apples.png'}")

# %% [markdown]
# ## Export, with proof
#
# The bundle is written only if it draws the student's pictures.

# %%
bundle = student.export(target="ort")
parity = bundle.manifest.parity
print(f"{bundle}: pictures equal the student's to {parity.final.worst:.0f} dB in the worst")

# %% [markdown]
# The same seed gives the same picture, here and in the runtime, which needs no torch.

# %%
from edgedistill_runtime import Pipeline  # noqa: E402

images = Pipeline.load(bundle.path)(words, seed=3).images
assert images is not None
drawn = student.samples(words[0], seed=3)[0]
largest = np.abs(images[0].astype(int) - drawn.astype(int)).max()
print(f"largest difference of student and bundle: {largest} of 255")

# %% [markdown]
# ## Time it
#
# Each subject is timed in a process of its own. In a notebook, `times` shows a table.

# %%
times = ed.bench([bundle] if quick else [student, bundle], runs=2 if quick else 20)
for name, row in times.items():
    if isinstance(row, dict) and "p50_s" in row:
        print(f"{name}: {row['p50_s'] * 1000:.0f} ms a picture")
