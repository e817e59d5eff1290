"""Trainings, data sets, campaigns and evaluations that are killed go on to the same end. The long run is `python -m tests.faults`."""

from pathlib import Path
import subprocess
import sys

import pytest

from rflw import records

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and prctl")
BREAK = {
    "writes that are not whole": """
def write_whole(path, write):
    import time
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")  # in place
    time.sleep(0.5)  # while it is killed
    write(path)
training.write_whole = write_whole
""",
    "a state that is not all of it": """
restore = training.State.restore
def forgetful(self, saved, steps):
    restore(self, saved | {"optimiser": saved["optimiser"] | {"state": {}}}, steps)
training.State.restore = forgetful
""",
    "nothing": "",
}


def test_killed_processes_go_on(tmp_path):
    """A few kills of each kind."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults",
            "--share",
            "0.1",
            "--only",
            "training",
            "data prepare",
            "evaluation",
            "two processes",
            "read-only target",
            "--results",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = records.read(tmp_path / "reliability-faults.json")["metrics"]
    assert found["held"] == len(found["scenarios"]) == 5 and found["kills"] >= 4


@pytest.mark.parametrize("fault", BREAK)
def test_the_harness_notices_faults(tmp_path, fault):
    """A run that is killed in the second write of its checkpoint, with a package that is broken."""
    script = f"""
import random, sys
from pathlib import Path
from tests.faults import harness
from rflw import training
{BREAK[fault]}
work = Path(sys.argv[1])
class Second(random.Random):
    def randint(self, low, high): return 2
with harness.quietly():
    harness.completes(lambda: harness.train(work / "whole"), work / "log")
    try:
        harness.kill_until_done(lambda: harness.train(work / "broken", save_every=99), work / "log", 1, ("checkpoint",), Second(0))
        harness.same_run(work / "whole", work / "broken")
        print("held")
    except AssertionError as e:
        print("red:", e)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    expected = {
        "writes that are not whole": "not a whole checkpoint",
        "a state that is not all of it": "differs",
        "nothing": "held",
    }
    assert expected[fault] in run.stdout, run.stdout + run.stderr[-2000:]
