# %% [markdown]
# # Compare methods where the truth is known
#
# The teacher is a planar mixture, whose samples and scores are a closed form. Students of several
# methods are measured by their distance to true samples, so a method that does not learn the
# distribution cannot hide it. With `--quick` they train for a few steps, to try the way.

# %%
import sys
import tempfile
from pathlib import Path

import edgedistill as ed

quick = "--quick" in sys.argv
place = Path(tempfile.mkdtemp(prefix="compare-"))
METHODS = ("lcm", "ctm", "dmd2")

# %% [markdown]
# ## Train each
#
# `edgedistill recipes` lists all of them; each recipe names its paper.

# %%
found = {}
for method in METHODS:
    short = {"train.steps": 20, "train.batch_size": 32} if quick else {"train.steps": 2000}
    run = ed.distill(ed.load_recipe(f"mixture-{method}", **short), out=place / method)
    figures = ed.evaluate(run.student, samples=500 if quick else 10_000)
    found[method] = {**figures["student"], "teacher": figures["teacher"]["w2_ratio"]}

# %% [markdown]
# ## Compare
#
# `w2_ratio` is the sliced Wasserstein distance to true samples, divided by that of two draws of
# true samples: 1 is perfect. `within_3_sigma` is the share of samples near some mode, and
# `smallest_mode` tells whether a mode was lost.

# %%
print(f"{'method':8} {'w2_ratio':>9} {'within_3_sigma':>15} {'smallest_mode':>14}")
for method, row in sorted(found.items(), key=lambda item: item[1]["w2_ratio"]):
    cells = f"{row['w2_ratio']:9.2f} {row['within_3_sigma']:15.3f} {row['smallest_mode']:14.3f}"
    print(f"{method:8} {cells}")
print(f"teacher  {found['lcm']['teacher']:9.2f}")
