"""The report page: whole, honest, escaped, and looked at in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from test_cli import run
from test_plan import calibration, modelled

from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import read_tree, write_tree
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.plan import plan
from medusa_tree.reports.charts import Chart, Series, tree_chart, tree_rows
from medusa_tree.reports.page import templates, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = (
    "Head accuracy", "Acceptance length over nodes", "Speed over nodes", "Step latency", "Beside what people use", "The tree for batch 1",
    "Operating points", "Where it comes from",
)  # fmt: skip


def page(path, made_calibration, **kwargs):
    contents = plan(made_calibration, kwargs.pop("budget", Budget()), kwargs.pop("loads", None), **kwargs).contents
    warnings = write_page(path, contents, made_calibration)
    return path.read_text(), warnings


def test_the_command_writes_the_page(made, tmp_path):
    run("report", made, "-o", tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert all(section in html for section in SECTIONS if section != "The tree for batch 1"), (
        "a tree is not sure to pay here"
    )
    assert "Roofline fitted to the measured grid" in html
    assert json.loads(made.read_text())["provenance"]["model"]["weights"] in html
    assert not re.findall(r"\b(?:nan|inf)\b", html)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_every_section_is_there_and_nothing_is_loaded_from_elsewhere(tmp_path):
    html, _ = page(tmp_path / "r.html", calibration())
    assert all(section in html for section in SECTIONS)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", html)
    assert "<script" not in html
    assert "@import" not in html


def test_names_are_escaped(tmp_path):
    made_of = {
        "model": {"name": "<script>alert(1)</script>", "a<b": '"&'},
        "corpus": {"name": "<script>alert(2)</script>"},
    }
    bad = replace(calibration(), provenance=made_of)
    html, _ = page(tmp_path / "r.html", bad)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "&lt;script&gt;alert(2)" in html
    assert "a&lt;b" in html


def test_modelled_figures_say_so(tmp_path):
    made_calibration = modelled(bandwidth=3e12, flops=4e14)
    html, warnings = page(tmp_path / "r.html", made_calibration, loads=[(b, 512) for b in (1, 8, 64)])
    assert not warnings
    assert "predicted with <em>modelled</em> latency" in html
    assert "Nothing here was measured" in html
    for section in ("Speed over nodes", "Step latency", "Beside what people use", "Operating points"):
        assert "modelled" in html.split(f"<h2>{section}</h2>")[1].split("</section>")[0], section
    assert "measured" not in html.replace("Nothing here was measured", "")


def test_without_its_calibration_the_page_says_what_is_missing(made, tmp_path):
    (tmp_path / "t.json").write_bytes(made.read_bytes())
    result = run("report", tmp_path / "t.json", "-o", tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    assert "give it with --calibration" in " ".join(result.output.split())
    assert "give it with --calibration" in html
    assert "Speed over nodes" not in html
    assert "Operating points" in html


def test_another_calibration_gives_no_curves_but_a_warning(tmp_path):
    contents = plan(calibration(), Budget()).contents
    other = replace(contents, paths=contents.paths[:-1], path_frequency=contents.path_frequency[:-1])
    assert "another tree" in write_page(tmp_path / "r.html", other, calibration())[0]
    assert "Speed over nodes" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "kwargs", [{"engine": "vllm"}, {"budget": Budget(ratio=1.05)}, {"estimator": "product"}, {"swaps": True}]
)
def test_a_plan_is_made_again_as_its_file_says(tmp_path, kwargs):
    write_tree(tmp_path / "t.json", plan(calibration(), kwargs.pop("budget", Budget()), **kwargs).contents)
    assert not write_page(tmp_path / "r.html", read_tree(tmp_path / "t.json"), calibration())
    assert "Speed over nodes" in (tmp_path / "r.html").read_text()


def test_where_plain_decoding_is_fastest_the_page_says_so(tmp_path):
    html, _ = page(tmp_path / "r.html", calibration(cost=lambda n, d: 1.0))
    assert "Plain decoding</strong> is fastest" in html
    assert "there is no tree" in html


def test_bad_input_ends_with_a_message(tmp_path):
    run("report", tmp_path / "none.json", "-o", tmp_path / "r.html", code=2)
    write_tree(tmp_path / "t.json", plan(calibration(), Budget()).contents)
    assert (
        "cannot be read"
        in run(
            "report", tmp_path / "t.json", "--calibration", tmp_path / "no.npz", "-o", tmp_path / "r.html", code=2
        ).output
    )
    assert "does not exist" in run("report", tmp_path / "t.json", "-o", "/nowhere/r.html", code=2).output


def test_figures_stay_inside_their_frame():
    draw = templates().get_template("charts.html").module
    svg = draw.chart(Chart([Series("a", [0, 1, 700], [1, 2, 3.7], 0)], [], "t", "y", floor=1))
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert all(52 <= x <= 416 and 14 <= y <= 256 for x, y in points)
    assert points == sorted(points)
    tree = CandidateTree(((0,), (1,), (0, 0), (0, 3), (1, 0), (0, 3, 0)))
    svg = draw.tree(tree_chart(tree, [0.5, 0.2, 0.3, 0.1, 0.1, 0.05], "t"))
    spots = set(re.findall(r'class="node" cx="(\d+)" cy="([\d.]+)"', svg))
    assert len(spots) == tree.nodes + 1, "no two nodes in one place"


def test_a_trees_rows_follow_rank_not_the_order_of_its_nodes():
    # best guess on top: (0,), (1, 0), (1, 1), (1, 2, 0); a parent is midway between its first and last child
    tree = CandidateTree(((1,), (0,), (1, 2), (1, 0), (1, 1), (1, 2, 0)))
    assert tree_rows(tree) == [2, 3, 1, 4, 2, 3, 4]


def browse(folder, *args):
    """A real browser, without a screen."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", *args,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("kind", ["measured", "modelled"])
