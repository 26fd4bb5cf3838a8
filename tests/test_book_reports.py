"""What people see of a book: show, export, comparison, tables, notes, the page, categories and validation."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from books import figures, three_trees, with_books, with_text
from rich.console import Console
from test_cli import run, words
from test_plan import calibration as random_calibration
from test_validate import EXACT, validation

from medusa_runtime.book import Lookup, TreeBook
from medusa_runtime.errors import InputError
from medusa_runtime.tree import CandidateTree
from medusa_runtime.treefile import Drafted, Estimate, read_tree, write_tree
from medusa_tree.engines.export import export_tree
from medusa_tree.planning.book import plan_book
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.calibration import calibration_path, save_calibration
from medusa_tree.planning.categories import acceptance_by_category, by_category
from medusa_tree.planning.compare import compare, contender, fit_to_heads, lookup_alone
from medusa_tree.planning.lookup import prices_at
from medusa_tree.planning.notes import _three_digits, notes, roofline_line
from medusa_tree.planning.plan import plan
from medusa_tree.planning.played import play
from medusa_tree.reports.books import drafted_line, range_name, ranges, what_numbers_say
from medusa_tree.reports.categories import categories, category_table
from medusa_tree.reports.charts import links, percent, tree_chart
from medusa_tree.reports.figures import drawn, speed
from medusa_tree.reports.page import write_page
from medusa_tree.reports.plots import plan_plot
from medusa_tree.reports.summary import categories_json, summary
from medusa_tree.reports.tables import comparison, comparison_table, points_table
from medusa_tree.reports.validation import validation_report
from medusa_tree.traces.bookreplay import BookReplay, replay_book
from medusa_tree.traces.lookup import look_up
from medusa_tree.traces.replay import replay
from medusa_tree.validation.acceptance import DraftedBy
from medusa_tree.validation.prompts import replay_beginning


def texted(**kwargs):
    made = random_calibration(**kwargs)
    return replace(made, trace=with_text(made.trace))


@pytest.fixture(scope="module")
def source():
    return texted()


@pytest.fixture(scope="module")
def booked(source):
    """A plan whose point has a book."""
    made = plan(source, Budget())
    return replace(made, contents=with_books(made.contents, source))


@pytest.fixture
def file(booked, source, tmp_path):
    """tree.json with a book, and its calibration beside it."""
    path = tmp_path / "t.json"
    write_tree(path, booked.contents)
    save_calibration(calibration_path(path), source)
    return path


def printed(*parts, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in parts:
        console.print(part)
    return console.export_text()


@pytest.mark.parametrize(
    ("first", "end", "name"),
    [
        (0, 1, "no match"), (0, None, "any match or none"), (0, 3, "up to 2"), (1, 3, "1 to 2"), (2, 3, "2"), (3, None, "3 and more"),
    ],
)  # fmt: skip
def test_ranges_are_named_in_words(first, end, name):
    assert range_name(first, end) == name


def test_show_tells_each_range_and_draws_its_tree(file, booked, tmp_path):
    point = booked.contents.operating_points[0]
    text = run("show", file).output
    shares = [f"{percent(t.share)}%" for t in point.book.trees]
    assert all(
        f"{name}, {share} of steps" in text
        for name, share in zip(("no match", "1 to 2", "3 and more"), shares, strict=True)
    )
    assert text.count("own next token") == 3
    assert text.count("lookup  4 tokens") == text.count("lookup  8 tokens") == 1
    row = next(line for line in text.splitlines() if line.startswith(" 3 and more"))
    assert row.split()[-3:] == ["8", "0", "8"], "nodes, heads read, chain"
    assert f"acceptance length {point.book.acceptance_length.value:.2f}" in words(run("show", file))
    assert f"Heads alone: {point.nodes} nodes" in text
    assert f"{point.book.drafted.lookup:.2f} by lookup alone" in text
    data = json.loads(run("show", file, "--json").stdout)
    assert [t["match"] for t in data["book"]["trees"]] == [t["match"] for t in data["trees"]] == [0, 1, 3]
    assert data["trees"][0]["paths"] == data["paths"], "the heads' tree, here"
    assert data["trees"][2] == {"match": 3, "share": point.book.trees[2].share, "paths": [], "lookup": 8}
    run("show", file, "--png", tmp_path / "book.png")
    write_tree(tmp_path / "one.json", plan(random_calibration(), Budget()).contents)
    run("show", tmp_path / "one.json", "--png", tmp_path / "one.png")
    assert (tmp_path / "book.png").read_bytes().startswith(b"\x89PNG")
    alone = run("show", tmp_path / "one.json").output
    assert "match" not in alone
    assert alone.count("own next token") == 1
    assert json.loads(run("show", tmp_path / "one.json", "--json").stdout)["trees"] == []


def test_a_chain_is_drawn_below_the_paths_and_a_long_one_cut_short():
    tree = CandidateTree(((0,), (1,), (0, 0)), 5)
    chart = tree_chart(tree, [0.5, 0.2, 0.3], "t")
    chain = [n for n in chart.nodes if n.chain]
    assert [n.name for n in chain] == list("12345")
    assert [n.parent for n in chain] == [0, 4, 5, 6, 7]
    assert {n.y for n in chain} == {max(n.y for n in chart.nodes)}
    assert len({(n.x, n.y) for n in chart.nodes}) == len(chart.nodes), "no two nodes in one place"
    assert all(n.x < chart.width and n.y < chart.height for n in chart.nodes)
    assert links(12) == list(range(1, 13))
    assert (len(links(128)), links(128)[-2:]) == (12, [0, 128])
    alone = tree_chart(CandidateTree(lookup=3), [], "t")
    assert len({n.y for n in alone.nodes}) == 1
    assert [n.chain for n in tree_chart(CandidateTree(), [], "t").nodes] == [False]


def test_engines_get_the_heads_tree_and_are_told_what_they_go_without(booked, source):
    contents = booked.contents
    text, hint = export_tree(contents, "medusa")
    plain_text, plain_hint = export_tree(plan(random_calibration(), Budget()).contents, "medusa")
    assert text == plain_text
    more = contents.operating_points[0].book.over_heads.value
    assert hint.startswith(plain_hint)
    assert f"predicted to make {more:.2f} (" in hint
    assert "cannot switch trees by match length" in hint
    assert export_tree(contents, "medusa", nodes=4)[1] == plain_hint, "a size that was asked for is not the point's"


def test_where_lookup_alone_was_planned_there_is_no_tree_but_names_for_it(booked, source):
    contents = booked.contents
    point = replace(contents.operating_points[0], nodes=0, depth=0, own=None)
    alone = figures(contents, point, source, lookup_alone(6, Lookup()))
    planned = replace(contents, operating_points=(alone,))
    with pytest.raises(
        InputError, match=r"lookup alone.*\"num_speculative_tokens\": 6.*NGRAM.*prompt_lookup_num_tokens=6.*--nodes N"
    ):
        export_tree(planned, "vllm")
    assert export_tree(planned, "medusa", nodes=3)[0]
    headless = replace(planned, paths=(), path_frequency=(), heads=0, head_accuracy=())
    with pytest.raises(InputError, match=r"prompt_lookup_num_tokens=6\)$"):
        export_tree(headless, "medusa")
    assert "slower" not in " ".join(notes(source, replace(booked, contents=planned)))
    assert any(
        "lookup alone is faster than plain decoding" in n for n in notes(source, replace(booked, contents=planned))
    )


def test_a_compared_book_is_its_replay_at_the_time_of_its_trees(booked, source):
    contents, point = booked.contents, booked.contents.operating_points[0]
    _, held = source.trace.split()
    latency, book = source.latency.curve(1, 100), contents.book_of(point)
    rows = compare([("heads", contents.tree_of(point)), ("book", book)], held, latency, (1, 100), "measured")
    found = replay_book(book, held, look_up(held, book.lookup))
    each = [float(latency.at(t.nodes, t.heads)) for t in book.trees]
    seconds = float((found.used @ each).sum())
    told = rows[1].point
    assert told.acceptance_length.value == pytest.approx(found.acceptance_length, rel=1e-5)
    assert told.tokens_per_s.value == pytest.approx(held.positions / seconds, rel=1e-5)
    assert told.step_latency_ms.value == pytest.approx(1e3 * seconds / found.steps.sum(), rel=1e-5)
    assert told.speedup.value == pytest.approx(10e-3 * held.positions / seconds, rel=1e-5)
    assert rows[1].rate_ratio.value == pytest.approx(point.book.over_heads.value, rel=1e-6)
    assert [rows[1].rate_ratio.low, rows[1].rate_ratio.high] == pytest.approx(
        [point.book.over_heads.low, point.book.over_heads.high]
    )
    drafted = rows[1].drafted
    assert 1 + drafted.both + drafted.heads + drafted.lookup == pytest.approx(found.acceptance_length)
    assert rows[0].drafted is None
    assert rows[0].point == replace(point, book=None, limit=rows[0].point.limit, own=None, why_own="")
    padded = play(book, held, latency, 1, padded=True)
    assert padded.seconds == pytest.approx(found.steps * float(latency.at(book.nodes, book.heads)))
    with pytest.raises(InputError, match="lookup of 40: has 40 nodes, but step latency is known up to 32"):
        compare([contender("lookup:40", (1, 100))], held, latency, (1, 100), "measured")


def test_in_a_batch_all_wait_for_the_slowest(source, booked):
    _, held = source.trace.split()
    latency, book = source.latency.curve(1, 100), booked.contents.book_of(booked.contents.operating_points[0])
    one, many = (play(book, held, latency, batch).milliseconds.value for batch in (1, 64))
    slowest = 1e3 * max(float(latency.at(t.nodes, t.heads)) for t in book.trees)
    assert one < many <= slowest * (1 + 1e-6)
    assert many == pytest.approx(slowest, rel=1e-3)


def test_a_book_is_fitted_to_the_heads_there_are(source):
    book = three_trees(CandidateTree(((0,), (0, 0), (0, 0, 0), (1,))))
    short = replace(source.trace, ranks=source.trace.ranks[:, :1])
    name, cut = fit_to_heads("b", book, short)
    assert name == "b, 1 levels"
    assert [t.paths for t in cut.trees] == [((0,), (1,)), ((0,),), ()]
    assert [t.lookup for t in cut.trees] == [0, 4, 8]


def test_compare_knows_lookup_books_and_the_heads_alone(file, booked, source):
    names = ("plain", "lookup:8", file, f"{file}#heads")
    data = json.loads(run("compare", *names, "--calibration", calibration_path(file), "--json").stdout)["compared"]
    point = booked.contents.operating_points[0]
    assert [r["tree"] for r in data] == ["plain decoding", "lookup of 8", str(file), f"{file}#heads"]
    assert data[1]["book"]["trees"][1] == {"match": 1, "nodes": 8, "heads": 0, "lookup": 8}
    assert data[1]["drafted"]["heads"] == data[1]["drafted"]["both"] == 0
    assert [t["match"] for t in data[2]["book"]["trees"]] == [0, 1, 3]
    assert data[2]["speedup"]["value"] == pytest.approx(point.book.speedup.value, rel=1e-5)
    assert data[3]["speedup"] == pytest.approx(
        {"value": point.speedup.value, "low": point.speedup.low, "high": point.speedup.high}
    )
    assert data[3]["book"] is None
    text = run("compare", "plain", "lookup:8", "--calibration", calibration_path(file)).output
    assert re.search(r"lookup of 8 +0-8 +0 ", text)
    assert re.search(
        r"lookup of 8, accepted tokens a step behind the root: 0\.\d\d by lookup alone\.", " ".join(text.split())
    )
    for wrong, said in (
        ("lookup:129", "1 to 128"),
        ("lookup:0", "neither a file"),
        ("no.json#heads", "neither a file"),
    ):
        assert said in words(run("compare", wrong, "--calibration", calibration_path(file), code=2))
    textless = replace(source, trace=replace(source.trace, text=None))
    save_calibration(calibration_path(file), textless)
    assert "holds no token ids" in words(run("compare", "lookup:8", "--calibration", calibration_path(file), code=2))


def test_a_text_of_ones_own_that_is_not_at_hand_is_named(source):
    _, held = source.trace.split()
    beside = tuple(held.text.outputs[0].tolist())
    book = lookup_alone(8, Lookup(file="notes.txt", digest="d"), beside)
    latency = source.latency.curve(1, 100)
    with pytest.raises(InputError, match=r"notes\.txt: the book looks up in this text, whose tokens are not at hand"):
        play(replace(book, beside=()), held, latency, 1)
    without = play(replace(book, beside=(), lookup=Lookup()), held, latency, 1)
    assert play(book, held, latency, 1).length.value > without.length.value


def test_the_tables_of_a_plan_have_lookup_and_the_book(booked, source):
    contents, point = booked.contents, booked.contents.operating_points[0]
    rows = comparison(source, booked, point)
    assert [r.name for r in rows][-3:] == ["lookup of 8", "chosen tree", "tree book"]
    table = printed(comparison_table(rows, "d", bold=rows[-1].name), width=80)
    least = min(t.nodes for t in contents.book_of(point).trees)
    assert re.search(rf"tree book +{least}-{contents.book_of(point).nodes} ", table)
    assert all(len(line) <= 80 for line in table.splitlines())
    whole = replace(contents, operating_points=(point, replace(point, batch=8, book=None)))
    (first, second) = (
        line.split() for line in printed(points_table(whole, "d")).splitlines() if re.match(r" +[18] ", line)
    )
    assert first[3] == "3"
    assert f"{point.book.acceptance_length.value:.2f}" in first
    assert f"{point.acceptance_length.value:.2f}" in second
    modelled = replace(contents, operating_points=(replace(point, latency="modelled", context=32768),) * 2)
    assert all(
        line.endswith("modelled ") and len(line) <= 80
        for line in printed(points_table(modelled, "d"), width=80).splitlines()
        if "x " in line
    ), "nothing is cut"
    assert "book" not in printed(points_table(replace(contents, operating_points=(replace(point, book=None),)), "d"))
    told = summary(source, booked, {(1, 100): rows}, [])
    assert told["predicted"][-1]["drafted"]["lookup"] > 0
    assert told["operating_points"][0]["book"]["over_heads"]["value"] == point.book.over_heads.value
    assert all(n in told["notes"] for n in notes(source, booked))


def test_notes_say_how_much_faster_it_is_and_where_it_was_left_out(booked, source):
    point, contents = booked.contents.operating_points[0], booked.contents
    point = replace(point, book=replace(point.book, over_heads=Estimate(1.25, 1.125, 1.375)))
    contents = replace(contents, operating_points=(point,))
    booked = replace(booked, contents=contents)
    change = f"{100 * (point.book.over_heads.value - 1):+.1f}%"
    (line,) = [n for n in notes(source, booked) if "lookup" in n]
    assert line.startswith(
        f"At batch 1, context 100 heads and lookup are faster than the heads' tree alone: tokens/s {change} ("
    )
    several = replace(contents, operating_points=(point, replace(point, batch=8), replace(point, batch=64, book=None)))
    grid = source.latency.points
    wide = tuple(replace(p, batch=b) for p in grid for b in (1, 8, 64))
    widely = replace(source, latency=replace(source.latency, points=wide))
    told = notes(widely, replace(booked, contents=several, task=replace(booked.task, calibration=widely)))
    at = told.index("What lookup brings, measured:")
    assert [line.split(":")[0] for line in told[at + 1 : at + 4]] == [
        "  batch 1, context 100", "  batch 8, context 100", "At batch 64, context 100 the lookup earns nothing (measured)",
    ]  # fmt: skip
    both = {**contents.provenance, "plan": {**contents.provenance["plan"], "drafts": "both"}}
    without = replace(contents, operating_points=(replace(point, book=None),), provenance=both)
    assert "At batch 1, context 100 the lookup earns nothing (measured): it was left out." in notes(
        source, replace(booked, contents=without)
    )
    textless = replace(source, trace=replace(source.trace, text=None))
    nothing_to_look_in = replace(booked, contents=without, task=replace(booked.task, calibration=textless))
    assert [n for n in notes(textless, nothing_to_look_in) if "lookup" in n] == [
        "No lookup is planned, as the trace holds no token ids."
    ]
    tight = replace(booked.task, budget=Budget(ratio=1.0001))
    (said,) = [n for n in notes(source, replace(booked, contents=without, task=tight)) if "looked-up" in n]
    assert said.startswith(
        "At batch 1, context 100 the budget has no room for a looked-up token, which takes a step of "
    )
    heads = replace(without, provenance={**both, "plan": {**both["plan"], "drafts": "heads"}})
    assert not any("lookup" in n for n in notes(source, replace(booked, contents=heads)))


def test_the_page_has_a_section_of_its_own(booked, source, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa_tree.reports.page.plan", lambda *args, **kwargs: booked)
    path, contents, point = tmp_path / "r.html", booked.contents, booked.contents.operating_points[0]
    write_tree(tmp_path / "t.json", contents)
    assert not write_page(path, read_tree(tmp_path / "t.json"), source)
    html = path.read_text()
    section = html.split("<h2>Heads and lookup</h2>")[1].split("</section>")[0]
    assert [f">{row.name}</th>" in section for row in ranges(contents, point)] == [True] * 3
    assert section.count('class="tree"') == 3
    assert section.count('class="node chain"') == 12
    parts = [float(w) for w in re.findall(r'class="part p\d" x="[\d.]+" y="4" width="([\d.]+)"', section)]
    told = point.book.drafted
    shares = np.array([1, told.both, told.heads, told.lookup]) / point.book.acceptance_length.value
    assert parts == pytest.approx((430 * shares).tolist(), abs=0.1)
    assert f"{point.book.over_heads.value:.2f}" in section
    assert f"<strong>{point.book.speedup.value:.2f}x plain decoding</strong>" in html
    assert "tree book</th>" in html.split("Beside what people use")[1].split("</section>")[0]
    assert "The heads' alone, for engines that do not look up." in html
    other = replace(point.book, trees=(*point.book.trees[:2], replace(point.book.trees[2], lookup=7)))
    edited = replace(contents, operating_points=(replace(point, book=other),))
    assert "another tree" in write_page(path, edited, source)[0]
    assert "Heads and lookup" in path.read_text(), "what the file says is shown all the same"
    assert write_page(path, replace(contents, operating_points=(replace(point, book=None),)), source)


def test_a_page_without_a_book_has_none_of_it(source, tmp_path):
    write_page(tmp_path / "r.html", plan(random_calibration(), Budget()).contents, random_calibration())
    html = (tmp_path / "r.html").read_text()
    assert "Heads and lookup" not in html
    assert 'scope="col">book' not in html


def test_the_plan_is_made_again_for_the_same_drafters(source, monkeypatch):
    from medusa_tree.reports.page import replan

    asked = {}
    monkeypatch.setattr("medusa_tree.reports.page.plan", lambda *args, **kwargs: asked.update(kwargs))
    contents = plan(source, Budget()).contents
    replan(
        replace(
            contents, provenance={**contents.provenance, "plan": {**contents.provenance["plan"], "drafts": "lookup"}}
        ),
        source,
    )
    assert asked["drafts"] == "lookup"


def test_categories_have_the_books_price_beside_the_heads(source):
    kinds = np.array([("code", "chat")[i % 8 // 4] for i in range(len(source.trace.lengths))])
    parted = replace(source, trace=replace(source.trace, categories=kinds))
    made = plan(parted, Budget())
    made = replace(made, contents=with_books(made.contents, parted))
    (split,) = categories(made)
    point, held = made.contents.operating_points[0], made.task.held
    book = made.contents.book_of(point)
    found = replay_book(book, held, look_up(held, book.lookup))
    for row in split.rows:
        mine = held.categories == row.name
        assert row.book.acceptance_length.value == pytest.approx(
            found.tokens[mine].sum() / found.steps[mine].sum(), rel=1e-5
        )
        assert row.book.speedup.value == pytest.approx(row.speedup.value * row.book.over_heads.value, rel=1e-4)
        own = plan_book(
            (fit := made.task.fit.select(made.task.fit.categories == row.name)), look_up(fit, book.lookup), made.contents.paths,
            prices_at(parted.latency.curve(1, 100), (1, 100), Budget(), parted.memory, fit.heads, False), made.contents.tree_of(point),
        ).book  # fmt: skip
        alone, curve = held.select(mine), parted.latency.curve(1, 100)
        ratio = play(own, alone, curve, 1).seconds.sum() / play(book, alone, curve, 1).seconds.sum()
        assert row.book.over_own.value == pytest.approx(ratio, rel=1e-6)
        assert f"{100 * (ratio - 1):+.0f}%" in printed(category_table(split, parted), width=80)
    assert split.whole.book.over_heads.value == pytest.approx(point.book.over_heads.value, rel=1e-6)
    table = printed(category_table(split, parted), width=80)
    assert "tree book" in table
    price = split.rows[0].book.over_own.value - 1
    assert f"{split.rows[0].book.acceptance_length.value:.2f}, {100 * price:+.0f}%" in table
    assert categories_json(split)[0]["book"]["speedup"]["value"] == split.rows[0].book.speedup.value
    compared = acceptance_by_category([book, CandidateTree()], held)
    assert compared[0].lengths[0].value == pytest.approx(split.rows[0].book.acceptance_length.value, rel=1e-5)
    alone = by_category(made.task, CandidateTree(), (1, 100), lookup_alone(8, Lookup()))
    assert [(r.why, r.own) for r in alone.rows] == [("plain decoding", None)] * 2
    assert by_category(made.task, CandidateTree(), (1, 100)) is None


def test_a_shorter_run_is_looked_up_in_the_whole_text(source):
    _, held = source.trace.split()
    book = three_trees(CandidateTree(((0,), (1,), (0, 0), (0, 1))))
    played = replay_beginning(book, held, 5, 23)
    assert played.tokens.tolist() == [23] * 5
    cut = held.take(np.arange(5))
    first = [s[:23] for s in cut.sequences()]
    short = type(held).from_sequences(first, [True] * 5, held.candidates, text=cut.text)
    expected = replay_book(book, short, look_up(short, book.lookup))
    assert played.steps.tolist() == expected.steps.tolist()
    assert played.drafted.tolist() == expected.drafted.tolist()
    tree = book.trees[0]
    assert replay_beginning(tree, held, 5, 23).steps.tolist() == replay(tree, short).steps.tolist()
    assert replay_beginning(book, replace(held, text=None), 5, 23) is None
    assert replay_beginning(replace(book, lookup=Lookup(file="notes.txt", digest="sha256:0")), held, 5, 23) is None
    heads = TreeBook((tree,))
    assert replay_beginning(heads, replace(held, text=None), 5, 23).steps.tolist() == replay(tree, short).steps.tolist()


def test_heads_gone_wrong_show_behind_a_lookup_that_is_right():
    rng = np.random.default_rng(0)
    steps, lookup = rng.integers(20, 40, 24), rng.integers(30, 60, 24)
    heads = rng.integers(8, 16, 24)
    zeros = np.zeros(24, dtype=np.int64)
    replayed = BookReplay(steps + lookup + heads, steps, steps[:, None], np.stack([zeros, heads, lookup], axis=1))
    emitted = [[1] * n for n in steps.tolist()]

    def reasons(by_heads, count=24):
        counted = np.stack([zeros, by_heads, lookup], axis=1)[:count]
        some = BookReplay(*(getattr(replayed, f)[:count] for f in ("tokens", "steps", "used", "drafted")))
        return DraftedBy.of(emitted[:count], counted, Drafted(0.0, 0.5, 1.0), some).reasons

    assert reasons(heads) == []
    (reason,) = reasons(heads // 4)
    assert reason.startswith("heads had 0.2")
    assert reasons(heads // 4, 8) == [], "of few prompts nothing is said"
    assert DraftedBy.of(emitted, np.stack([zeros, heads, lookup], axis=1), Drafted(0.0, 0.5, 1.0), None).ratios == {}


def test_validation_sets_the_book_and_its_drafters_side_by_side(booked):
    point = booked.contents.operating_points[0]
    predicted, measured = Drafted(0.25, 0.5, 0.75), Drafted(0.24, 0.51, 0.76)
    by = DraftedBy(point.book.drafted, predicted, measured, 24, {"heads": Estimate(1.02, 0.9, 1.1)})
    assert by.reasons == []
    v = replace(validation(), point=point, drafted=by, decoded=booked.contents.book_of(point))
    text = printed(validation_report(v))
    assert "heads and lookup, 3 trees of" in text
    rows = {line.split("  ")[0].strip(): line.split()[-2:] for line in text.splitlines() if line.startswith(" by ")}
    assert rows == {
        "by heads and lookup alike": ["0.250", "0.240"], "by heads alone": ["0.500", "0.510"], "by lookup alone": ["0.750", "0.760"],
    }  # fmt: skip
    assert f"{point.book.speedup.value:.2f}" in text
    data = replace(v, rule=booked.contents.acceptance).to_json()
    assert data["drafted"]["replayed"] == {"both": 0.25, "heads": 0.5, "lookup": 0.75}
    assert data["speedup"]["predicted"] == point.book.speedup.value
    assert [t["match"] for t in data["book"]] == [0, 1, 3]
    assert data["book"][2] == {"match": 3, "nodes": 8, "heads": 0, "lookup": 8, "share": point.book.trees[2].share}
    assert data["lookup"]["where"] == "both"
    book = booked.contents.book_of(point)
    assert (data["nodes"], data["depth"]) == (book.nodes, book.heads), "what was decoded with"
    heads = replace(validation(), point=replace(point, book=None), rule=booked.contents.acceptance)
    assert heads.to_json()["book"] is None
    assert heads.to_json()["drafted"] is None
    assert heads.predicted.speedup == point.speedup != EXACT
    assert "by heads" not in printed(validation_report(heads))


def test_who_drafted_is_said_in_words():
    line = drafted_line(Drafted(0.1, 0.25, 1.0))
    assert (
        line
        == "accepted tokens a step behind the root: 0.10 by heads and lookup alike, 0.25 by heads alone, 1.00 by lookup alone"
    )
    assert (
        drafted_line(Drafted(0.0, 0.0, 1.0), heads=False)
        == "accepted tokens a step behind the root: 1.00 by lookup alone"
    )


@pytest.fixture(scope="module")
def bare(source):
    """A plan of lookup alone, made on a calibration with heads, whose point has a book."""
    made = plan(source, Budget(), drafts="lookup")
    book = lookup_alone(6, Lookup())
    point = figures(made.contents, made.contents.operating_points[0], source, book)
    return replace(made, contents=replace(made.contents, operating_points=(point,)))


def test_lookup_alone_is_told_without_heads(bare, source, tmp_path):
    (point,) = bare.contents.operating_points
    by = DraftedBy(point.book.drafted, None, point.book.drafted, 24, {})
    book = bare.contents.book_of(point)
    text = printed(validation_report(replace(validation(), point=point, drafted=by, decoded=book)))
    assert "lookup, 2 trees of 0-6 nodes" in text
    assert "by lookup alone" in text
    assert "heads" not in text
    write_tree(tmp_path / "t.json", bare.contents)
    shown = run("show", tmp_path / "t.json").output
    assert "lookup  6 tokens" in shown
    assert "heads" not in shown
    assert f"root: {point.book.drafted.lookup:.2f} by lookup alone." in shown


def test_the_page_of_lookup_alone_draws_chains(bare, source, tmp_path, monkeypatch):
    monkeypatch.setattr("medusa_tree.reports.page.plan", lambda *args, **kwargs: bare)
    assert not write_page(tmp_path / "r.html", bare.contents, source)
    html = (tmp_path / "r.html").read_text()
    body = html.split("<main>")[1].split("Where it comes from")[0]
    words = re.sub(r"<[^>]*>", " ", body)
    assert "Head accuracy" not in words
    assert "0 heads" not in words
    assert "Heads and lookup" not in words
    assert not re.search(r"heads read|heads' paths|head's guesses|discs|best depth", words)
    assert "heads and lookup alike" not in body, "nothing at 0.00 in the key"
    assert body.count('class="part p3"') == 2, "bar and key, in the colour of chains"
    assert "no heads" in words
    assert "chosen for" not in body, "plain decoding was not chosen"
    curves = drawn(source, bare)
    assert [len(line.split()) for line in re.findall(r'class="line c0" points="([^"]+)"', body)] == [
        len(curve.nodes) for curve in curves.values()
    ] * 3


def test_chains_are_drawn_as_compare_predicts_them(bare, source):
    (curve,) = drawn(source, bare).values()
    assert curve.nodes.tolist() == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    _, held = source.trace.split()
    for length in (1, 6, 32):
        (row,) = compare(
            [("l", lookup_alone(length, Lookup()))], held, source.latency.curve(1, 100), (1, 100), "measured"
        )
        at = curve.nodes.tolist().index(length)
        assert curve.acceptance[at] == pytest.approx(row.point.acceptance_length.value, rel=1e-5)
        assert curve.speedup[at] == pytest.approx(row.point.speedup.value, rel=1e-5)
        assert curve.tokens_per_s[at] == pytest.approx(row.point.tokens_per_s.value, rel=1e-5)
    assert curve.speedup[0] == curve.acceptance[0] == 1


def test_the_plot_of_lookup_alone_is_one_panel(bare, booked, source, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    for made in (bare, booked):
        rows = {(1, 100): comparison(source, made, made.contents.operating_points[0])}
        plan_plot(source, made, rows, tmp_path / "p.png")
    one, two = ([axis for axis in figure.axes if axis.get_title(loc="left")] for figure in saved)
    assert (len(one), len(two)) == (1, 2)
    texts = [[t.get_text() for t in axis.texts] for axis in (one[0], two[1])]
    assert texts[0] == [f"lookup: {bare.contents.operating_points[0].book.speedup.value:.2f}x"]
    assert any(t.startswith("heads and lookup: ") for t in texts[1])
    assert [t.get_text() for t in one[0].get_xticklabels()] == ["plain", "1", "2", "4", "8", "16", "32"]
    assert len(one[0].get_lines()[1].get_xdata()) > 2, "the key's line is there"


def test_a_disc_for_plain_decoding_stands_only_where_it_is_decoded(booked, source):
    curves = {load: replace(curve, chosen=0) for load, curve in booked.curves.items()}
    shapes = [[m.shape for m in speed(curves, {}, "measured", books).marks] for books in ((), booked.curves)]
    assert shapes == [["disc"], []]


def test_the_picture_of_a_book_says_what_its_numbers_are_and_has_room(file, booked, bare, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    run("show", file, "--png", tmp_path / "a.png")
    (figure,) = saved
    assert "how often all text follows its path" in figure.get_supxlabel().replace("\n", " ")
    figure.canvas.draw()
    tall = max(figure.axes, key=lambda axis: axis.get_position().height)
    rows = sorted({round(-float(y), 1) for y in tall.collections[1].get_offsets()[:, 1]})
    low, high = (tall.transData.transform((0, y))[1] for y in (-rows[1], -rows[0]))
    apart = (high - low) / figure.dpi * 72 / max(rows[1] - rows[0], 1) * 23
    assert apart > 2 * (620 / np.pi) ** 0.5, "nodes of neighbouring rows do not overlap"
    assert what_numbers_say(bare.contents.operating_points[0].book) == "In a chain a token's place behind the root."
    told = words(run("show", file))
    assert "how often all text follows its path, whatever the match length" in told
    assert "how often all text follows" in words(run("show", "--help"))


def test_nothing_is_said_that_is_surer_than_its_interval(booked, source):
    point = booked.contents.operating_points[0]
    unsure = replace(point, book=replace(point.book, over_heads=Estimate(1.583, 0.902, 3.181)))
    (line,) = [
        n
        for n in notes(source, replace(booked, contents=replace(booked.contents, operating_points=(unsure,))))
        if "lookup" in n
    ]
    assert "heads and lookup are not surely faster than the heads' tree alone: tokens/s +58.3% (-9.8 to +218.1)" in line


def test_a_fitted_roofline_is_told_without_exponents():
    told = {
        "bandwidth_gb_s": 1412.0,
        "tflops": 0.000123,
        "overhead_ms": 55.24,
        "median_error": 0.01,
        "worst_error": 0.1,
    }
    line = roofline_line(told)
    assert "1,412 GB/s, 0.000123 TFLOP/s, 55.2 ms" in line
    assert [_three_digits(x) for x in (0.0, 0.5, 100.0, 999.7, 1.4e7)] == ["0", "0.5", "100", "1,000", "14,000,000"]


def test_trees_of_heads_are_refused_where_there_are_none(file, source, tmp_path):
    headless = replace(source, trace=source.trace.without_heads())
    save_calibration(tmp_path / "bare.npz", headless)
    for tree in ("chain:4", "mc_sim_7b_63", f"{file}#heads"):
        refused = words(run("compare", "plain", tree, "--calibration", tmp_path / "bare.npz", code=2))
        assert "is a tree of heads, and the trace has no heads" in refused
    told = run("compare", "plain", file, "lookup:4", "--calibration", tmp_path / "bare.npz", "--json").stdout
    names = [row["tree"] for row in json.loads(told)["compared"]]
    assert names == ["plain decoding", f"{file}, lookup alone", "lookup of 4"]


def test_compared_names_break_between_words(booked, source):
    rows = comparison(source, booked, booked.contents.operating_points[0])
    named = [replace(rows[-2], name="both/tree.json#heads"), rows[-1]]
    table = printed(comparison_table(named, "d", first="first"), width=80)
    assert "#heads" not in table
    assert any(line.split()[:1] == ["both/tree.json,"] for line in table.splitlines())
    assert "of a book: nodes, its trees' sizes; depth, the most heads read" in " ".join(table.split())
