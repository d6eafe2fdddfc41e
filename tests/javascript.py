"""What the JavaScript runtime makes of things, in node."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["WEB", "draw", "needs_node", "node"]

WEB = Path(__file__).parents[1] / "runtime" / "web"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules" / "onnxruntime-web").is_dir(),
    reason="needs node and `npm install --prefix runtime/web`",
)


def node(code, *arguments):
    """What a module in runtime/web makes of `input`: it calls `give` with the answer."""
    head = "const input = JSON.parse(process.argv[1]);"
    head += "const give = (value) => console.log(JSON.stringify(value));"
    command = ["node", "--input-type=module", "--eval", head + code, json.dumps(arguments)]
    found = subprocess.run(command, cwd=WEB, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def draw(folder, *pictures):
    """What the JavaScript runtime draws: pictures are (prompt, seed, index)."""
    code = """
    import { Pipeline } from "./edgedistill.mjs";
    const [folder, pictures] = input;
    const pipe = await Pipeline.load(folder);
    const drawn = [];
    for (const [prompt, seed, index] of pictures) {
      const { sample, picture, timings } = await pipe.draw(prompt, { seed: BigInt(seed), index });
      drawn.push({ sample: [...sample], timings, picture: picture && [...picture.data] });
    }
    await pipe.release();
    give(drawn);
    """
    # As text, because JSON's numbers end at 2^53 in JavaScript.
    return node(code, str(folder), [(prompt, str(seed), i) for prompt, seed, i in pictures])