def test_it_is_seen_in_a_browser_light_dark_and_on_a_phone(tmp_path, kind):
    source = calibration(loads=((1, 100), (8, 100))) if kind == "measured" else modelled(bandwidth=3e12, flops=4e14)
    kinds = np.array(
        [("code", "a kind of text with quite a name")[i % 8 // 4] for i in range(len(source.trace.lengths))]
    )
    source = replace(source, trace=replace(source.trace, candidates=12, categories=kinds))  # wide tables
    page(tmp_path / "r.html", source, loads=None if kind == "measured" else [(b, 512) for b in (1, 4, 16, 64)])
    url = (tmp_path / "r.html").as_uri()
    brightness = {}
    for scheme, value in (("light", 1), ("dark", 0)):
        shot = tmp_path / f"{scheme}.png"
        browse(
            tmp_path,
            f"--blink-settings=preferredColorScheme={value}",
            "--window-size=1200,2000",
            f"--screenshot={shot}",
            url,
        )
        pixels = imread(shot)[..., :3]
        assert pixels.shape[:2] == (2000, 1200)
        brightness[scheme] = float(np.median(pixels))
        ink = np.abs(pixels - pixels[2, 2]).max(axis=-1) > 0.25
        assert 0.01 < ink.mean() < 0.4, "text and figures on a calm ground"
        assert ink[:300].any()
        assert ink[1000:1500].any()
        colours = np.unique((pixels[ink] * 7).astype(int), axis=0)
        assert len(colours) > 20, "figures in colour"
    assert brightness["light"] > 0.95
    assert brightness["dark"] < 0.15

    (tmp_path / "phone.html").write_text(
        f"""<iframe id="f" src="{url}" width="375" height="800"></iframe><p id="out"></p><script>
        document.getElementById("f").onload = e => {{
          const d = e.target.contentDocument, w = d.documentElement;
          const small = [...d.querySelectorAll("svg.chart text")].map(t => t.getBoundingClientRect().height);
          const wide = [...d.querySelectorAll("section, h1, p, dl, figcaption, svg.chart")].filter(n => n.getBoundingClientRect().right > 376).length;
          document.getElementById("out").textContent = JSON.stringify({{width: w.scrollWidth, small: Math.min(...small), wide}});
        }};</script>"""
    )
    dom = browse(tmp_path, "--virtual-time-budget=3000", "--dump-dom", (tmp_path / "phone.html").as_uri()).stdout
    seen = json.loads(re.search(r'<p id="out">(\{.*?\})</p>', dom)[1])
    assert seen["width"] <= 375, "no scrolling sideways"
    assert seen["wide"] == 0
    assert seen["small"] >= 11, "letters can be read"
