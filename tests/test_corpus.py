"""Prompts from a Hugging Face dataset: here a folder of data files, which the library reads like one of the Hub's."""

import json
import sys

import pytest

from medusa_runtime import InputError
from medusa_tree.profiling.corpus import Prompt, read_corpus

ROWS = [
    {"prompt_id": 7, "prompt": ["First turn", "and a second"]},
    {"prompt_id": 8, "prompt": ["Another"]},
    {"prompt_id": 9, "prompt": ["A third"]},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "bench").mkdir()
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in ROWS)
        (tmp_path / "bench" / f"{split}.jsonl").write_text(text)
    return tmp_path / "bench"


def test_rows_of_a_split_are_prompts(folder):
    name = f"hf:{folder}:test"
    assert read_corpus(name) == [Prompt(r["prompt"][0], f"{name}, row {i}", chat=True) for i, r in enumerate(ROWS)]
    assert [p.text for p in read_corpus(f"hf:{folder}:train[1:]")] == ["Another", "A third"]


def test_the_only_split_need_not_be_named(folder):
    (folder / "test.jsonl").unlink()
    assert len(read_corpus(f"hf:{folder}")) == 3


def test_what_is_no_dataset_is_named(folder, monkeypatch):
    with pytest.raises(InputError, match=r"has the splits train, test; name one, as in hf:.*:train"):
        read_corpus(f"hf:{folder}")
    with pytest.raises(InputError, match=r"hf:.*:dev: cannot be loaded \("):
        read_corpus(f"hf:{folder}:dev")
    with pytest.raises(InputError, match=r"hf:nobody/nothing: cannot be loaded \("):
        read_corpus("hf:nobody/nothing")
    with pytest.raises(InputError, match="is no hf:OWNER/NAME"):
        read_corpus("hf:")
    (folder / "train.jsonl").unlink()
    (folder / "test.jsonl").write_text('{"answer": 1}\n')
    with pytest.raises(InputError, match=r"row 0: no prompt in it"):
        read_corpus(f"hf:{folder}:test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'medusa-tree\[datasets\]'"):
        read_corpus(f"hf:{folder}:test")
