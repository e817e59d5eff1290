"""Fast inference computes what the network does and says what it did; its files run elsewhere."""

from copy import deepcopy
import re
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import rflw
from rflw import InputError, build, deploy, device
from rflw.data.synthetic import scene
from rflw.nn import pooling
from rflw.nn.blocks import CRP
from rflw_study.speed import InONNXRuntime

CUDA = torch.device("cuda")
LITE0 = "refinenet-lw-efficientnet_lite0"


def stir(model: nn.Module) -> nn.Module:
    """Give the batch norms of a random network something to do."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        for tensor, low, high in zip(tensors, (0.5, -0.3, -0.3, 0.5), (1.5, 0.3, 0.3, 2)):
            if tensor is not None:
                tensor.data.uniform_(low, high)
    return model.eval()


def awake(name: str) -> nn.Module:
    torch.manual_seed(0)
    return stir(build(name, 5))


class Tiny(nn.Sequential):
    """What compiles in seconds: a convolution with batch norm, and a chain of pools."""

    name, num_classes, mean, std = "tiny", 5, (0.5,) * 3, (0.25,) * 3

    def __init__(self):
        torch.manual_seed(0)
        stem = nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU()
        super().__init__(*stem, CRP(8, stages=2, kernel=1), nn.Conv2d(8, 5, 1))
        stir(self)


@pytest.fixture
def tiny():
    return Tiny()


@pytest.fixture(scope="module")
def scenes():
    return [scene("val", i)[0] for i in range(6)]


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-4):
    return a.shape == b.shape and ((a - b).norm() / b.norm()).item() < tolerance


# ---------------------------------------------------------------- exact algebra


@torch.no_grad()
@pytest.mark.parametrize(
    "name", [LITE0, "refinenet-lw-timm:resnet18", "refinenet-lw-timm:mobilenetv3_small_050"]
)
def test_folding_batch_norm_changes_no_answer(name, images):
    model = awake(name)
    expected = model(images)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert deploy.fold_batch_norm(model) == norms
    assert close(model(images), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Twice(nn.Module):
    """A convolution whose output is read by its batch norm and by the sum after it, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class Again(Twice):
    """A batch norm that serves two convolutions' outputs."""

    def forward(self, x):
        return self.norm(self.conv(self.norm(x)))


class Before(Twice):
    """A convolution that somebody else uses, too."""

    def forward(self, x):
        return super().forward(self.conv(x))


SHARED = nn.Conv2d(3, 3, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    "net",
    [
        Twice(),
        Again(),
        Before(),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)),  # the last step is a convolution
        nn.Sequential(SHARED, nn.BatchNorm2d(3), SHARED, nn.BatchNorm2d(3)),
    ],
)
def test_folding_leaves_what_has_other_readers_or_no_statistics(net, images):
    expected = stir(net)(images)
    assert deploy.fold_batch_norm(net) == 0 and torch.equal(net(images), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "stages"),
    [(LITE0, 3), ("refinenet-lw-mobilenet_v2", 0), ("refinenet-lw-rcu-efficientnet_lite0", 0)],
)
def test_merging_linear_maps_changes_no_answer(name, stages, images):
    model = awake(name)
    expected, before = model(images), sum(p.numel() for p in model.parameters())
    assert deploy.merge_linear(model) == stages
    assert close(model(images), expected)
    after = sum(p.numel() for p in model.parameters())
    assert before - after == stages * 256 * 256  # a 1x1 of 256 -> 256 in each


def test_only_1x1_maps_without_bias_are_merged():
    model = awake(LITE0)
    stages = model.decoder.stages
    stages[1].adapt = nn.Conv2d(256, 256, 1)  # with a bias
    stages[2].adapt = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    assert deploy.merge_linear(model) == 1
    assert [isinstance(s.adapt, nn.Identity) for s in stages] == [True, False, False, True]
    assert deploy.merge_linear(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))) == 0


# ---------------------------------------------------------------- one network, made fast


@torch.no_grad()
def test_optimise_leaves_the_network_as_it_was_and_says_what_it_did(images, monkeypatch):
    monkeypatch.setattr(deploy, "keep_freed_memory", kept := Mock())
    model = awake(LITE0)
    model.card = {"classes": list("abcde")}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = deploy.optimise(model, compiled=False)
    kept.assert_called_once_with()  # on CPUs
    assert close(fast(images), model(images))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert fast.steps == ("fold", "merge", "pools: rows and columns", "channels-last")
    assert fast.left_out == {} and not fast.training
    for entry in ("name", "num_classes", "mean", "std", "card"):
        assert getattr(fast, entry) == getattr(model, entry)
    assert not any(p.requires_grad for p in fast.parameters())
    assert all(p.requires_grad for p in model.parameters())
    nothing = dict.fromkeys(("fold", "merge", "channels_last", "pools", "compiled"), False)
    plain = deploy.optimise(model, **nothing)
    assert plain.steps == () and torch.equal(plain(images), model(images))


