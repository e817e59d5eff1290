"""Checkpoints, prediction, evaluation, training."""

import hashlib
import json

import numpy as np
from PIL import Image
import pytest
import torch
import torch.nn.functional as F

import rflw
from rflw import InputError, build, checkpoint, device, evaluation, prediction
from rflw.data.labels import LABELS
from rflw.data.synthetic import scene
from rflw.metrics import confusion_matrix

CARD = {"classes": LABELS["embedded"].classes, "data": "embedded"}
PHOTO = np.random.RandomState(0).randint(0, 256, (50, 71, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build("refinenet-lw-mobilenet_v2", 6).eval()
    with torch.no_grad():  # balance the classes, so that a random network predicts several of them
        model.decoder.classifier.bias -= model(
            prediction.normalise(PHOTO, model, torch.device("cpu"))
        ).mean((0, 2, 3))
    return model


class TestCheckpoints:
    def test_save_and_load(self, model, tmp_path):
        checkpoint.save(model, tmp_path / "x.safetensors", CARD)
        loaded = rflw.load(tmp_path / "x.safetensors")
        assert (loaded.name, loaded.training, loaded.card["data"]) == (
            model.name,
            False,
            "embedded",
        )
        for (key, a), b in zip(
            model.state_dict().items(), loaded.state_dict().values(), strict=True
        ):
            assert torch.equal(a.half().to(a.dtype), b), key
        assert (tmp_path / "x.safetensors").stat().st_size < 2.1 * sum(
            p.numel() for p in model.parameters()
        ) + 1e6
        assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]

    def test_values_beyond_float16_are_kept(self, model, tmp_path):
        with torch.no_grad():
            model.encoder.stem.bn.running_var[0] = 1e6
        checkpoint.save(model, tmp_path / "x.safetensors", CARD)
        model_again = rflw.load(tmp_path / "x.safetensors")
        assert model_again.encoder.stem.bn.running_var[0] == 1e6
        model.encoder.stem.bn.running_var[0] = 1

    def test_bad_files_are_refused(self, model, tmp_path):
        checkpoint.save(model, tmp_path / "x.safetensors", CARD)
        whole = (tmp_path / "x.safetensors").read_bytes()
        (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
        (tmp_path / "text.safetensors").write_text("hello")
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
        save_file(
            {"a": torch.zeros(1)},
            tmp_path / "other.safetensors",
            {"rflw": json.dumps({"model": model.name, **CARD})},
        )
        for name, words in (
            ("cut", "not a whole"),
            ("text", "not a whole"),
            ("foreign", "not a checkpoint of rflw"),
            ("other", "missing"),
            ("none", "no such checkpoint"),
        ):
            with pytest.raises(InputError, match=words):
                rflw.load(tmp_path / f"{name}.safetensors")


class TestPredict:
    def test_is_the_best_class_of_the_resized_logits(self, model):
        x = torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255
        x = (x - torch.tensor(model.mean).view(1, 3, 1, 1)) / torch.tensor(model.std).view(
            1, 3, 1, 1
        )
        with torch.inference_mode():
            logits = F.interpolate(model(x), size=(50, 71), mode="bilinear", align_corners=False)
        out = rflw.predict(model, PHOTO)
        assert out.shape == (50, 71) and out.dtype == np.uint8
        assert (out == logits.argmax(1)[0].numpy()).mean() > 0.999
        assert len(np.unique(out)) > 1

    def test_takes_paths_and_pil_images(self, model, tmp_path):
        Image.fromarray(PHOTO).save(tmp_path / "x.png")
        expected = rflw.predict(model, PHOTO)
        assert np.array_equal(rflw.predict(model, tmp_path / "x.png"), expected)
        assert np.array_equal(rflw.predict(model, str(tmp_path / "x.png")), expected)
        assert np.array_equal(rflw.predict(model, Image.fromarray(PHOTO)), expected)

    def test_keeps_the_size_whatever_the_network_sees(self, model):
        assert rflw.predict(model, PHOTO, short_side=40).shape == (50, 71)

    def test_leaves_the_mode_of_the_network(self, model):
        model.train()
        a = rflw.predict(model, PHOTO)
        assert model.training
        assert np.array_equal(a, rflw.predict(model.eval(), PHOTO))

    @pytest.mark.parametrize(
        "array",
        [PHOTO / 255, PHOTO.astype(np.uint16), PHOTO[..., 0], np.dstack([PHOTO, PHOTO[..., :1]])],
    )
    def test_other_arrays_are_refused(self, model, array):
        with pytest.raises(InputError, match="uint8"):
            rflw.predict(model, array)

    def test_arrays_may_be_views(self, model):
        assert np.array_equal(
            rflw.predict(model, PHOTO[..., ::-1]), rflw.predict(model, PHOTO[..., ::-1].copy())
        )

    def test_the_network_sees_the_short_side(self, model):
        assert not np.array_equal(
            rflw.predict(model, PHOTO, short_side=100), rflw.predict(model, PHOTO)
        )

    @pytest.mark.parametrize("size", [(1, 1), (32, 100)])
    def test_too_small(self, model, size):
        with pytest.raises(InputError, match=f"{size[1]}x{size[0]} pixels"):
            rflw.predict(model, np.zeros((*size, 3), np.uint8))


class TestEvaluate:
    def test_sums_the_matrices_of_predictions(self, model):
        data = [scene("val", i) for i in range(3)]
        matrices = evaluation.evaluate(model, data, "fp32")
        expected = [
            confusion_matrix(
                torch.from_numpy(rflw.predict(model, image)), torch.from_numpy(mask), 6
            )
            for image, mask in data
        ]
        assert torch.equal(matrices, torch.stack(expected))

    def test_scales_and_flips_are_averaged_as_probabilities(self, model):
        image, _ = scene("val", 0)
        x, size = prediction.normalise(image, model, torch.device("cpu")), (96, 128)
        expected = 0
        with torch.inference_mode():
            for h, w in ((96, 128), (144, 192)):
                scaled = F.interpolate(x, (h, w), mode="bilinear", antialias=True)
                for dims in ((), (3,)):
                    logits = model(scaled.flip(dims)).flip(dims)
                    expected += (
                        F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)
                        / 4
                    )
        torch.testing.assert_close(
            prediction.scores(model, image, size, "fp32", (1.0, 1.5), flip=True), expected
        )

    def test_processes_share_the_images_and_modes_stay(self, model):
        data = [scene("val", i) for i in range(3)]
        shares = [evaluation.evaluate(model, data, "fp32", rank=rank, world=2) for rank in (0, 1)]
        assert torch.equal(sum(shares), evaluation.evaluate(model, data, "fp32"))
        assert shares[0][1].sum() == 0 and shares[1][0].sum() == shares[1][2].sum() == 0
        model.train()
        model.encoder.stem.bn.eval()
        evaluation.evaluate(model, data[:1], "fp32")
        assert model.training and not model.encoder.stem.bn.training
        model.eval()

    def test_summary(self):
        matrices = torch.tensor([[[3, 1, 0], [1, 5, 0], [0, 0, 0]]])
        assert evaluation.summary(matrices, ("a", "b", "c")) == {
            "miou": pytest.approx((3 / 5 + 5 / 7) / 2),
            "pixel_accuracy": 0.8,
            "iou": {"a": pytest.approx(3 / 5), "b": pytest.approx(5 / 7), "c": None},
            "miou_interval": pytest.approx(2 * [(3 / 5 + 5 / 7) / 2]),
            "miou_absent_as_one": pytest.approx((3 / 5 + 5 / 7 + 1) / 3),
            "frequency_weighted_iou": pytest.approx(0.4 * 3 / 5 + 0.6 * 5 / 7),
        }


def test_shipped_networks_are_those_of_their_records():
    for path in checkpoint.SHIPPED.glob("*.safetensors"):
        model, card = rflw.load(path), path.with_suffix(".md").read_text()
        record = rflw.records.read(f"{model.card['recipe']}-s{model.card['seed']}")
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card and path.stat().st_size < 16e6
        assert card == rflw.records.card(
            record, path, path.stem, LABELS[model.card["data"]].licence
        )


class TestPlaces:
    def test_devices_and_precisions(self):
        assert device.pick_device("cpu").type == "cpu"
        with pytest.raises(InputError, match="tpu"):
            device.pick_device("tpu")
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="no CUDA device"):
                device.pick_device("cuda")
        assert device.pick_precision("fp16", torch.device("cpu")) == "fp16"
        assert device.pick_precision("auto", torch.device("cpu")) in ("bf16", "fp32")
        with pytest.raises(InputError, match="int3"):
            device.pick_precision("int3", torch.device("cpu"))


def test_an_image_that_is_too_small_is_named(model):
    class Small:
        ids = ["fine", "tiny"]

        def __len__(self):
            return 2

        def __getitem__(self, i):
            side = (40, 8)[i]
            return np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8)

    with pytest.raises(InputError, match="tiny: input of 8x8 pixels: the smallest is 33x33"):
        evaluation.evaluate(model, Small())
