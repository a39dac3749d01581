"""Run folders: none is written over, and what is in them is read whole or refused."""

import json

import pytest

from gpuprop.errors import DataError
from gpuprop.train.run import RunFolder, write_whole


def test_new_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [RunFolder.create(None, "t").path.as_posix() for _ in range(3)] == ["runs/t-1", "runs/t-2", "runs/t-3"]


def test_folder_that_is_named(tmp_path):
    path = tmp_path / "a" / "b"
    assert RunFolder.create(str(path), "t").path == path
    assert RunFolder.create(str(path), "t").path == path  # still empty
    (path / "x").touch()
    with pytest.raises(DataError, match="exists already and is kept as it is"):
        RunFolder.create(str(path), "t")
    with pytest.raises(DataError, match="exists already"):
        RunFolder.check_free(str(path / "x"))


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no config\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_config_that_cannot_be_read(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    run = RunFolder.open(tmp_path)
    with pytest.raises(DataError, match=r"config\.json"):
        run.read_json(run.config)


@pytest.mark.parametrize("tail", ["", '{"epoch": 3, "x": 1}\n', '{"epo'])
def test_log_is_cut_to_the_checkpoint(tmp_path, tail):
    run = RunFolder(tmp_path)
    lines = [json.dumps({"epoch": e}) + "\n" for e in (1, 2)]
    run.metrics.write_text("".join(lines) + tail)
    run.keep_rows(2)
    assert run.metrics.read_text() == "".join(lines)
    assert run.rows(2) == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize("text", ["", '{"epoch": 1}\n', '{"epoch": 2}\n{"epoch": 1}\n', "x\ny\n"])
def test_log_that_lacks_epochs(tmp_path, text):
    run = RunFolder(tmp_path)
    run.metrics.write_text(text)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        run.rows(2)


def test_file_is_never_half_written(tmp_path):
    path = tmp_path / "t.txt"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]
