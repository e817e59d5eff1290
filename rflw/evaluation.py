"""Evaluation: confusion matrices of whole images."""

import math
from pathlib import Path
import sys
import time

import torch
from torch import Tensor
from tqdm import tqdm

from rflw import metrics
from rflw.checkpoint import _write_tensors
from rflw.errors import InputError, no_pipe
from rflw.nn.refinenet import RefineNet
from rflw.prediction import best, views


class Sitting:
    """What an evaluation has measured so far: matrices (N, K, K) int64, one an image; whether each is done, (N,); what `each`
    returned, (N, numbers) float64; and the seconds that it took, (1,) float64.

    file: where it is kept, whole at every moment, so that the same evaluation goes on with it after an interruption; identity says what
    is the same. Raises InputError for a file that is no such thing, or of another evaluation.
    """

    def __init__(
        self,
        images: int,
        classes: int,
        numbers: int = 0,
        file: Path | None = None,
        identity: str = "",
        every: float = 30.0,
    ):
        self.file, self.identity, self.every, self.since = file, identity, every, time.monotonic()
        self.matrices = torch.zeros(images, classes, classes, dtype=torch.int64)
        self.done = torch.zeros(images, dtype=torch.bool)
        self.numbers = torch.zeros(images, numbers, dtype=torch.float64)
        self.seconds = torch.zeros(1, dtype=torch.float64)
        if file is not None and file.exists():
            self._read()

    PARTS = ("matrices", "done", "numbers", "seconds")

    def _read(self) -> None:
        from safetensors import SafetensorError, safe_open

        no_pipe(self.file)
        try:
            with safe_open(self.file, "pt") as kept:
                theirs = (kept.metadata() or {}).get("evaluation")
                if theirs is None:
                    raise InputError(f"{self.file}: not an evaluation that was begun")
                if theirs != self.identity:
                    raise InputError(
                        f"{self.file}: of another evaluation (of another network, data, split or with other options)"
                    )
                found = {name: kept.get_tensor(name) for name in self.PARTS}
        except (SafetensorError, OSError) as e:
            raise InputError(f"{self.file}: not an evaluation that was begun ({e})") from e
        for name, tensor in found.items():
            own = getattr(self, name)
            if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
                raise InputError(
                    f"{self.file}: {name} of {tuple(tensor.shape)} {tensor.dtype}, {tuple(own.shape)} {own.dtype} expected"
                )
            setattr(self, name, tensor)

    def write(self, soon: bool = True) -> None:
        """soon: now; else if the last time is long enough ago."""
        now = time.monotonic()
        if self.file is None or not soon and now - self.since < self.every:
            return
        self.seconds, self.since = self.seconds + now - self.since, now
        _write_tensors(
            self.file,
            {name: getattr(self, name) for name in self.PARTS},
            {"evaluation": self.identity},
        )


@torch.inference_mode()
def evaluate(
    model: RefineNet,
    dataset,
    precision: str = "auto",
    scales=(1.0,),
    flip: bool = False,
    each=None,
    progress: bool = False,
    rank: int = 0,
    world: int = 1,
    tile: int | None = None,
    sitting: Sitting | None = None,
) -> Tensor:
    """Confusion matrices of whole images, scores resized to the labels: (N, K, K) int64, on the CPU.

    scales, flip: as `scores`; tile: as `predict`. each: called with (index, predicted classes (H, W), labels (H, W)) of every image.
    rank, world: of several processes, each takes its share of the images and leaves the others' matrices zero. sitting: what
    was measured before, and is not again; what `each` returns goes there, too.
    """
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval().to(memory_format=torch.channels_last)
    sitting = sitting or Sitting(len(dataset), model.num_classes)
    todo = [i for i in range(rank, len(dataset), world) if not sitting.done[i]]
    try:
        for i in tqdm(todo, desc="evaluate", file=sys.stderr, disable=not progress or None):
            image, mask = dataset[i]
            mask = torch.from_numpy(mask).to(device)
            try:
                prediction = best(views(model, image, precision, scales, flip, tile), mask.shape)[0]
            except InputError as e:
                raise InputError(f"{dataset.ids[i]}: {e}") from e
            numbers = each(i, prediction, mask) if each else None
            sitting.matrices[i] = metrics.confusion_matrix(prediction, mask, model.num_classes)
            if sitting.numbers.shape[1]:
                sitting.numbers[i] = torch.tensor(numbers, dtype=torch.float64)
            sitting.done[i] = True
            sitting.write(soon=False)
    finally:  # of Ctrl-C, too: the image that it came in is not marked
        sitting.write()
    for module, mode in modes.items():  # batch norm may be frozen while the rest trains
        module.training = mode
    return sitting.matrices


def summary(matrices: Tensor, classes, blocks: list[int] | None = None) -> dict:
    """(N, K, K), one matrix an image -> {"miou", "pixel_accuracy", "iou": {class: value}, "miou_interval": [low, high] of
    95 % over images, "miou_absent_as_one", "frequency_weighted_iou"}, all in 0..1, None for what is not there to be
    measured. blocks: the number of each image's block, of images that tell of each other; the interval is over blocks then."""

    def known(value):
        return None if math.isnan(value) else value

    matrix = matrices.sum(0)
    if blocks:
        matrices = matrices.new_zeros(max(blocks) + 1, *matrix.shape).index_add_(
            0, torch.tensor(blocks), matrices
        )
    return {
        "miou": known(metrics.mean_iou(matrix)),
        "pixel_accuracy": known(metrics.pixel_accuracy(matrix)),
        "iou": dict(zip(classes, map(known, metrics.iou(matrix).tolist()))),
        "miou_interval": [known(value) for value in metrics.bootstrap_interval(matrices)],
        "miou_absent_as_one": metrics.mean_iou(matrix, absent="one"),
        "frequency_weighted_iou": known(metrics.frequency_weighted_iou(matrix)),
    }
