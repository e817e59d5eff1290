"""Records are whole, sealed and found."""

import errno
from importlib.metadata import version
import json
import subprocess

import pytest

from rflw import InputError, records


def record(**changes):
    known = records.begin("trial", "rflw train trial", "train", config_hash="0")
    return known | {"wall_s": 1.0, "status": "done", "metrics": {"miou": 0.5}} | changes


class TestRecords:
    def test_written_and_read_whole_and_not_edited(self, tmp_path):
        # outside a checkout there is no commit; seconds may be whole
        path = records.write(record(commit=None, dirty=None, wall_s=60), tmp_path)
        assert [*tmp_path.iterdir()] == [path] and path.name == "trial.json"
        kept = records.read("trial", tmp_path)
        assert (kept["metrics"], kept["commit"], kept["wall_s"]) == ({"miou": 0.5}, None, 60)
        path.write_text(path.read_text().replace("0.5", "0.6"))
        with pytest.raises(InputError, match="edited by hand"):
            records.read(path)

    def test_malformed_records_are_refused(self, tmp_path):
        incomplete = record()
        del incomplete["commit"]
        with pytest.raises(InputError, match="record trial: commit: Field required"):
            records.write(incomplete, tmp_path)
        odd = record(seed=True)
        sealed = odd | {"sha256": records.digest(odd)}
        with pytest.raises(InputError, match="record trial: seed: Input should be a valid integer"):
            records.write(odd, tmp_path)
        for text, words in (
            ("[" * 100_000, ""),
            ("[]", " .Input should be a valid dict"),
            (json.dumps({"name": "x"}), " .kind: Field required"),
            (json.dumps(sealed), " .seed: Input should be a valid integer"),
        ):
            (tmp_path / "bad.json").write_text(text)
            with pytest.raises(InputError, match=f"bad.json: cannot be read{words}"):
                records.read("bad", tmp_path)

    def test_files_are_written_whole_or_not_at_all(self, tmp_path):
        (tmp_path / "x").write_text("old")

        def full(partial):
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(InputError, match="No space left"):
            records.write_whole(tmp_path / "x", full)
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]
        with pytest.raises(InputError, match="cannot be written"):
            records.write_whole(tmp_path / "x" / "y", lambda partial: None)

    def test_a_path_leads_to_a_value(self):
        rows = [{"mode": mode, "batch": 1, "ms": ms} for mode, ms in (("slow", 7), ("fast", 3))]
        value = record(metrics={"miou": 0.5, "iou": {"red twin": 0.25}, "rows": rows})
        for path, expected in (
            ("metrics.miou", 0.5),
            ("metrics.iou.red twin", 0.25),
            ("metrics.rows[mode=slow,batch=1].ms", 7),
            ("metrics.rows.1.ms", 3),
        ):
            assert records.at(value, path) == expected
        for wrong, part in (("metrics.rows[batch=1].ms", "fits 2 rows"), ("metrics.acc", "acc")):
            with pytest.raises(KeyError, match=part):
                records.at(value, wrong)

    def test_a_changed_checkout_is_dirty_and_a_replaced_record_is_no_change(
        self, tmp_path, monkeypatch
    ):
        def git(*words):
            words = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words]
            subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)

        monkeypatch.setattr(records, "REPOSITORY", tmp_path)
        origin = records.provenance()
        assert origin["dirty"] is None  # no checkout
        assert origin["hardware"]["cores"] >= 1 and origin["versions"]["torch"] == version("torch")
        code, record = tmp_path / "code.py", tmp_path / "data" / "results" / "x.json"
        record.parent.mkdir(parents=True)
        for path in (code, record):
            path.write_text("1")
        for words in ("init", "add .", "commit -m x"):
            git(*words.split())
        record.write_text("2")
        (tmp_path / "new.py").write_text("1")
        assert records.provenance()["dirty"] is False and len(records.provenance()["commit"]) == 40
        code.write_text("2")
        assert records.provenance()["dirty"] is True

    def test_committed_records_are_whole_and_from_unchanged_code(self):
        paths = sorted(records.FOLDER.glob("*.json"))
        assert len(paths) > 100
        for path in paths:
            record = records.read(path)  # checks the hash
            assert record["name"] == path.stem and record["dirty"] is False

    def test_all_of_a_folder_and_none_replaced(self, tmp_path):
        assert records.read_all(tmp_path / "later") == []
        for name in ("b", "a"):
            assert records.keep(record(name=name), tmp_path).exists()
        assert records.keep(record(name="a", seed=7), tmp_path) is None
        assert [(r["name"], r["seed"]) for r in records.read_all(tmp_path)] == [("a", 0), ("b", 0)]
        with pytest.raises(InputError, match="a.json: is not a folder of records"):
            records.read_all(tmp_path / "a.json")
