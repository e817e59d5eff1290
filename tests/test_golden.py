"""Numbers do not drift: every network gives what it gave, by the file that `tests/golden.py` wrote."""

import json
from statistics import mean, stdev

from golden import CLASSES, EPOCHS, FILE, SEEDS, SIZE, curve, logits, network
import numpy as np
import pytest
import torch

from rflw import list_models
from rflw.complexity import count

GOLDEN = json.loads(FILE.read_text())


def deviation(found: torch.Tensor, name: str) -> float:
    """Largest difference from the stored logits, over the largest of all logits."""
    kept = torch.tensor(GOLDEN["networks"][name]["logits"])
    return ((found - kept).abs().max() / kept[-1]).item()


def test_the_file_holds_every_network():
    assert list(GOLDEN["networks"]) == list_models(ablations=True)
    answers = np.array([row["logits"] for row in GOLDEN["networks"].values()])
    assert (np.abs(answers[:, :-1]).max(1) <= answers[:, -1] * (1 + 1e-6)).all()
    # one number everywhere would show nothing
    assert (answers[:, :-1].std(1) > 0.05 * answers[:, -1]).all()


# an ablation changes the decoder, whose wiring has one of three kinds, by the encoder
WIRINGS = ("resnet50", "mobilenet_v2", "efficientnet_lite0")
ABLATED = [name for name in GOLDEN["networks"] if name.endswith(WIRINGS)]


@pytest.mark.parametrize("name", sorted({*list_models(), *ABLATED}))
def test_counts_and_logits(name):
    model, kept = network(name), GOLDEN["networks"][name]
    assert deviation(logits(model), name) < 1e-4
    counted = count(model, SIZE)
    assert (counted["params"], counted["macs"]["total"]) == (kept["params"], kept["macs"])
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 33, 50)).shape == (1, CLASSES, 9, 13)


def test_a_small_change_of_one_weight_shows():
    model = network("refinenet-lw-mobilenet_v2")
    model.encoder.stages[0][0].depthwise.conv.weight[3, 0, 1, 1] += 0.1
    assert deviation(logits(model), "refinenet-lw-mobilenet_v2") > 1e-4


def test_the_training_curve_of_another_seed_stays_within_the_spread_of_the_stored_ones():
    """The band: four standard deviations about the mean of the stored seeds, for each epoch's loss and mIoU."""
    stored = GOLDEN["curves"]
    assert len(stored) == SEEDS

    def band(values):
        return mean(values) - 4 * stdev(values), mean(values) + 4 * stdev(values)

    bands = [[band(values) for values in zip(*rows)] for rows in zip(*stored)]
    # narrow enough to tell a network that learns nothing after an epoch
    assert bands[-1][0][1] < min(run[0][0] for run in stored)
    found = curve(seed=SEEDS)  # the first that is not stored
    assert len(found) == EPOCHS
    for epoch, (row, band) in enumerate(zip(found, bands), 1):
        for what, value, (low, high) in zip(("loss", "mIoU"), row, band):
            assert low <= value <= high, (epoch, what, value)
