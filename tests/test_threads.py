"""Threads on a CPU that others work on, too."""

import pytest
import torch

from medusa_tree.devices import threads
from medusa_tree.devices.threads import best_threads, settle_threads


@pytest.fixture
def two(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({2: 1.0, 1: 1.8}, 2), ({2: 1.0, 1: 0.9}, 2), ({2: 1.0, 1: 0.7}, 2), ({2: 10.0, 1: 1.0}, 1),
        ({8: 5.0, 4: 1.0, 2: 1.6, 1: 3.0}, 4), ({8: 5.0, 4: 1.0, 2: 1.0, 1: 1.0}, 4), ({1: 1.0}, 1),
    ],
)  # fmt: skip
def test_fewer_threads_are_taken_where_they_are_clearly_faster(seconds, best):
    assert best_threads(seconds) == best


def test_what_is_chosen_is_set_and_told(two, monkeypatch):
    monkeypatch.setattr(threads, "_burst", lambda n: 10.0 if n == 2 else 1.0)
    assert "1 thread instead of 2" in settle_threads()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "_burst", lambda n: 1.0)
    assert settle_threads() == ""
    assert torch.get_num_threads() == 2


def test_a_users_choice_stands(two, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "_burst", lambda n: 10.0 if n == 2 else 1.0)
    assert settle_threads() == ""
    assert torch.get_num_threads() == 2


def test_it_takes_a_moment_only(two):
    """Whatever the machine does meanwhile: a burst ends by the clock."""
    assert threads._burst(2) > 0
    assert threads._burst(1) > 0
    assert 1 <= torch.get_num_threads() <= 2