@torch.no_grad()
def test_compiled_computes_the_same_at_every_size(tiny, images, monkeypatch):
    fast = deploy.optimise(tiny, compiled=True)
    assert fast.steps == ("fold", "pools: maxima", "channels-last", "compile")
    for x in (images, images[:1, :, :40, :50]):
        assert close(fast(x), tiny(x))
    assert len(list(fast.parameters())) == len({id(p) for p in fast.parameters()})
    monkeypatch.setattr(pooling, "can_compile", lambda: False)
    without = deploy.optimise(tiny)
    assert "compiler" in without.left_out["compile"] and "compile" not in without.steps


def test_code_is_made_with_constant_weights(tiny, monkeypatch):
    from torch._inductor import config

    seen = []
    monkeypatch.setattr(pooling, "can_compile", lambda: True)
    monkeypatch.setattr(
        torch, "compile", lambda net, **_: lambda x: seen.append(config.freezing) or net(x)
    )
    deploy.optimise(tiny, compiled=True)(torch.zeros(1, 3, 40, 40))
    assert seen == [True] and not config.freezing


@pytest.mark.parametrize("graphs", [None, False])
def test_graphs_are_for_cuda_and_their_outputs_are_copied(tiny, monkeypatch, graphs):
    held, modes = torch.zeros(1, 5, 10, 10), []
    monkeypatch.setattr(
        torch, "compile", lambda net, **options: modes.append(options["mode"]) or (lambda x: held)
    )
    monkeypatch.setattr(tiny, "parameters", lambda: iter([Mock(device=CUDA)]))
    monkeypatch.setattr(pooling, "can_compile", lambda: False)  # on CPUs
    nothing = dict.fromkeys(("fold", "merge", "channels_last", "pools"), False)
    fast = deploy.optimise(tiny, "fp16", graphs=graphs, **nothing)
    uses = graphs is None
    assert (fast.steps, fast.left_out) == (("fp16", "compile", "graphs")[: 2 + uses], {})
    assert modes == ["reduce-overhead" if uses else None]
    for _ in range(2):  # when the code is made, and later
        assert (fast(torch.zeros(1, 3, 40, 40)).data_ptr() == held.data_ptr()) is not uses


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.98), ("int8", 0.8)])
def test_lower_precisions_agree(tiny, scenes, precision, share):
    if precision == "bf16" and not device.computes_in_bf16(torch.device("cpu")):
        pytest.skip("this processor does not compute in bf16")
    if precision == "int8" and torch.__version__.startswith(("2.10.", "2.11.")):
        pytest.skip("torchao finds nothing to quantise with this PyTorch")
    plain = rflw.load("embedded") if precision == "bf16" else tiny
    fast = deploy.optimise(plain, precision, compiled=False, calibration=scenes)
    assert precision in fast.steps
    for image in (scenes[5], scenes[5][:70, :101]):
        assert (rflw.predict(fast, image) == rflw.predict(plain, image)).mean() > share
    if precision == "int8":  # values really are 8 bits wide
        assert any("quantize_per_tensor" in str(node.target) for node in fast.net.graph.nodes)


def test_precisions_that_cannot_be_had_are_refused(tiny, monkeypatch):
    """Those that a device has not: test_device.py."""
    image = np.zeros((40, 40, 3), np.uint8)

    def refused(words, precision="int8", calibration=(image,)):
        with pytest.raises(InputError, match=words):
            deploy.optimise(tiny, precision, compiled=False, calibration=calibration)

    refused("choose from: fp32, bf16, fp16, int8", "fp8")
    refused("no images", calibration=())
    refused("calibrate", calibration=None)
    quantiser = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.X86InductorQuantizer"
    with monkeypatch.context() as patch:  # as some versions of PyTorch do
        patch.setattr(f"{quantiser}.annotate", lambda self, graph: graph)
        refused(f"finds nothing to quantise with PyTorch {re.escape(torch.__version__)}")
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)  # as if it were not there
    refused(r"needs torchao: pip install 'rflw\[deploy\]'")


# ---------------------------------------------------------------- export


