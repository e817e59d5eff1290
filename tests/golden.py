"""What every network must go on giving: counts, logits under weights that a formula makes, and the first steps of a training.

`tests/data/golden.json` was written by

    python -m tests.golden

and is to be written anew only where a network is meant to change; the change then shows in the file's own history. No random
number of PyTorch has a part in counts and logits: weights and image are made by `uniform`, of whole numbers alone, so that another
version, processor or operating system must come to the same. What `curve` gives does depend on those, and is kept for several seeds.
"""

import argparse
import json
from pathlib import Path
import tempfile
import zlib

import numpy as np
import torch

from rflw import build, list_models, training
from rflw.complexity import count
from rflw.data.synthetic import Scenes
from rflw.recipes import recipe

FILE = Path(__file__).parent / "data" / "golden.json"
# rows and columns of the image; odd ones, so that rounding shows
SIZE, CLASSES, LOGITS = ((65, 97), 5, 8)
PERIOD = 65_521  # a prime, so that no two filters are the same
SCENES, EPOCHS, SEEDS = 96, 3, 6  # of the training


def hashed(numbers: np.ndarray) -> np.ndarray:
    """uint32 -> uint32, well mixed: the last steps of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(factor)
    return numbers


TABLE = (hashed(np.arange(PERIOD, dtype=np.uint32)) / 2**32).astype(np.float32)


def uniform(name: str, shape) -> torch.Tensor:
    """Numbers from 0 to 1 that depend on a name alone: the table, over and over, from a place that the name gives."""
    return torch.from_numpy(
        np.resize(np.roll(TABLE, -(zlib.crc32(name.encode()) % PERIOD)), tuple(shape))
    )


def fill(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A value for one tensor of a network: filters of variance 1 / fan-in, batch norms that are neither idle nor extreme."""
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    u = uniform(name, tensor.shape)
    if name.endswith("running_var") or tensor.dim() == 1 and name.endswith("weight"):
        return 0.5 + u
    if tensor.dim() == 1:  # biases and running means
        return u - 0.5
    return (u - 0.5) * (12 / tensor[0].numel()) ** 0.5


def network(name: str) -> torch.nn.Module:
    """A network with these weights, in evaluation mode."""
    with torch.device("meta"):
        model = build(name, CLASSES)
    model.load_state_dict(
        {key: fill(key, value) for key, value in model.state_dict().items()}, assign=True
    )
    return model.eval().requires_grad_(False)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of an image that the formula makes -> some of the logits, spread over classes and places, and last the largest of all."""
    found = model(4 * uniform("image", (1, 3, *SIZE)) - 2).flatten()
    picks = torch.linspace(0, len(found) - 1, LOGITS).round().long()
    return torch.cat([found[picks], found.abs().max()[None]])


def measure(name: str) -> dict:
    """Counts and logits of one network."""
    model = network(name)
    counted = count(model, SIZE)
    return {
        "params": counted["params"],
        "macs": counted["macs"]["total"],
        "logits": [float(f"{x:.7g}") for x in logits(model).tolist()],
    }


class Few(Scenes):
    """The embedded set's first scenes only."""

    def __len__(self):
        return {"train": SCENES, "val": 16}[self.split]


def curve(seed: int) -> list[list[float]]:
    """Loss and mIoU after each epoch of the embedded recipe, in fp32, cut to a few epochs of a few scenes."""
    from dataclasses import replace

    shown = training.open_dataset
    training.open_dataset = lambda name, split, root: Few(split)
    try:
        with tempfile.TemporaryDirectory() as folder:
            short = replace(
                recipe("embedded-lw-efficientnet_lite0").with_epochs(EPOCHS), precision="fp32"
            )
            _, record = training.fit(short, folder, seed, device="cpu", compiled=False)
    finally:
        training.open_dataset = shown
    return [[round(row["loss"], 4), round(row["miou"], 4)] for row in record["curve"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", choices=("networks", "curves"), help="leave the other part as it is"
    )
    asked = parser.parse_args()
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    if asked.only != "curves":
        content["networks"] = {name: measure(name) for name in list_models(ablations=True)}
    if asked.only != "networks":
        content["curves"] = [curve(seed) for seed in range(SEEDS)]
    networks = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(row)}" for name, row in content["networks"].items()
    )
    curves = ",\n".join(map(json.dumps, content["curves"]))
    # a line for each, so that changes can be read
    FILE.write_text(f'{{"networks": {{\n{networks}}},\n"curves": [\n{curves}]}}\n')


if __name__ == "__main__":
    main()
