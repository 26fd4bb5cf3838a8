"""Files are written whole or not at all, whoever else writes them."""

import os
import stat
import threading

import numpy as np
import pytest

from medusa_runtime import InputError
from medusa_runtime.files import write_beside


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_two_writers_side_by_side_both_succeed_and_one_whole_file_stays(tmp_path):
    path, both, errors = tmp_path / "tree.json", threading.Barrier(2), []

    def write(text):
        try:
            with write_beside(path) as beside:
                beside.write_text(text)
                both.wait(10)  # both are written, neither renamed
        except (InputError, threading.BrokenBarrierError) as error:
            errors.append(error)

    texts = ["a" * 100_000, "b" * 50_000]
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_any_new_file(tmp_path, umask, mask, wanted):
    umask(mask)
    with write_beside(tmp_path / "new") as beside:
        beside.write_text("x")
    assert mode(tmp_path / "new") == wanted


def test_a_file_that_was_there_keeps_its_mode(tmp_path, umask):
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(0o640)
    with write_beside(path) as beside:
        beside.write_text("new")
    assert (path.read_text(), mode(path)) == ("new", 0o640)


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path, failure):
    path = tmp_path / "tree.json"
    path.write_text("old")
    with pytest.raises(failure), write_beside(path) as beside:  # noqa: PT012
        beside.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_looks_at_the_ending_sees_the_right_one(tmp_path):
    with write_beside(tmp_path / "trace.npz") as beside:
        np.savez(beside, a=np.arange(3))  # appends .npz where it is not there
    assert np.load(tmp_path / "trace.npz")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["tree.json", "t" * 240 + ".json"])
def test_any_name_that_a_file_can_have_is_written(tmp_path, name):
    with write_beside(tmp_path / name) as beside:
        beside.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_not_there_or_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere" / "tree.json", tmp_path / "file" / "tree.json"):
        (tmp_path / "file").write_text("no folder")
        with (
            pytest.raises(InputError, match=r"tree\.json: cannot be written .*make the folder or choose another"),
            write_beside(path) as beside,
        ):
            beside.write_text("x")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(InputError, match=r"folder: cannot be written \(Is a directory\)"),
        write_beside(tmp_path / "folder") as beside,
    ):
        beside.write_text("x")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):  # root may write anywhere: say what the system says to others

        def refuse(path, mode=0o777):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "mkdir", refuse)
    with (
        pytest.raises(InputError, match=r"tree\.json: cannot be written \(Permission denied\)"),
        write_beside(locked / "tree.json") as beside,
    ):
        beside.write_text("x")
    assert list(locked.iterdir()) == []
