"""Prediction: what it takes and gives, views of an image, tiles; and how it is evaluated."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
from PIL import Image
import pytest
import torch
import torch.nn.functional as F

from rflw import InputError, checkpoint, cli, evaluation, prediction, tiles
from rflw.data.labels import labels_for
from rflw.data.synthetic import scene
from rflw.metrics import confusion_matrix

DATA = [scene("val", i) for i in range(3)]
PHOTO = DATA[0][0]  # 96 x 128


@pytest.fixture(scope="module")
def model():
    return checkpoint.load("embedded")


def test_is_the_best_class_of_the_resized_logits(model):
    x = torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(model.mean).view(1, 3, 1, 1)) / torch.tensor(model.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        logits = F.interpolate(model(x), size=(96, 128), mode="bilinear", align_corners=False)
    classes = prediction.predict(model, PHOTO)
    assert classes.shape == (96, 128) and classes.dtype == np.uint8
    assert (classes == logits.argmax(1)[0].numpy()).mean() > 0.999
    assert len(np.unique(classes)) > 1


def test_takes_paths_pil_images_and_arrays(model, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", PHOTO)
    expected = prediction.predict(model, PHOTO)
    for image in (
        str(tmp_path / "x.png"),
        Image.fromarray(PHOTO).convert("RGBA").convert("RGBa"),
        torch.from_numpy(PHOTO),
        PHOTO[:, ::-1].copy()[:, ::-1],
        np.load(tmp_path / "x.npy", mmap_mode="r"),
    ):
        assert np.array_equal(prediction.predict(model, image), expected), type(image)
    grey = PHOTO[..., 0]
    expected = prediction.predict(model, np.dstack([grey] * 3))
    assert np.array_equal(prediction.predict(model, grey), expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (PHOTO / 255, "a ndarray of float64"),
        (np.dstack([PHOTO, PHOTO[..., :1]]), r"shape \(96, 128, 4\)"),
        (PHOTO[None], r"shape \(1, 96, 128, 3\)"),
        (PHOTO.tobytes(), "a bytes of"),
        ([PHOTO, PHOTO[1:]], "a list cannot be made an array"),
        (np.zeros((40, 40), [(f"field{i}", "u1") for i in range(99)]), "a ndarray of "),
        (PHOTO[:32], "128x32 pixels"),
    ],
)
def test_anything_else_is_refused_by_its_type(model, image, words):
    with pytest.raises(InputError, match=f"^image: [^\n]*{words}[^\n]*$") as refusal:
        prediction.predict(model, image)
    assert len(str(refusal.value)) < 400


def test_a_side_that_is_too_short_and_too_many_classes_are_refused(model):
    with pytest.raises(InputError, match="a shorter side of 20 pixels"):
        prediction.predict(model, PHOTO, 20)
    with pytest.raises(InputError, match="300 classes"):
        prediction.predict(SimpleNamespace(num_classes=300), PHOTO)


@pytest.mark.parametrize(
    ("asked", "card", "seen"),
    [(None, 75, (75, 106)), (100, 75, (100, 142)), (0, 75, (50, 71)), (None, None, (50, 71))],
)
def test_the_network_sees_the_side_that_is_asked_or_its_checkpoints(
    model, monkeypatch, asked, card, seen
):
    """75 / 50 * 71 is 106.5, which is rounded down, in whole numbers."""
    sizes = []
    monkeypatch.setattr(model, "card", {"short_side": card})
    hook = model.encoder.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape[2:])))
    assert prediction.predict(model, PHOTO[:50, :71], asked).shape == (50, 71)
    hook.remove()
    assert sizes == [seen]


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
    size = (96, 128)
    x, expected = prediction.normalise(PHOTO, model, torch.device("cpu")), 0
    with torch.inference_mode():
        for h, w in ((96, 128), (48, 64)):
            scaled = F.interpolate(x, (h, w), mode="bilinear", antialias=True)
            for dims in ((), (3,)):
                logits = model(scaled.flip(dims)).flip(dims)
                expected += F.interpolate(logits, size, mode="bilinear").softmax(1) / 4
    logits = prediction.views(model, PHOTO, "fp32", (1.0, 0.5), flip=True)
    scores = prediction.combined(logits, lambda x: prediction.upsample(x, size))
    torch.testing.assert_close(scores, expected)
    assert torch.equal(prediction.best(logits, size), scores.argmax(1))


def test_large_images_are_resized_a_few_rows_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, *size, generator=generator) for size in ((13, 16), (20, 8))]
    expected = prediction.best(logits, (50, 61))
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
        spans = tiles.spans(2049, 2048)
        assert spans[0][0] == 0 and spans[-1][1] == 2049
        assert all(end % 32 == 2049 % 32 and end - start <= 2048 for start, end in spans)

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

    def test_a_long_scene_is_labelled_as_in_one_piece(self, model, monkeypatch):
        """Aligned corners place a tile's coarse maps a little differently: a few borders move."""
        image = np.concatenate([scene("val", i)[0][:40] for i in range(11)], 1)[:, :1300]
        whole = prediction.predict(model, image, 0, tile=0)
        calls, real = [], tiles.joined
        monkeypatch.setattr(tiles, "joined", lambda *args: calls.append(args[2]) or real(*args))
        assert (prediction.predict(model, image, 0, tile=1024) == whole).mean() > 0.99
        assert calls == [1024]


