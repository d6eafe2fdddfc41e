"""Write 40 emoji that the shipped teacher has never seen as a folder of pictures with captions.

`python examples/own_teacher/new_emoji.py FOLDER` fetches the npm package emoji-datasource-google
(71 MB) with `npm`, and makes FOLDER/goose.png, ... and FOLDER/metadata.jsonl, the layout of an
image folder. The pictures are Noto Emoji, copyright Google LLC, Apache-2.0.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"
SIZE = 64

NAMES = (
    *("goose", "moose", "hedgehog", "sauropod", "kangaroo", "llama", "hippopotamus", "raccoon"),
    *("badger", "swan", "mammoth", "dodo", "sloth", "otter", "orangutan", "skunk", "beaver"),
    *("bison", "seal", "gorilla", "lizard", "rhinoceros", "squid", "eagle", "deer", "turkey"),
    *("scorpion", "garlic", "onion", "waffle", "worm", "mango", "bagel", "pretzel", "coconut"),
    *("potato", "cucumber", "bacon", "peanuts", "kiwifruit"),
)
"""None of them is among the concepts of the shipped teacher."""


def fetch(folder: Path) -> Path:
    """Download the package; its archive."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
    (archive,) = folder.glob("*.tgz")
    return archive


def write(archive: Path, folder: Path) -> None:
    """Write pictures on white, and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with tarfile.open(archive) as tar:
        files = {}
        for member in tar:
            if member.name.endswith("/emoji.json") or f"/google/{SIZE}/" in member.name:
                found = tar.extractfile(member)
                files[Path(member.name).name] = found.read() if found else b""
    known = {entry["short_name"]: entry["image"] for entry in json.loads(files["emoji.json"])}
    for name in NAMES:
        image = known.get(name) or known[f"{name}_face"]
        picture = Image.open(io.BytesIO(files[image])).convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        white.convert("RGB").save(folder / f"{name}.png")
        rows.append({"file_name": f"{name}.png", "text": f"{name}, noto"})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    place = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as work:
        write(fetch(Path(work)), place)
    print(f"{len(NAMES)} pictures in {place}, licence apache-2.0")
