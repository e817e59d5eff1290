"""Prediction: what it takes and gives, views of an image, and tiles."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest
import torch
from torch import nn
import torch.nn.functional as F

from rflw import InputError, build, checkpoint, prediction, tiles
from rflw.data.synthetic import scene

CPU = torch.device("cpu")
PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build("refinenet-lw-mobilenet_v2", 6).eval()
    with torch.no_grad():  # balance the classes, so that a random network predicts several of them
        logits = model(prediction.normalise(PHOTO, model, CPU))
        model.decoder.classifier.bias -= logits.mean((0, 2, 3))
    return model


def test_is_the_best_class_of_the_resized_logits(model):
    x = torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(model.mean).view(1, 3, 1, 1)) / torch.tensor(model.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        logits = F.interpolate(model(x), size=(50, 71), mode="bilinear", align_corners=False)
    classes = prediction.predict(model, PHOTO)
    assert classes.shape == (50, 71) and classes.dtype == np.uint8
    assert (classes == logits.argmax(1)[0].numpy()).mean() > 0.999
    assert len(np.unique(classes)) > 1


def test_takes_paths_pil_images_and_arrays(model, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", PHOTO)
    expected = prediction.predict(model, PHOTO)
    for image in (
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        Image.fromarray(PHOTO),
        torch.from_numpy(PHOTO),
        PHOTO[:, ::-1].copy()[:, ::-1],
        np.lib.stride_tricks.as_strided(PHOTO, writeable=False),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        Image.fromarray(PHOTO).convert("RGBA").convert("RGBa"),
    ):
        assert np.array_equal(prediction.predict(model, image), expected), type(image)


def test_grey_is_three_equal_channels(model):
    grey = PHOTO[..., 0]
    expected = prediction.predict(model, np.dstack([grey] * 3))
    assert np.array_equal(prediction.predict(model, grey), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (PHOTO / 255, "a ndarray of float64"),
        (np.dstack([PHOTO, PHOTO[..., :1]]), r"shape \(50, 71, 4\)"),
        (PHOTO[None], r"shape \(1, 50, 71, 3\)"),
        ({"a": 1}, "a dict of object"),
        (PHOTO.tobytes(), "a bytes of"),
        ([PHOTO, PHOTO[1:]], "a list cannot be made an array"),
        (np.zeros((40, 40), [(f"field{i}", "u1") for i in range(99)]), "a ndarray of "),
    ],
)
def test_anything_else_is_refused_by_its_type(model, image, words):
    with pytest.raises(InputError, match=f"^image: [^\n]*{words}[^\n]*$") as refusal:
        prediction.predict(model, image)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("size", [(1, 1), (32, 100)])
def test_images_that_are_too_small_are_named(model, tmp_path, size):
    with pytest.raises(InputError, match=f"image: {size[1]}x{size[0]} pixels"):
        prediction.predict(model, np.zeros((*size, 3), np.uint8))
    Image.new("RGB", size[::-1]).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=f"x.png: {size[1]}x{size[0]} pixels"):
        prediction.predict(model, tmp_path / "x.png")


def test_the_network_sees_the_short_side_and_the_image_keeps_its_size(model):
    sizes = []
    hook = model.encoder.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape)))
    classes = prediction.predict(model, PHOTO, short_side=100)
    hook.remove()
    assert sizes == [(1, 3, 100, 142)] and classes.shape == (50, 71)
    with pytest.raises(InputError, match="a shorter side of 20 pixels"):
        prediction.predict(model, PHOTO, short_side=20)


@pytest.mark.parametrize(
    ("asked", "card", "seen"),
    [(None, 75, (75, 107)), (0, 75, (50, 71)), (None, 0, (50, 71)), (None, None, (50, 71))],
)
def test_the_checkpoint_says_what_the_network_sees(asked, card, seen):
    """75 / 50 * 71 is 106.5, which is rounded up, in whole numbers."""
    sizes = []

    class Witness(nn.Module):
        num_classes, mean, std = 2, (0.5,) * 3, (0.25,) * 3

        def forward(self, x):
            sizes.append(tuple(x.shape[2:]))
            return torch.zeros(1, 2, 10, 10) + self.weight

    witness = Witness()
    witness.weight, witness.card = nn.Parameter(torch.zeros(1)), {"short_side": card}
    prediction.predict(witness, PHOTO, asked)
    assert sizes == [seen]


def test_more_classes_than_a_byte_holds_are_refused(model):
    with pytest.raises(InputError, match="300 classes"):
        prediction.predict(SimpleNamespace(num_classes=300), PHOTO)


def test_every_module_keeps_its_mode(model):
    expected = prediction.predict(model, PHOTO)
    model.train()
    model.encoder.stem.bn.eval()  # as frozen batch norm is
    modes = [module.training for module in model.modules()]
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda _: prediction.predict(model, PHOTO), range(4))]
        with pytest.raises(InputError):
            [*pool.map(lambda size: prediction.predict(model, PHOTO[:size]), (50, 20))]
    assert all(np.array_equal(classes, expected) for classes in found)
    assert [module.training for module in model.modules()] == modes and not prediction.INSIDE
    first, second = prediction.evaluating(model), prediction.evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == modes
    model.eval()


def test_scales_and_flips_are_averaged_as_probabilities(model):
    image, size = scene("val", 0)[0], (96, 128)
    x, expected = prediction.normalise(image, model, CPU), 0
    with torch.inference_mode():
        for h, w in ((96, 128), (48, 64)):
            scaled = F.interpolate(x, (h, w), mode="bilinear", antialias=True)
            for dims in ((), (3,)):
                logits = model(scaled.flip(dims)).flip(dims)
                expected += F.interpolate(logits, size, mode="bilinear").softmax(1) / 4
    logits = prediction.views(model, image, "fp32", (1.0, 0.5), flip=True)
    scores = prediction.combined(logits, lambda x: prediction.upsample(x, size))
    torch.testing.assert_close(scores, expected)
    assert torch.equal(prediction.best(logits, size), scores.argmax(1))


def test_large_images_are_resized_a_few_rows_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, *size, generator=generator) for size in ((13, 16), (20, 8))]
    expected = prediction.best(logits, (50, 61))
    rows = prediction.upsampled_rows(logits[0], (50, 61), 7, 19)
    torch.testing.assert_close(rows, prediction.upsample(logits[0], (50, 61))[:, :, 7:19])
    monkeypatch.setattr(prediction, "BAND", 61 * 7)
    assert torch.equal(prediction.best(logits, (50, 61)).long(), expected)


class TestTiles:
    def test_which_images_are_cut(self):
        assert tiles.side(None, (2048, 2048)) == 0 and tiles.side(None, (1024, 2048)) == 0
        assert tiles.side(None, (2049, 2048)) == tiles.TILE == tiles.side(None, (4096, 4096))
        assert tiles.side(0, (9000, 9000)) == 0
        assert tiles.side(1600, (1600, 1601)) == 1600 and tiles.side(1600, (1600, 1600)) == 0
        for wrong in (1, 1000, -1):
            with pytest.raises(InputError, match=f"tiles of {wrong} pixels"):
                tiles.side(wrong, (10, 10))

    @pytest.mark.parametrize(
        ("n", "tile"), [(4096, 2048), (2049, 2048), (10_001, 1024), (700, 1024)]
    )
    def test_spans_cover_a_side_and_overlap(self, n, tile):
        spans = tiles.spans(n, tile)
        assert spans[0][0] == 0 and spans[-1][1] == n
        assert all(
            start % 32 == (end - n) % 32 == 0 and end - start <= tile for start, end in spans
        )
        for (_, end), (start, _) in zip(spans, spans[1:]):
            assert end - start >= tiles.OVERLAP

    def test_a_network_that_looks_at_single_pixels_gives_the_same_in_tiles(self):
        x = torch.rand(1, 3, 1100, 1500, generator=torch.Generator().manual_seed(0))
        calls = []

        def network(x):
            calls.append(tuple(x.shape[2:]))
            return x[:, :2, ::4, ::4]

        torch.testing.assert_close(tiles.joined(network, x, 1024), network(x))
        assert len(calls) == 5 and calls[0] == (1004, 1020)

    def test_tiles_fade_into_one_another(self):
        """Where a network changes its mind from tile to tile, the change is a slope, not a step."""
        answers = iter((0.0, 1.0, 2.0))

        def network(x):
            return torch.full((1, 1, -(-x.shape[2] // 4), -(-x.shape[3] // 4)), next(answers))

        logits = tiles.joined(network, torch.zeros(1, 3, 64, 1984), 1024)[0, 0, 0]
        steps = logits.diff()
        assert logits[0] == 0 and logits[-1] == 2
        assert 0 <= steps.min() and steps.max() < 2 * 4 / tiles.OVERLAP

    def test_a_long_scene_is_labelled_as_in_one_piece(self, monkeypatch):
        """Aligned corners place the coarse maps of a tile a little differently: a few borders of objects move."""
        image = np.concatenate([scene("val", i)[0][:40] for i in range(11)], 1)[:, :1300]
        network = checkpoint.load("embedded")
        whole = prediction.predict(network, image, tile=0)
        calls, real = [], tiles.joined
        monkeypatch.setattr(tiles, "joined", lambda *args: calls.append(args[2]) or real(*args))
        assert (prediction.predict(network, image, tile=1024) == whole).mean() > 0.99
        assert calls == [1024]
