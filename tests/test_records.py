"""Records are whole, sealed and found."""

import errno
import json
import os
from pathlib import Path
import re
import subprocess
import time

import pytest

from rflw import InputError, records


def record(**changes):
    return {
        "name": "trial",
        "kind": "train",
        "command": "rflw train trial",
        "config": {},
        "config_hash": "0",
        "seed": 0,
        **records.provenance(),
        "started": records.now(),
        "wall_s": 1.0,
        "status": "done",
        "metrics": {"miou": 0.5},
    } | changes


def test_written_and_read(tmp_path):
    path = records.write(record(), tmp_path)
    assert path == tmp_path / "trial.json"
    assert records.read("trial", tmp_path)["metrics"] == {"miou": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["trial.json"]


def test_edited_numbers_are_noticed(tmp_path):
    path = records.write(record(), tmp_path)
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(InputError, match="edited by hand"):
        records.read(path)


def test_malformed_records_are_refused(tmp_path):
    incomplete = record()
    del incomplete["commit"]
    with pytest.raises(InputError, match="no commit"):
        records.write(incomplete, tmp_path)
    for text, words in (
        ("{", "not JSON"),
        ("[]", "no name"),
        (json.dumps({"name": "x"}), "no kind"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=words):
            records.read("bad", tmp_path)
    with pytest.raises(InputError, match="no such record"):
        records.read("none", tmp_path)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError):
        records.write_whole(tmp_path / "x", lambda partial: 1 / 0)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]
    with pytest.raises(InputError, match="cannot be written"):
        records.write_whole(tmp_path / "x" / "y", lambda partial: None)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("name", {"a": 1}, "text"),
        ("kind", 3, "text"),
        ("status", None, "text"),
        ("command", [], "text"),
        ("commit", 7, "text"),
        ("started", 2026, "text"),
        ("config", [], "object"),
        ("hardware", "fast", "object"),
        ("metrics", None, "object"),
        ("seed", 0.5, "whole number"),
        ("seed", True, "whole number"),
        ("wall_s", "60", "number"),
        ("wall_s", True, "number"),
        ("dirty", 0, "true or false"),
        ("versions", 1, "object"),
        ("config_hash", {}, "text"),
    ],
)
def test_entries_of_another_type_are_refused(tmp_path, field, value, words):
    path = records.write(record(**{field: value}), tmp_path, "trial")
    with pytest.raises(
        InputError,
        match=re.escape(f"trial.json: {field} is {json.dumps(value)}, which is no {words}"),
    ):
        records.read(path)


@pytest.mark.parametrize(
    ("hardware", "field"),
    [({"cores": 2}, "cpu"), ({"cpu": "Fast"}, "cores"), ({"cpu": "Fast", "cores": "2"}, "cores")],
)
def test_a_record_knows_its_machine(tmp_path, hardware, field):
    path = records.write(record(hardware=hardware), tmp_path, "trial")
    with pytest.raises(InputError, match=f"hardware.{field} is "):
        records.read(path)


def test_a_file_is_no_folder_of_records_and_one_not_made_yet_has_none(tmp_path):
    assert records.read_all(tmp_path / "later") == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is no folder of records"):
        records.read_all(tmp_path / "file")


@pytest.mark.parametrize("changes", [{"commit": None}, {"wall_s": 60}])
def test_a_record_may_know_no_commit_and_have_whole_seconds(tmp_path, changes):
    assert (
        changes.items() <= records.read(records.write(record(**changes), tmp_path, "trial")).items()
    )


def test_a_full_disk_is_named(tmp_path):
    def full(partial):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        records.write_whole(tmp_path / "x", full)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_checkout_is_dirty_and_a_replaced_record_is_no_change(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert records.provenance()["dirty"] is None  # no checkout
    code, record = tmp_path / "code.py", tmp_path / "data" / "results" / "x.json"
    record.parent.mkdir(parents=True)
    for path in (code, record):
        path.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    record.write_text("2")
    (tmp_path / "new.py").write_text("1")
    assert records.provenance()["dirty"] is False and len(records.provenance()["commit"]) == 40
    code.write_text("2")
    assert records.provenance()["dirty"] is True


def test_no_record_on_file_is_from_changed_code():
    assert [record["name"] for record in records.read_all() if record["dirty"] is not False] == []


def test_provenance_names_machine_and_versions():
    origin = records.provenance()
    assert origin["hardware"]["cores"] >= 1 and origin["hardware"]["cpu"]
    import torch

    assert (
        origin["versions"]["torch"] == torch.__version__.split("+")[0]
        or origin["versions"]["torch"] == torch.__version__
    )


def test_committed_records_are_whole():
    for path in records.FOLDER.glob("*.json"):
        assert records.read(path)["name"] == path.stem


def test_all_of_a_folder_and_none_replaced(tmp_path):
    assert records.read_all(tmp_path) == []
    for name in ("b", "a"):
        assert records.keep(record(name=name), tmp_path).exists()
    assert records.keep(record(name="a", seed=7), tmp_path) is None
    assert [(r["name"], r["seed"]) for r in records.read_all(tmp_path)] == [("a", 0), ("b", 0)]


def test_differences_are_of_settings_and_results():
    first = record(config={"batch": 8, "stages": [{"epochs": 3}]}, curve=[{"loss": 1}])
    second = first | {
        "config": {"batch": 16, "stages": [{"epochs": 3}]},
        "metrics": {"miou": 0.6, "images": 2},
        "curve": [],
    }
    assert records.differences(first, second) == {
        "config.batch": (8, 16),
        "metrics.miou": (0.5, 0.6),
        "metrics.images": (None, 2),
    }


def test_what_a_killed_write_left_goes_with_a_later_one(tmp_path, monkeypatch):
    old, young, other = (
        tmp_path / name for name in (".a.json.x1y2z3_4", ".a.json.abcdefgh", ".b.json.abcdefgh")
    )
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    looks, real = [], Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: looks.append(self) or real(self, pattern)
    )
    for number in range(3):
        records.write_whole(
            tmp_path / "a.json",
            lambda partial, number=number: Path(partial).write_text(str(number)),
        )
    assert (tmp_path / "a.json").read_text() == "2"
    assert (
        not old.exists() and young.exists() and other.exists()
    )  # what is young may still be written
    assert len(looks) == 1  # not at each write: a folder may hold thousands of files
    records.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
