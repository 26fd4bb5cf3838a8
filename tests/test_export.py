"""Exports: each engine's form, and what each engine could not run refused with the mend."""

import ast
import json
from dataclasses import replace

import pytest
from conftest import trees
from hypothesis import given
from test_plan import calibration

from medusa_runtime import CandidateTree, InputError
from medusa_runtime.book import Lookup
from medusa_runtime.treefile import Book, BookTree, Drafted, Estimate
from medusa_tree.engines import FORMATS
from medusa_tree.engines.export import export_tree
from medusa_tree.planning.budget import Budget
from medusa_tree.planning.compare import published_tree
from medusa_tree.planning.plan import plan

medusa, tensorrt_llm, vllm, sglang, linear, eagle, hydra, plain = (
    FORMATS[n] for n in ("medusa", "tensorrt-llm", "vllm", "sglang", "linear", "eagle", "hydra", "json")
)
UNIFORM = CandidateTree(((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)))


def test_every_format_takes_the_published_list_or_says_why():
    tree = published_tree("mc_sim_7b_63")
    assert tree.nodes == 63
    refused = {"vllm": "same number of children", "linear": "63 nodes, 4 deep, is no chain"}
    for name, engine in FORMATS.items():
        if name in refused:
            with pytest.raises(InputError, match=refused[name]):
                engine.export(tree)
        else:
            text, hint = engine.export(tree)
            assert text
            assert hint


def test_the_best_of_n_nodes_is_exported_only_where_the_file_holds_it():
    free = plan(calibration(), Budget(max_nodes=4)).contents
    assert len(json.loads(export_tree(free, "medusa", nodes=32)[0])) == 32
    with pytest.raises(InputError, match=r"best trees of up to 32 nodes; plan with --max-nodes 33"):
        export_tree(free, "medusa", nodes=33)
    bound = plan(calibration(), Budget(), engine="linear").contents
    with pytest.raises(InputError, match="planned within what linear takes"):
        export_tree(bound, "medusa", nodes=2)


def test_sglang_is_told_the_settings_that_were_planned():
    contents = plan(calibration(), Budget(), engine="sglang").contents
    point = contents.operating_points[0]
    assert point.nodes > 0
    assert json.loads(export_tree(contents, "sglang")[0]) == point.engine


@given(trees(width=10))
def test_lists_hold_every_path_parents_first(tree):
    for engine in (medusa, hydra, eagle):
        paths = json.loads(engine.export(tree)[0])
        assert sorted(map(tuple, paths)) == sorted(tree.paths)
        assert CandidateTree(tuple(map(tuple, paths))).nodes == tree.nodes


@pytest.mark.parametrize("engine", [medusa, hydra, eagle])
def test_ranks_over_nine_are_refused(engine):
    with pytest.raises(InputError, match=r"path \[10\]; plan --engine medusa"):
        engine.export(CandidateTree(((0,), (10,))))


def test_tensorrt_llm_refuses_gaps_in_the_first_level():
    assert json.loads(tensorrt_llm.export(CandidateTree(((1,), (0,), (0, 5))))[0]) == [[0], [1], [0, 5]]
    assert "--max_draft_len 3" in tensorrt_llm.export(CandidateTree(((1,), (0,), (0, 5))))[1]
    with pytest.raises(InputError, match=r"\[1\] is not in the tree while \[2\] is"):
        tensorrt_llm.export(CandidateTree(((0,), (2,))))


def test_vllm_takes_uniform_trees_as_a_string_of_tuples():
    config = json.loads(vllm.export(UNIFORM)[0])
    assert config["num_speculative_tokens"] == 10
    tuples = ast.literal_eval(config["speculative_token_tree"])
    assert tuples == sorted(UNIFORM.paths, key=lambda p: (len(p), p))
    assert json.loads(vllm.export(CandidateTree.chain(2))[0])["speculative_token_tree"] == "[(0,), (0, 0)]"


@pytest.mark.parametrize(
    "paths",
    [((0,), (1,), (0, 0)), ((1,),), ((0,), (1,), (0, 0), (1, 1)), ((0,), (1,), (0, 0), (0, 1), (1, 0))],
)
def test_vllm_refuses_uneven_levels(paths):
    with pytest.raises(InputError, match="same number of children"):
        vllm.export(CandidateTree(paths))


def test_sglang_gets_the_triple_and_linear_the_length():
    tree = CandidateTree(((0,), (1,), (0, 0), (0, 3), (1, 0)))
    triple = json.loads(sglang.export(tree)[0])
    assert triple == {"speculative_num_steps": 2, "speculative_eagle_topk": 4, "speculative_num_draft_tokens": 6}
    assert json.loads(sglang.export(CandidateTree.chain(3))[0])["speculative_eagle_topk"] == 1
    assert json.loads(linear.export(CandidateTree.chain(3))[0]) == {"num_speculative_tokens": 3}


@given(trees())
def test_plain_json_rebuilds_the_tree(tree):
    data = json.loads(plain.export(tree)[0])
    rebuilt = {0: ()}
    for i in range(1, tree.nodes + 1):
        rebuilt[i] = (*rebuilt[data["parents"][i]], data["ranks"][i])
        assert len(rebuilt[i]) == data["depths"][i]
    assert tuple(rebuilt[i] for i in range(1, tree.nodes + 1)) == tree.paths


def test_lookup_alone_is_told_in_the_flags_of_engines():
    made = plan(calibration(), Budget()).contents
    point = made.operating_points[0]
    one = Estimate(1.0, 1.0, 1.0)
    trees = (BookTree(0, (), 0, 0.5), BookTree(2, (), 5, 0.25), BookTree(4, (), 9, 0.25))
    book = Book(Lookup(longest=12), trees, one, one, one, one, one, Drafted(0.0, 0.0, 0.5))
    alone = replace(point, batch=4, nodes=0, depth=0, own=None, book=book)
    bare = replace(made, operating_points=(alone,), paths=(), path_frequency=(), heads=0, head_accuracy=())
    with pytest.raises(InputError) as refused:
        export_tree(bare, "vllm", batch=3)
    said = str(refused.value)
    assert said.startswith(f"at batch 4, context {point.context} lookup alone was planned")
    config = json.loads(said.split("--speculative-config '")[1].split("'")[0])
    assert config == {
        "method": "ngram", "num_speculative_tokens": 9, "prompt_lookup_min": 2, "prompt_lookup_max": 12,
    }  # fmt: skip
    assert "SGLang --speculative-algorithm NGRAM --speculative-num-draft-tokens 10" in said
    assert "llama-lookup --draft-max 9" in said
    assert said.endswith("generate(prompt_lookup_num_tokens=9)")
    with pytest.raises(InputError, match=r"--nodes 5: lookup alone was planned, .* plan with --drafts both"):
        export_tree(bare, "medusa", nodes=5)
