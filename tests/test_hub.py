"""Files from the Hugging Face Hub: one revision, token and cache for config, tokenizer, heads and weights, and the commit kept."""

import json
import time
from dataclasses import replace

import pytest
import torch
from conftest import tiny_base, tiny_heads
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants
from test_checkpoint import same, save_base
from test_cli import run

from medusa_runtime import InputError, MedusaModel
from medusa_runtime.heads.checkpoint import load_heads, save_heads
from medusa_runtime.hub import Hub, Source
from medusa_tree.training.backbone import load_backbone
from medusa_tree.training.card import summary
from medusa_tree.training.recipe import Recipe
from medusa_tree.training.run import Run
from medusa_tree.training.run import run as train

CPU = torch.device("cpu")


def save(folder, seed):
    """A base with its tokenizer and heads for it, in ``base`` and ``heads``: every file is unlike another seed's."""
    base = tiny_base("llama", seed)
    base.config.pad_token_id = seed
    save_base(base, folder / "base", split=True)
    path = folder / "base" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 100 + seed}))
    heads = tiny_heads(base, heads=seed)
    save_heads(heads, folder / "heads", base_model="own/base")
    return base, heads


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two states of a base and its heads, with 2 and with 3 heads."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, {seed: save(folder / str(seed), seed) for seed in (2, 3)}


def is_all(model, saved, base_seed, heads_seed):
    """Whether weights, config and tokenizer are those of one seed, and the heads those of one."""
    weights = saved[1][base_seed][0].state_dict()
    ours = model.base.state_dict()
    return (
        all(torch.equal(ours[k], weights[k]) for k in weights)
        and model.base.config.pad_token_id == base_seed
        and model.tokenizer.model_max_length == 100 + base_seed
        and same(model.heads, saved[1][heads_seed][1])
    )


