"""Tiles: where they lie, what they count, and that a network says the same in them as on the whole image."""

import resource
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rflw import InputError, build, checkpoint, evaluation, prediction, tiles
from rflw.data.synthetic import scene
from rflw.nn.blocks import Window, resize

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("n", "tile", "overlap"),
    [
        (4096, 2048, 768),
        (4097, 2048, 768),
        (3361, 2048, 768),
        (2049, 2048, 768),
        (10_001, 1536, 768),
        (700, 256, 96),
        (257, 256, 96),
        (200, 256, 96),
    ],
)
def test_spans_and_shares(n, tile, overlap):
    parts = tiles.spans(n, tile, overlap)
    assert parts[0][0] == 0 and sum(parts[-1]) == n
    for (a, length), (b, _) in zip(parts, parts[1:]):
        assert a < b and a + length - b >= overlap
    for start, length in parts:
        assert start % 32 == 0 and length <= tile and (length - n) % 32 == 0
    total, edges = torch.zeros(-(-n // 4)), 0
    for (start, length), share in zip(parts, tiles.shares(parts, overlap)):
        assert len(share) == -(-length // 4)
        total[start // 4 : start // 4 + len(share)] += share
        edges = max(
            edges,
            *(share[: overlap // 16] if start else [0]),
            *(share[-(overlap // 16) :] if start + length < n else [0]),
        )
    torch.testing.assert_close(total, torch.ones_like(total))
    assert edges == 0  # what is near a tile's border counts nothing


def test_which_images_are_cut():
    assert tiles.side(None, (2048, 2048)) == 0 and tiles.side(None, (1024, 2048)) == 0
    assert tiles.side(None, (2049, 2048)) == tiles.TILE == tiles.side(None, (4096, 4096))
    assert tiles.side(0, (9000, 9000)) == 0
    assert tiles.side(1600, (1600, 1601)) == 1600 and tiles.side(1600, (1600, 1600)) == 0
    for wrong in (1, 1000, -1):
        with pytest.raises(InputError, match=f"tiles of {wrong} pixels"):
            tiles.side(wrong, (10, 10))


@pytest.mark.parametrize("whole", [(256, 384), (201, 330)])
def test_resizing_in_a_window_is_a_part_of_resizing_the_whole(whole):
    coarse = [-(-n // 16) for n in whole]
    fine = [-(-n // 8) for n in whole]
    x = torch.randn(2, 3, *coarse, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, fine, mode="bilinear", align_corners=True)
    everything = Window((0, 0), whole, whole)
    torch.testing.assert_close(resize(x, tuple(fine), everything), expected)
    (top, left), size = (64, 96), (whole[0] - 64, whole[1] - 96)
    part = resize(x[:, :, 4:, 6:], (fine[0] - 8, fine[1] - 12), Window((top, left), size, whole))
    torch.testing.assert_close(
        part[:, :, 2:, 2:], expected[:, :, 10:, 14:]
    )  # the first rows need some beyond the window
    plain = F.interpolate(x[:, :, 4:, 6:], part.shape[2:], mode="bilinear", align_corners=True)
    assert (plain - expected[:, :, 8:, 12:])[
        :, :, 2:, 2:
    ].abs().max() > 0.05  # that is what the window is for


def test_bands_are_rows_of_what_is_resized_at_once(monkeypatch):
    monkeypatch.setattr(tiles, "BAND", 61 * 7)
    logits = torch.randn(2, 3, 13, 16, generator=torch.Generator().manual_seed(0))
    found = list(tiles.bands([logits, logits[:, :, :5]], (50, 61)))
    assert [top for top, _ in found] == list(range(0, 50, 7))
    for i, part in enumerate((logits, logits[:, :, :5])):
        torch.testing.assert_close(
            torch.cat([rows[i] for _, rows in found], 2), prediction.upsample(part, (50, 61))
        )


def pavement(h: int, w: int) -> np.ndarray:
    """Scenes of the embedded set, side by side."""
    strips = [
        np.concatenate([scene("val", i + 11 * j)[0] for i in range(-(-w // 128))], 1)
        for j in range(-(-h // 96))
    ]
    return np.concatenate(strips)[:h, :w]


@pytest.mark.parametrize(
    "name",
    [
        "refinenet-lw-resnet50",
        "refinenet-lw-mobilenet_v2",
        "refinenet-lw-efficientnet_lite0",
        "refinenet-lw-nasnet_mobile",
        "refinenet-lw-top2-efficientnet_lite0",
    ],
)
def test_every_stride_and_padding_falls_where_it_does_in_the_whole(name):
    """Without pooling chains, whose reach is long, a tile's border changes nothing far from it: in double precision, whose sums are
    rounded by 2e-16, nothing but rounding is left there. A tile that begins one pixel askew differs by a billion times more."""
    torch.manual_seed(0)
    model = build(name, 3).eval().double()
    if "lite" in name:  # as drawn, it forgets the image on its way down
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    for stage in model.decoder.stages:
        stage.crp = torch.nn.Identity()
    x = prediction.normalise(pavement(65, 1235), model, CPU).double()
    with torch.inference_mode():
        whole, left = model(x), 96
        part = model(x[..., left:], Window((0, left), (65, 1235 - left), (65, 1235)))
        askew = model(x[..., left - 1 :])  # as if it began anywhere
    part, askew = (
        (logits[..., -60:] - whole[..., -60:]).abs().max() / whole.abs().max()
        for logits in (part, askew)
    )
    assert part < 1e-13 and askew > 1e-4, (part, askew)


@pytest.mark.parametrize("size", [(50, 2501), (2501, 50)])
@pytest.mark.parametrize("name", ["embedded", "camvid"])
def test_tiles_say_what_the_whole_image_says(name, size):
    """A strip, so that the whole fits; with the shortest tiles, which share as much as all do."""
    model, image = checkpoint.load(name), pavement(*size)[None]
    with torch.inference_mode():
        whole, cut = (
            prediction.logits_of(model, image, size, "fp32", tile=tile) for tile in (0, tiles.LEAST)
        )
        mirrored = prediction.logits_of(model, image, size, "fp32", flip=True, tile=tiles.LEAST)
        smaller = [
            prediction.logits_of(model, image, tuple(n * 4 // 5 for n in size), "fp32", tile=tile)
            for tile in (0, tiles.LEAST)
        ]
    assert (cut - whole).abs().max() < 1e-3 * whole.abs().max() and not torch.equal(cut, whole)
    assert (smaller[0] - smaller[1]).abs().max() < 1e-3 * whole.abs().max() and smaller[
        0
    ].shape != whole.shape
    with torch.inference_mode():
        expected = prediction.logits_of(
            model, np.ascontiguousarray(image[:, :, ::-1]), size, "fp32", tile=0
        ).flip(3)
    assert (mirrored - expected).abs().max() < 1e-3 * whole.abs().max()


class Seesaw(torch.nn.Module):
    """What it says of a pixel depends on where the tile begins: the worst case of a network that sees all of its input."""

    takes_windows = True
    name, num_classes, mean, std = "seesaw", 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, window=None):
        start = window.start[1] if window else 0
        return torch.full((1, 2, -(-x.shape[2] // 4), -(-x.shape[3] // 4)), float(start))


def test_tiles_fade_into_one_another():
    """Where a network changes its mind from tile to tile, the change is a slope, not a step."""
    image = np.zeros((1, 64, 3000, 3), np.uint8)
    with torch.inference_mode():
        logits = prediction.logits_of(Seesaw(), image, (64, 3000), "fp32", tile=tiles.LEAST)
    steps = logits[0, 0, 0].diff()
    starts = [start for start, _ in tiles.spans(3000, tiles.LEAST)]
    assert (
        logits[0, 0, 0, 0] == starts[0] and logits[0, 0, 0, -1] == starts[-1] and steps.min() >= 0
    )
    assert (
        steps.max() <= max(b - a for a, b in zip(starts, starts[1:])) / (tiles.OVERLAP / 8) + 1e-3
    )


def test_networks_of_ours_see_tiles():
    model, seen = build("refinenet-lw-mobilenet_v2", 2), []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[3]))
    prediction.predict(model, np.zeros((64, 2000, 3), np.uint8), tile=tiles.LEAST)
    assert len(seen) > 1 and max(seen) < 2000


def test_networks_that_take_images_whole(monkeypatch):
    model, image = Seesaw(), np.zeros((40, 2000, 3), np.uint8)
    model.takes_windows = False
    monkeypatch.setattr(tiles, "TILE", 100)
    assert prediction.predict(model, image).shape == (40, 2000)
    with pytest.raises(InputError, match="seesaw: in this form it takes images whole"):
        prediction.predict(model, image, tile=1600)


def test_a_network_made_fast_says_in_tiles_what_the_plain_one_says():
    from rflw import deploy

    model, image = checkpoint.load("embedded"), pavement(50, 2501)
    fast = deploy.optimise(model, compiled=False)
    assert (
        prediction.predict(fast, image, tile=tiles.LEAST)
        == prediction.predict(model, image, tile=0)
    ).mean() > 0.9995


def test_a_large_image_is_predicted_and_evaluated_in_tiles(monkeypatch):
    """The same classes, by `predict` and by `evaluate`, with what is made a few rows at a time."""
    model, image = checkpoint.load("embedded"), pavement(50, 2501)
    mask = prediction.predict(model, image, tile=0)
    plain = evaluation.evaluate(model, [(image, mask)], "fp32", (1.0, 0.8), True, tile=0)
    calls, real = [], tiles.joined
    monkeypatch.setattr(tiles, "joined", lambda *args: calls.append(args[2]) or real(*args))
    monkeypatch.setattr(tiles, "BAND", 50_000)
    monkeypatch.setattr(tiles, "TILE", 1536)
    assert (prediction.predict(model, image, tile=1536) == mask).mean() > 0.9995
    assert (prediction.predict(model, image) == mask).mean() > 0.9999 and calls == [
        1536
    ]  # fewer pixels than a tile: whole
    both = evaluation.evaluate(model, [(image, mask)], "fp32", (1.0, 0.8), True, tile=1536)
    assert (
        calls == [1536] * 5
        and (both - plain).abs().sum() <= 0.002 * mask.size
        and both.sum() == mask.size
    )


class TestSitting:
    DATA = [scene("val", i) for i in range(4)]

    @pytest.fixture
    def model(self):
        return checkpoint.load("embedded")

    def sitting(self, file, identity="x"):
        return evaluation.Sitting(4, 6, 1, file, identity, every=0.0)

    def test_an_evaluation_that_was_interrupted_goes_on(self, model, tmp_path):
        seen = []

        def each(i, prediction, mask):
            seen.append(i)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return [float(i)]

        whole = self.sitting(None)
        evaluation.evaluate(model, self.DATA, "fp32", each=lambda i, *_: [float(i)], sitting=whole)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(
                model, self.DATA, "fp32", each=each, sitting=self.sitting(tmp_path / "kept")
            )
        again = self.sitting(tmp_path / "kept")
        assert again.done.tolist() == [True, True, False, False] and again.matrices[2:].sum() == 0
        matrices = evaluation.evaluate(model, self.DATA, "fp32", each=each, sitting=again)
        assert seen == [0, 1, 2, 2, 3]
        assert torch.equal(matrices, whole.matrices) and torch.equal(again.numbers, whole.numbers)
        evaluation.evaluate(
            model, self.DATA, "fp32", each=each, sitting=self.sitting(tmp_path / "kept")
        )
        assert seen == [0, 1, 2, 2, 3]  # all was done
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]

    @pytest.mark.skipif(sys.platform != "linux", reason="needs limits of files")
    def test_a_full_disk_is_named(self, tmp_path):
        self.sitting(tmp_path / "kept").write()
        before = (tmp_path / "kept").read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(InputError, match="^[^\n]*kept: cannot be written [^\n]*$"):
                self.sitting(tmp_path / "kept").write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]

    def test_files_of_others_are_refused(self, model, tmp_path):
        file = tmp_path / "kept"
        self.sitting(file).write()
        with pytest.raises(InputError, match="kept: of another evaluation"):
            self.sitting(file, "y")
        with pytest.raises(InputError, match=r"matrices of \(4, 6, 6\)"):
            evaluation.Sitting(5, 6, 1, file, "x")
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(InputError, match="kept: not an evaluation that was begun"):
            self.sitting(file)
        checkpoint.save(model, file, {"classes": ["a"] * 6, "data": "embedded"})
        with pytest.raises(InputError, match="kept: not an evaluation that was begun"):
            self.sitting(file)
