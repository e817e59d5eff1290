"""Records are whole, sealed and found."""

import errno
from importlib.metadata import version
import json
import subprocess

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


def test_written_and_read_whole_and_not_edited(tmp_path):
    # outside a checkout there is no commit; seconds may be whole
    path = records.write(record(commit=None, dirty=None, wall_s=60), tmp_path)
    assert [*tmp_path.iterdir()] == [path] and path.name == "trial.json"
    kept = records.read("trial", tmp_path)
    assert (kept["metrics"], kept["commit"], kept["wall_s"]) == ({"miou": 0.5}, None, 60)
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(InputError, match="edited by hand"):
        records.read(path)


def test_malformed_records_are_refused(tmp_path):
    incomplete = record()
    del incomplete["commit"]
    with pytest.raises(InputError, match="record trial: commit: Field required"):
        records.write(incomplete, tmp_path)
    for text, words in (
        ("{", "bad.json: cannot be read"),
        ("[" * 100_000, "bad.json: cannot be read"),
        ("[]", "bad.json: cannot be read .Input should be a valid dict"),
        (json.dumps({"name": "x"}), "bad.json: cannot be read .kind: Field required"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=words):
            records.read("bad", tmp_path)
    with pytest.raises(InputError, match="no such record"):
        records.read("none", tmp_path)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "x").write_text("old")

    def full(partial):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        records.write_whole(tmp_path / "x", full)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]
    with pytest.raises(InputError, match="cannot be written"):
        records.write_whole(tmp_path / "x" / "y", lambda partial: None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", True),
        ("wall_s", "60"),
        ("hardware.cores", "2"),
    ],
)
def test_entries_of_another_type_are_refused(tmp_path, field, value):
    body = record()
    parent, _, name = field.rpartition(".")
    (body[parent] if parent else body)[name] = value
    with pytest.raises(InputError, match=f"^record .*: {field}: Input should be a valid"):
        records.write(body, tmp_path, "trial")
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(body | {"sha256": records.digest(body)}))
    with pytest.raises(InputError, match=f"trial.json: cannot be read .{field}: Input should be"):
        records.read(path)


def test_a_folder_that_takes_no_files_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    records.must_take_files(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for folder, words in (
        (tmp_path / "file" / "x", "file is not a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(InputError, match=f"{folder}: cannot be written .*{words}"):
            records.must_take_files(folder)
    monkeypatch.setattr(records.os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="cannot be written .permission denied"):
        records.must_take_files(tmp_path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metrics.miou", 0.5),
        ("metrics.iou.red twin", 0.25),
        ("metrics.rows[mode=slow,batch=1].ms", 7),
        ("metrics.rows.1.ms", 3),
    ],
)
def test_a_path_leads_to_a_value(path, expected):
    rows = [{"mode": mode, "batch": 1, "ms": ms} for mode, ms in (("slow", 7), ("fast", 3))]
    value = record(metrics={"miou": 0.5, "iou": {"red twin": 0.25}, "rows": rows})
    assert records.at(value, path) == expected
    for wrong, part in (("metrics.rows[batch=1].ms", "fits 2 rows"), ("metrics.acc", "acc")):
        with pytest.raises(KeyError, match=part):
            records.at(value, wrong)


def test_a_changed_checkout_is_dirty_and_a_replaced_record_is_no_change(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    origin = records.provenance()
    assert origin["dirty"] is None  # no checkout
    assert origin["hardware"]["cores"] >= 1 and origin["versions"]["torch"] == version("torch")
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


def test_committed_records_are_whole_and_from_unchanged_code():
    paths = sorted(records.FOLDER.glob("*.json"))
    assert len(paths) > 100
    for path in paths:
        record = records.read(path)  # checks the hash
        assert record["name"] == path.stem and record["dirty"] is False


def test_all_of_a_folder_and_none_replaced(tmp_path):
    assert records.read_all(tmp_path / "later") == []
    for name in ("b", "a"):
        assert records.keep(record(name=name), tmp_path).exists()
    assert records.keep(record(name="a", seed=7), tmp_path) is None
    assert [(r["name"], r["seed"]) for r in records.read_all(tmp_path)] == [("a", 0), ("b", 0)]
    with pytest.raises(InputError, match="a.json: is not a folder of records"):
        records.read_all(tmp_path / "a.json")


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