def test_matrices_are_those_of_predictions_and_processes_share_them(model):
    seen = []
    matrices = evaluation.evaluate(
        model, DATA, "fp32", each=lambda i, *maps: seen.append((i, *maps))
    )
    for n, ((i, classes, labels), (image, mask)) in enumerate(zip(seen, DATA, strict=True)):
        assert np.array_equal(classes.numpy(), prediction.predict(model, image)) and i == n
        assert np.array_equal(labels.numpy(), mask)
        assert torch.equal(matrices[n], confusion_matrix(classes, labels, 6))
    shares = [evaluation.evaluate(model, DATA, "fp32", rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(sum(shares), matrices)
    assert shares[0][1].sum() == 0 and shares[1][0].sum() == shares[1][2].sum() == 0


def test_an_image_that_is_too_small_is_named(model):
    class Small(list):
        ids = ["fine", "tiny"]

    data = Small((np.zeros((n, n, 3), np.uint8), np.zeros((n, n), np.uint8)) for n in (40, 8))
    with pytest.raises(InputError, match="tiny: input of 8x8 pixels: the smallest is 33x33"):
        evaluation.evaluate(model, data)


def test_summary_by_hand():
    matrices = torch.tensor([[[3, 1, 0], [1, 5, 0], [0, 0, 0]]])
    assert evaluation.summary(matrices, ("a", "b", "c")) == {
        "miou": pytest.approx((3 / 5 + 5 / 7) / 2),
        "pixel_accuracy": 0.8,
        "iou": {"a": pytest.approx(3 / 5), "b": pytest.approx(5 / 7), "c": None},
        "miou_interval": pytest.approx(2 * [(3 / 5 + 5 / 7) / 2]),
        "miou_absent_as_one": pytest.approx((3 / 5 + 5 / 7 + 1) / 3),
        "frequency_weighted_iou": pytest.approx(0.4 * 3 / 5 + 0.6 * 5 / 7),
    }


def test_names_of_classes_are_compared_and_their_order():
    model = SimpleNamespace(card={"classes": ["a", "b", "c"]})
    for names, said in (
        ("abc", None),
        ("acb", "the same classes in another order: label 1 is c, of the network b"),
        ("abd", "other classes: label 2 is d, of the network c"),
        ("ab", "the network has 3 classes, d has 2"),
    ):
        dataset = SimpleNamespace(name="d", labels=labels_for(names))
        if said is None:
            evaluation.same_classes(model, dataset)
            continue
        with pytest.raises(InputError, match=said):
            evaluation.evaluate(model, dataset)


def test_the_interval_of_eval_draws_frames_that_are_alike_together(monkeypatch):
    class Frames(list):
        name, ids = "camvid", [f"0001TP_{i:06}" for i in range(24)]
        labels = labels_for("ab")

    torch.manual_seed(0)
    matrices = torch.randint(1, 50, (24, 2, 2)) * torch.arange(1, 25)[:, None, None]
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: matrices)
    model, ways = SimpleNamespace(num_classes=2), ("fp32", (1.0,), False, None)
    got = cli.measure(model, Frames(range(24)), ways)["miou_interval"]
    blocks = [0] * 10 + [1] * 10 + [2] * 4
    assert got == evaluation.summary(matrices, "ab", blocks)["miou_interval"]
    assert got != evaluation.summary(matrices, "ab")["miou_interval"]


def test_a_network_sees_images_at_the_scale_of_its_training(model, monkeypatch):
    for card, scale in (
        ({"data": "nyu", "short_side": 234}, 0.5),
        ({"data": "nyu", "short_side": None}, 1.0),
        ({"data": "photos"}, 1.0),
    ):
        monkeypatch.setattr(model, "card", card)
        assert prediction.own_scale(model) == scale
        seen = prediction.as_seen(PHOTO, model, torch.device("cpu"))
        assert seen.shape == (1, 3, 96 * scale, 128 * scale)