@torch.no_grad()
def test_onnx_takes_any_size(tiny, tmp_path, monkeypatch):
    facts = deploy.export(tiny, tmp_path / "net.onnx")
    assert facts["error"] < 1e-4 and facts["agreement"] == 1
    assert (facts["input"], facts["output"]) == ("image", "logits")
    run = deploy.onnx_runner(tmp_path / "net.onnx")
    for shape in ((1, 3, 33, 33), (1, 3, 64, 200), (3, 3, 111, 50)):
        x = torch.rand(shape)
        assert close(run(x), tiny(x))
    written = lambda model, path, calibration: shutil.copy(tmp_path / "net.onnx", path)
    monkeypatch.setattr(deploy, "export", written)  # once is enough
    stand_in, x = InONNXRuntime(tiny), torch.rand(2, 3, 40, 50)
    assert close(stand_in(x), tiny(x))  # two images, one after the other


def test_whole_is_predict_at_the_short_side_of_the_checkpoint(tiny, scenes):
    tiny.card = {"short_side": 75}
    whole = deploy.Whole(tiny)
    for image in (scenes[3], scenes[3][:90, :55], scenes[3][:40]):  # lying, upright, enlarged
        with torch.no_grad():
            classes = whole(torch.from_numpy(image)).numpy()
        assert (classes == rflw.predict(tiny, image)).mean() > 0.999
        assert (classes == rflw.predict(tiny, image, 0)).mean() < 0.999


def test_int8_from_image_to_classes(tiny, scenes, tmp_path):
    """The same of a whole network in fp32: test_cli.py."""
    tiny.card, path = {"classes": list("abcde")}, tmp_path / "net.onnx"
    facts = deploy.export(tiny, path, whole=True, opset=18, calibration=scenes[:3])
    assert facts["error"] is None and facts["agreement"] > 0.8
    assert [*tmp_path.iterdir()] == [path]
    classes = deploy.onnx_runner(path)(torch.from_numpy(scenes[3][:70, :101]))
    assert classes.dtype == torch.uint8 and classes.shape == (70, 101)
    written = onnx.load(path)
    assert written.opset_import[0].version == 18
    assert {entry.key: entry.value for entry in written.metadata_props}[
        "classes"
    ] == "a, b, c, d, e"
    shapes = {tensor.name: list(tensor.dims) for tensor in written.graph.initializer}
    weights = [n for n in shapes if n.endswith("_quantized") and len(shapes[n]) == 4]
    assert len(weights) == sum(isinstance(m, nn.Conv2d) for m in tiny.modules())
    for name in weights:  # a scale for each channel of output
        assert shapes[name.replace("_quantized", "_scale")] == shapes[name][:1]


def test_torch_export_takes_any_size(tiny, tmp_path):
    deploy.export(tiny, tmp_path / "net.pt2", "torch-export")
    program = torch.export.load(tmp_path / "net.pt2")
    for shape in ((1, 3, 50, 81), (2, 3, 33, 90)):
        x = torch.rand(shape)
        assert close(program.module()(x), tiny(x))


@pytest.mark.parametrize(
    ("factor", "whole", "taken"),
    [(1 + 3e-5, False, True), (1 + 3e-4, False, False), (2, True, False)],
)
def test_a_wrong_file_is_refused_and_not_left(tiny, tmp_path, monkeypatch, factor, whole, taken):
    """Logits may differ by rounding only; class maps show only that another class has won."""
    spoiled, path = deepcopy(tiny), tmp_path / "net.pt2"
    spoiled[-1].weight.data *= factor
    spoiled[-1].bias.data *= factor
    spoiled[-1].bias.data[0] += 100 * whole
    program = deploy._program(spoiled, whole)
    monkeypatch.setattr(deploy, "_program", lambda *_: program)
    if taken:
        facts = deploy.export(tiny, path, "torch-export", whole)
        assert facts["error"] == pytest.approx(3e-5, rel=0.2) and facts["agreement"] == 1
        assert (facts["file"], facts["mb"]) == (str(path), path.stat().st_size / 1e6)
        return
    with pytest.raises(InputError, match="does not compute what the network does"):
        deploy.export(tiny, path, "torch-export", whole)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tiny, tmp_path, monkeypatch):
    def refused(words, form="onnx", **options):
        with pytest.raises(InputError, match=words):
            deploy.export(tiny, tmp_path / "net", form, **options)
        assert list(tmp_path.iterdir()) == []

    refused("choose from: onnx, torch-export", "tflite")
    refused("for onnx", "torch-export", calibration=[np.zeros((40, 40, 3))])
    refused("images to calibrate", calibration=[])
    refused("operator set 13: PyTorch writes those from 18 to", opset=13)
    refused("operator set 99: PyTorch writes those from 18 to", opset=99)
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", Mock(side_effect=RuntimeError("no\nway")))
        refused(r"^operator set 18: ONNX cannot be written \(no\)$", opset=18)
    monkeypatch.setattr(deploy, "import_module", Mock(side_effect=ImportError("onnx")))
    refused(r"rflw\[deploy\]")
