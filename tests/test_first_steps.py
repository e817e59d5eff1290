"""The first steps of a training, with several warm-ups."""

from rflw import training
from rflw.config import Recipe, Stage
from rflw.data.synthetic import Embedded
from rflw_study.first_steps import first_steps

TINY = Recipe(
    "tiny",
    "refinenet-lw-mobilenet_v2",
    (Stage("embedded", 2, 2e-4, 1e-3),),
    crop=(48, 48),
    weights=None,
    batch=4,
    optimiser="adamw",
    precision="fp32",
)


class Few(Embedded):
    def __len__(self) -> int:
        return 8


def test_a_warm_up_changes_the_steps_after_the_first(monkeypatch):
    monkeypatch.setattr(training, "open_dataset", lambda name, split, root=None: Few(split))
    at_once, slowly = (first_steps(TINY, warmup, steps=3, device="cpu") for warmup in (0, 100))
    assert [row["step"] for row in at_once] == [1, 2, 3]
    assert at_once[0]["loss"] == slowly[0]["loss"]  # before the first step there is no difference
    assert at_once[1]["loss"] != slowly[1]["loss"]
    assert set(at_once[0]["live"]) == {f"stages.{i}" for i in range(4)}
    assert slowly[-1]["live"]["stages.0"] >= at_once[-1]["live"]["stages.0"] > 0