@pytest.fixture
def offline(tmp_path, saved):
    """A cache of two revisions of a base and of its heads, as huggingface_hub lays it out; nothing can be asked."""
    for repo, letter in (("base", "b"), ("heads", "c")):
        for seed, ref in ((2, "main"), (3, "v3")):
            commit = f"{letter}{seed}" * 20
            cached = tmp_path / f"models--own--{repo}"
            (cached / "snapshots").mkdir(parents=True, exist_ok=True)
            (cached / "snapshots" / commit).symlink_to(saved[0] / str(seed) / repo)
            (cached / "refs").mkdir(exist_ok=True)
            (cached / "refs" / ref).write_text(commit)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers, and counts what it is asked."""
    hub = FakeHub()
    server = hub.serve()
    reach(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield hub
    server.shutdown()
    server.server_close()


def reach(monkeypatch, endpoint):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.parametrize(
    ("named", "base_seed", "heads_seed"),
    [
        ({}, 2, 2),
        ({"revision": "v3", "heads_revision": "v3"}, 3, 3),
        ({"revision": "v3"}, 3, 2),
        ({"heads_revision": "v3"}, 2, 3),
        ({"revision": "b3" * 20, "heads_revision": "c3" * 20}, 3, 3),
    ],
)
def test_a_revision_reaches_config_tokenizer_heads_and_weights(offline, saved, named, base_seed, heads_seed):
    model = MedusaModel.from_pretrained("own/base", "own/heads", cache_dir=offline, device="cpu", **named)
    assert is_all(model, saved, base_seed, heads_seed)
    assert (model.commit, model.heads_commit) == (f"b{base_seed}" * 20, f"c{heads_seed}" * 20)


def test_a_heads_repository_has_the_revision_and_its_base_the_main_branch(offline, saved):
    model = MedusaModel.from_pretrained("own/heads", cache_dir=offline, revision="v3", device="cpu")
    assert is_all(model, saved, 2, 3)
    assert (model.name, model.commit, model.heads_commit) == ("own/base", "b2" * 20, "c3" * 20)


def test_a_backbone_for_training_has_the_revision(offline, saved):
    tokenizer, base = load_backbone("own/base", CPU, None, None, False, Hub("v3", cache_dir=offline))
    assert tokenizer.model_max_length == 103
    assert torch.equal(base.lm_head.weight, saved[1][3][0].lm_head.weight)


def test_a_training_run_has_a_revision_and_tells_its_commit(offline, tmp_path):
    rows = [{"text": " ".join(str(3 + (i * j) % 40) for j in range(1, 25))} for i in range(24)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(heads=1, max_steps=2, batch_size=4, max_length=24)
    job = Run(
        "own/base", tmp_path / "data.jsonl", tmp_path / "out", recipe, device="cpu", held_out=0.25, eval_prompts=4,
        hub=Hub("v3", cache_dir=offline),
    )  # fmt: skip
    outcome = train(job)
    assert (outcome.commit, summary(job, outcome)["commit"]) == ("b3" * 20, "b3" * 20)
    with pytest.raises(InputError, match="its run has revision 'v3', not None"):
        train(replace(job, hub=Hub(cache_dir=offline), resume=True))


def test_provenance_records_the_commits(offline, model, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(offline))
    out = tmp_path / "tree.json"
    run(
        "calibrate", "--model", "own/base", "--heads", "own/heads", "--corpus", model / "corpus.txt", "--max-new-tokens", 8,
        "--prompts", 8, "--device", "cpu", "-o", out,
    )  # fmt: skip
    made = json.loads(out.read_text())["provenance"]
    assert (made["model"]["commit"], made["heads"]["commit"]) == ("b2" * 20, "c2" * 20)


def test_a_folder_has_no_commit_and_no_revision(made, saved):
    provenance = json.loads(made.read_text())["provenance"]
    assert provenance["model"]["commit"] is None
    assert provenance["heads"]["commit"] is None
    folder = saved[0] / "2" / "base"
    with pytest.raises(InputError, match="base: is a folder, which has no revision 'v3'"):
        MedusaModel.from_pretrained(folder, revision="v3")
    with pytest.raises(InputError, match="--heads-revision v3: is of the repository that --heads names"):
        MedusaModel.from_pretrained(folder, heads_revision="v3")


def test_a_branch_is_asked_for_once_and_all_files_are_of_that_commit(hub, tmp_path, saved):
    base, heads = hub.push("own/base", saved[0] / "2" / "base"), hub.push("own/heads", saved[0] / "2" / "heads")
    model = MedusaModel.from_pretrained("own/base", "own/heads", cache_dir=tmp_path, device="cpu")
    assert is_all(model, saved, 2, 2)
    assert (model.commit, model.heads_commit) == (base, heads)
    by_branch = {(repo, file) for _, repo, revision, file, _ in hub.asked if revision == "main"}
    assert by_branch == {("own/base", "config.json"), ("own/heads", "config.json")}
    assert {revision for _, _, revision, _, _ in hub.asked} == {"main", base, heads}


def test_a_branch_that_moved_is_followed_and_without_network_the_newest_known_is_used(
    hub, tmp_path, saved, monkeypatch
):
    hub.push("own/base", saved[0] / "2" / "base")
    hub.push("own/heads", saved[0] / "2" / "heads")
    load = {"model": "own/base", "heads": "own/heads", "cache_dir": tmp_path, "device": "cpu"}
    assert is_all(MedusaModel.from_pretrained(**load), saved, 2, 2)
    moved = hub.push("own/base", saved[0] / "3" / "base"), hub.push("own/heads", saved[0] / "3" / "heads")
    assert is_all(MedusaModel.from_pretrained(**load), saved, 3, 3)
    reach(monkeypatch, "http://127.0.0.1:1")  # nobody listens there
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited to ask again"))
    model = MedusaModel.from_pretrained(**load)
    assert is_all(model, saved, 3, 3)
    assert (model.commit, model.heads_commit) == moved
    assert is_all(MedusaModel.from_pretrained(**load, local_files_only=True), saved, 3, 3)
    with pytest.raises(InputError, match="the Hugging Face Hub did not give it"):
        MedusaModel.from_pretrained(**load, force_download=True)


def test_the_token_opens_a_private_repository_for_every_file(hub, tmp_path, saved):
    hub.push("own/base", saved[0] / "2" / "base")
    hub.push("own/heads", saved[0] / "2" / "heads")
    hub.private |= {"own/base", "own/heads"}
    load = {"model": "own/base", "heads": "own/heads", "cache_dir": tmp_path, "device": "cpu"}
    with pytest.raises(InputError, match="own/base: no such folder here, and the Hugging Face Hub did not give it"):
        MedusaModel.from_pretrained(**load, token=False)
    hub.asked.clear()
    assert is_all(MedusaModel.from_pretrained(**load, token=TOKEN), saved, 2, 2)
    assert {token for *_, token in hub.asked} == {TOKEN}
    assert TOKEN not in repr(Hub(token=TOKEN))


def test_force_download_takes_every_file_again(hub, tmp_path, saved):
    hub.push("own/base", saved[0] / "2" / "base")
    hub.push("own/heads", saved[0] / "2" / "heads")
    load = {"model": "own/base", "heads": "own/heads", "cache_dir": tmp_path, "device": "cpu"}
    MedusaModel.from_pretrained(**load)
    first = {(repo, file) for method, repo, _, file, _ in hub.asked if method == "GET"}
    for again, taken in ((False, set()), (True, first)):
        hub.asked.clear()
        MedusaModel.from_pretrained(**load, force_download=again)
        assert {(repo, file) for method, repo, _, file, _ in hub.asked if method == "GET"} == taken
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted <= {file for repo, file in first if repo == "own/base"}
    assert {file for repo, file in first if repo == "own/heads"} == {"config.json", "medusa_lm_head.safetensors"}


def test_what_a_repository_does_not_have_is_none_and_heads_need_no_config(hub, tmp_path, saved, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "medusa_lm_head.safetensors").symlink_to(saved[0] / "2" / "heads" / "medusa_lm_head.safetensors")
    commit = hub.push("own/bare", bare)
    source = Source.of("own/bare", Hub(cache_dir=tmp_path / "cache"))
    assert source.commit == commit
    assert source.file("medusa_lm_head.pt") is None
    assert same(load_heads(source), saved[1][2][1])
    with pytest.raises(InputError, match=r"own/bare: no config\.json there"):
        MedusaModel.from_pretrained("own/bare", cache_dir=tmp_path / "cache")
    reach(monkeypatch, "http://127.0.0.1:1")
    again = Source.of("own/bare", Hub(cache_dir=tmp_path / "cache"))
    assert again.commit == commit
    assert same(load_heads(again), saved[1][2][1])


@pytest.mark.parametrize(
    ("where", "named", "words"),
    [
        ("own/nothing", {}, "own/nothing: no such folder here, and the Hugging Face Hub did not give it"),
        ("own/base", {"revision": "v9"}, "own/base: has no revision 'v9' on the Hugging Face Hub"),
        ("own/base/more", {}, "no such folder here, and no Hugging Face Hub id"),
        ("own--/..base", {}, "own--/..base: no such folder here"),
        ("", {}, "no Hugging Face Hub id"),
    ],
)
def test_wrong_names_are_told_at_once(hub, tmp_path, saved, monkeypatch, where, named, words):
    hub.push("own/base", saved[0] / "2" / "base")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited to ask again"))
    with pytest.raises(InputError, match=words):
        MedusaModel.from_pretrained(where, cache_dir=tmp_path, **named)


def test_without_network_a_repository_that_is_not_cached_is_told_at_once(offline, monkeypatch):
    reach(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waited to ask again"))
    with pytest.raises(InputError, match=r"own/base: no such folder here, .* did not give it at revision 'v9'"):
        MedusaModel.from_pretrained("own/base", cache_dir=offline, revision="v9")
    with pytest.raises(InputError, match="only the cache was to be read, and does not hold it"):
        MedusaModel.from_pretrained("own/nothing", cache_dir=offline, local_files_only=True)
