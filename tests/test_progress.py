"""Long work shows itself: a line now and then where there is no terminal, on a clock of our own."""

import pytest

from medusa_tree.cli import progress
from medusa_tree.cli.common import progress_bars
from medusa_tree.cli.progress import lines


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def told():
    return []


@pytest.fixture
def clock():
    return Clock()


def work(report, clock, stage, total, seconds):
    """A stage whose every part takes so long."""
    report(stage, 0, total)
    for done in range(1, total + 1):
        clock.now += seconds
        report(stage, done, total)


def test_a_line_every_half_minute_and_one_at_the_end(told, clock):
    work(lines(told.append, clock), clock, "Profiling heads (prompts)", 2000, 0.0625)
    assert told == [
        "Profiling heads (prompts): 480 of 2,000, 16.0 a second, 0:00:30 elapsed, 0:01:35 left",
        "Profiling heads (prompts): 960 of 2,000, 16.0 a second, 0:01:00 elapsed, 0:01:05 left",
        "Profiling heads (prompts): 1,440 of 2,000, 16.0 a second, 0:01:30 elapsed, 0:00:35 left",
        "Profiling heads (prompts): 1,920 of 2,000, 16.0 a second, 0:02:00 elapsed, 0:00:05 left",
        "Profiling heads (prompts): 2,000 of 2,000, 16.0 a second, 0:02:05 elapsed",
    ]


def test_what_is_slow_is_told_by_the_minute_and_with_its_reports(told, clock):
    report = lines(told.append, clock)
    work(report, clock, "Timing steps (rounds)", 2, 100)
    assert told == [
        "Timing steps (rounds): 1 of 2, 0.6 a minute, 0:01:40 elapsed, 0:01:40 left",
        "Timing steps (rounds): 2 of 2, 0.6 a minute, 0:03:20 elapsed",
    ]
    report("Timing steps (rounds)", 2, 2)
    assert len(told) == 2


def test_short_stages_are_silent_but_not_all_of_them(told, clock):
    report = lines(told.append, clock)
    work(report, clock, "short", 5, 4)
    assert told == []
    work(report, clock, "another", 5, 3)
    assert [t.split(",")[0] for t in told] == ["another: 4 of 5", "another: 5 of 5"]
    work(report, clock, "third", 5, 1)
    assert len(told) == 2


def test_work_that_goes_on_from_a_checkpoint_has_the_rate_of_what_it_does(told, clock):
    report = lines(told.append, clock)
    report("Training (steps)", 500, 1000)
    clock.now += 50
    report("Training (steps)", 600, 1000)
    assert told == ["Training (steps): 600 of 1,000, 2.0 a second, 0:00:50 elapsed, 0:03:20 left"]


def test_a_stage_that_is_done_again_is_told_of_again(told, clock):
    report = lines(told.append, clock)
    work(report, clock, "Judging", 2, 40)
    work(report, clock, "Judging", 2, 40)
    assert [t.split(",")[0] for t in told] == ["Judging: 1 of 2", "Judging: 2 of 2"] * 2
    assert told[3].endswith("0:01:20 elapsed")


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)


def shown(capsys):
    with progress_bars() as report:
        report("Profiling [heads] (prompts)", 0, 3)
        report("Profiling [heads] (prompts)", 3, 3)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_lines_where_there_is_no_terminal(capsys, often):
    first, last = shown(capsys).splitlines()
    assert first == "Profiling [heads] (prompts): 0 of 3"
    assert last.startswith("Profiling [heads] (prompts): 3 of 3, ")


def test_bars_in_a_terminal(capsys, often, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    told = shown(capsys)
    assert "3/3" in told
    assert "3 of 3" not in told


def test_only_the_first_process_shows_its_own(capsys, often, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert shown(capsys) == ""
    monkeypatch.setenv("RANK", "0")
    assert "3 of 3" in shown(capsys)
