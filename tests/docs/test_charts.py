"""Charts of docs/results show the figures of the tables below their images."""

import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parents[2] / "docs"))

import charts
from charts_kinds import apart
from charts_layout import WIDTH, label
from charts_panels import large_stages
from charts_tables import IMAGE, below, tables

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = [
    (page.name, *found.groups())
    for page in sorted((DOCS / "results").glob("*.md"))
    for found in IMAGE.finditer(page.read_text("utf-8"))
]
TEXT = "{http://www.w3.org/2000/svg}text"


def test_the_charts_are_up_to_date():
    assert charts.stale() == [], "run make reference"


def test_every_chart_has_one_image_and_every_image_a_chart():
    assert sorted(name for _, _, name in IMAGES) == sorted(charts.CHARTS)
    committed = {path.name for path in (DOCS / "results" / "charts").iterdir()}
    assert committed == set(charts.CHARTS)


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_chart_is_what_the_script_draws_now(name):
    committed = (DOCS / "results" / "charts" / name).read_text("utf-8")
    if f"<!-- {charts.VERSION} -->" in committed:
        assert committed == charts.svg(name, charts.panels_of(name)), "run make reference"


@pytest.mark.parametrize(("page", "told", "name"), IMAGES, ids=[name for *_, name in IMAGES])
def test_what_an_image_tells_is_in_its_tables(page, told, name):
    """The text that stands for the image has no figure of an earlier measurement."""
    assert len(told) > 60
    found = below((DOCS / "results" / page).read_text("utf-8"), name)
    number = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])")
    cells = " ".join(
        " ".join([row.name, *row.cells, *row.cells.values()]) for table in found for row in table
    )
    known = {float(each) for each in re.findall(r"\d+(?:\.\d+)?", cells)}
    assert [each for each in number.findall(told) if float(each) not in known] == []


def edges(text) -> tuple[float, float]:
    """Where a text begins and ends, about: a letter of Arial takes half of its size, bold .55."""
    style = text.get("style")
    size = float(re.search(r"([\d.]+)px", style)[1])
    width = size * len(text.text) * (0.55 if "bold" in style or "700" in style else 0.5)
    x = float(text.get("x") or re.search(r"translate\(([\d.]+)", text.get("transform"))[1])
    start = {"end": 1.0, "middle": 0.5}.get((re.findall(r"anchor: (\w+)", style) or [""])[0], 0.0)
    return x - start * width, x + (1 - start) * width


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_chart_is_written_alike_twice_and_within_its_edges(name):
    panels = charts.panels_of(name)
    text = charts.svg(name, panels)
    assert text == charts.svg(name, panels)
    assert charts.described(text) == charts.figures(panels)
    shown = [each.text for each in ElementTree.fromstring(text).iter(TEXT)]
    for panel in panels:
        assert panel.title in shown
        for row in panel.rows:
            assert label(row).split("\n")[-1] in " ".join(shown)
        for end in panel.ends.values():
            assert any(end in each or end.split(", ")[-1] in each for each in shown)
    assert len(text) < 60_000
    for each in ElementTree.fromstring(text).iter(TEXT):
        left, right = edges(each)
        assert left >= 0, each.text
        assert right <= WIDTH, each.text


PAGE = """# Speed

![as told](charts/speed-runtimes.svg)

| subject | ms | first ms |
|---|---|---|
| ours, `openvino-int8` | 12.7 (12.6..13.6) | 28.4 |
| diffusers | 65.8 | 77.6 |

## Next

| subject | ms |
|---|---|
| optimum | 1 |
"""


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with one page, and its chart."""
    monkeypatch.setattr(
        charts, "CHARTS", {"speed-runtimes.svg": charts.CHARTS["speed-runtimes.svg"]}
    )
    (tmp_path / "page.md").write_text(PAGE)
    charts.write(tmp_path)
    return tmp_path


def test_a_cell_is_a_median_with_the_least_and_the_largest(results):
    (panel,) = charts.panels_of("speed-runtimes.svg", results)
    assert panel.rows == {
        "ours, openvino-int8": {"": (12.7, 12.6, 13.6)},
        "diffusers": {"": (65.8, 65.8, 65.8)},
    }
    assert panel.ends == {"ours, openvino-int8": "12.7", "diffusers": "65.8"}


def test_a_longer_time_is_drawn_farther_to_the_right(results):
    """The places of the dots are those of the figures on a logarithmic axis."""
    text = (results / "charts" / "speed-runtimes.svg").read_text()
    dots = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', text)]
    ticks = {each.text: float(each.get("x")) for each in ElementTree.fromstring(text).iter(TEXT)}
    decade = (ticks["50"] - ticks["20"]) / 0.39794
    assert dots[1] - dots[0] == pytest.approx(decade * 0.71444, abs=0.1)  # log10(65.8 / 12.7)


@pytest.mark.parametrize("edit", ["65.9", "65.8 (60..70)"])
def test_a_table_that_changes_makes_its_chart_stale(results, edit):
    assert charts.stale(results) == []
    page = results / "page.md"
    page.write_text(PAGE.replace("65.8", edit))
    assert charts.stale(results) == ["speed-runtimes.svg"]
    charts.write(results)
    assert charts.stale(results) == []
    shutil.rmtree(results / "charts")
    assert charts.stale(results) == ["speed-runtimes.svg"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("| 65.8 |", "| quick |", "row 'diffusers', column 'ms': no number"),
        ("| ms | first", "| s | first", "no column 'ms'; there are s, first ms"),
        ("![as told](charts/speed-runtimes.svg)", "", "shown 0 times"),
        ("\n| subject", "\n# No table\n\n| subject", "a table is missing"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(results, old, new, told):
    (results / "page.md").write_text(PAGE.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(told)):
        charts.panels_of("speed-runtimes.svg", results)


STAGES = """
| stage | diffusers, fp32, ms | bf16, ms | int8, ms |
|---|---|---|---|
| text encoder | 100 | 40 (30..50) | |
| U-Net | 5000 | 2000 | 1000 |
| U-Net, guided (a batch of 2) | 9000 | | |
| U-Net of BK-SDM-Tiny | | | 800 |
| VAE decoder | 15000 | 6000 | |
| tiny decoder (TAESD) | | 300 | |

| one picture | s | times as fast as the teacher |
|---|---|---|
| teacher, 25 guided steps, diffusers | 240.1 | 1 |
| ours, 4 steps, int8 U-Net, tiny decoder | 4.34 | 55 |
| ours, 1 step, BK-SDM-Tiny, tiny decoder | 1.14 | 211 |
"""


def test_stages_of_a_large_picture_are_their_calls():
    panels = large_stages(tables(STAGES))
    rows = {name: row for panel in panels for name, row in panel.rows.items()}
    middles = [[value.middle for value in row.values()] for row in rows.values()]
    assert middles == [[0.1, 225, 15, 240.1], [0.04, 4, 0.3, 4.34], [0.04, 0.8, 0.3, 1.14]]
    assert rows["ours, 1 step, BK-SDM-Tiny, tiny decoder"]["text encoder"] == (0.04, 0.03, 0.05)


def test_stages_that_do_not_add_up_are_told():
    with pytest.raises(ValueError, match=r"stages of 4.34 s, 5 in all"):
        large_stages(tables(STAGES.replace("4.34", "5")))


def test_texts_are_moved_apart_as_little_as_they_need():
    assert apart({"a": 0.0, "b": 4.0}, line=10) == {"a": -3.0, "b": 7.0}
    assert apart({"a": 0.0, "b\nb": 40.0}, line=10) == {"a": 0.0, "b\nb": 40.0}
