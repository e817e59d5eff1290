"""Fast inference computes what the network does and says what it did; its files run elsewhere."""

from copy import deepcopy
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

NOTHING = dict.fromkeys(("fold", "merge", "channels_last", "pools"), False)
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


class Shared(nn.Module):
    """A convolution and a batch norm that are used in another way than one after the other."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), way

    def forward(self, x):
        return self.way(self, x)


CONV = nn.Conv2d(3, 3, 1)


@torch.no_grad()
@pytest.mark.parametrize("name", [LITE0, "refinenet-lw-timm:mobilenetv3_small_050"])
def test_folding_batch_norm_changes_no_answer(name, images):
    model = awake(name)
    expected = model(images)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert deploy.fold_batch_norm(model) == norms
    assert close(model(images), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    "net",
    [
        Shared(lambda net, x: (y := net.conv(x)) + net.norm(y)),  # the sum reads the output, too
        Shared(lambda net, x: net.norm(net.conv(net.norm(x)))),
        Shared(lambda net, x: net.norm(net.conv(net.conv(x)))),
        nn.Sequential(CONV, nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(CONV, nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm2d(3), CONV),  # the last step is a convolution
        nn.Sequential(CONV, nn.BatchNorm2d(3), CONV, nn.BatchNorm2d(3)),
    ],
)
def test_folding_leaves_what_has_other_readers_or_no_statistics(net, images):
    expected = stir(net)(images)
    assert deploy.fold_batch_norm(net) == 0 and torch.equal(net(images), expected)


@torch.no_grad()
@pytest.mark.parametrize(("form", "stages"), [("-lw", 3), ("-lw-rcu", 0), ("-norcu", 0)])
def test_merging_linear_maps_changes_no_answer(form, stages, images):
    model = awake(f"refinenet{form}-efficientnet_lite0")  # the last has 3x3 maps
    expected, before = model(images), sum(p.numel() for p in model.parameters())
    assert deploy.merge_linear(model) == stages
    assert close(model(images), expected)
    after = sum(p.numel() for p in model.parameters())
    assert before - after == stages * 256 * 256  # a 1x1 of 256 -> 256 in each


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
    plain = deploy.optimise(model, compiled=False, **NOTHING)
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


@pytest.mark.parametrize("graphs", [None, False])
def test_graphs_are_for_cuda_and_code_has_constant_weights(tiny, monkeypatch, graphs):
    from torch._inductor import config

    held, modes, frozen = torch.zeros(1, 5, 10, 10), [], []
    code = lambda _: frozen.append(config.freezing) or held
    monkeypatch.setattr(torch, "compile", lambda net, mode, **_: modes.append(mode) or code)
    monkeypatch.setattr(tiny, "parameters", lambda: iter([Mock(device=torch.device("cuda"))]))
    monkeypatch.setattr(pooling, "can_compile", lambda: False)  # on CPUs
    fast = deploy.optimise(tiny, "fp16", graphs=graphs, **NOTHING)
    uses = graphs is None
    assert (fast.steps, fast.left_out) == (("fp16", "compile", "graphs")[: 2 + uses], {})
    assert modes == ["reduce-overhead" if uses else None]
    for _ in range(2):  # when the code is made, and later
        copied = fast(torch.zeros(1, 3, 40, 40)).data_ptr() != held.data_ptr()
        assert copied is uses  # a graph's output is overwritten by the next
    assert frozen == [True, False]


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


def test_int8_leaves_the_encoder_s_early_layers_as_they_are(scenes, tmp_path):
    layers, net = [*Tiny().children()], nn.Sequential()  # strides 4, 16, 16
    net.encoder = nn.Sequential(*layers[:3], nn.Conv2d(8, 8, 3, 4, 1))
    net.decoder = layers[-1]
    net.name, net.num_classes, net.mean, net.std = Tiny.name, 5, Tiny.mean, Tiny.std
    net.eval()
    if not torch.__version__.startswith(("2.10.", "2.11.")):
        fast = deploy.optimise(net, "int8", compiled=False, calibration=scenes)
        found = sorted(v.shape[1:] for v in fast.net.buffers() if v.dtype == torch.int8)
        assert found == [(8, 1, 1), (8, 3, 3)]
    deploy.export(net, tmp_path / "net.onnx", calibration=scenes)
    tensors = onnx.load(tmp_path / "net.onnx").graph.initializer
    weights = [tensor.dims[1:] for tensor in tensors if tensor.name.endswith("weight_quantized")]
    assert sorted(weights) == [[8, 1, 1], [8, 3, 3]]
    # conv1, three blocks and their shortcut, four blocks and theirs, the first layer of the next
    early = deploy._early(rflw.build("refinenet-lw-resnet50", 2, None))
    assert len(early) == 1 + (3 * 3 + 1) + (4 * 3 + 1) + 1 and early[0] == "encoder.conv1"


def test_int8_that_cannot_be_had_is_refused(tiny, monkeypatch):
    def refused(words, *images):
        with pytest.raises(InputError, match=words):
            deploy.optimise(tiny, "int8", compiled=False, calibration=images)

    refused("no images")
    x86 = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.X86InductorQuantizer"
    with monkeypatch.context() as patch:  # as some versions of PyTorch do
        patch.setattr(f"{x86}.annotate", lambda self, graph: graph)
        refused("finds nothing to quantise with PyTorch", np.zeros((40, 40, 3), np.uint8))
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)  # as if it were not there
    refused(r"needs torchao: pip install 'rflw\[deploy\]'")


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
    kept = {entry.key: entry.value for entry in written.metadata_props}
    assert kept["classes"] == "a, b, c, d, e"
    shapes = {tensor.name: list(tensor.dims) for tensor in written.graph.initializer}
    weights = [n for n in shapes if n.endswith("_quantized") and len(shapes[n]) == 4]
    assert len(weights) == sum(isinstance(m, nn.Conv2d) for m in tiny.modules())
    for name in weights:  # a scale for each channel of output
        assert shapes[name.replace("_quantized", "_scale")] == shapes[name][:1]


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
        run = torch.export.load(path).module()
        for shape in ((1, 3, 50, 81), (2, 3, 33, 90)):
            x = torch.rand(shape)
            assert close(run(x), tiny(x))
        return
    with pytest.raises(InputError, match="does not compute what the network does"):
        deploy.export(tiny, path, "torch-export", whole)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", Mock(side_effect=RuntimeError("no\nway")))
    for words, form, options in (
        ("for onnx", "torch-export", {"calibration": [np.zeros((40, 40, 3))]}),
        ("images to calibrate", "onnx", {"calibration": []}),
        ("operator set 13: PyTorch writes those from 18 to", "onnx", {"opset": 13}),
        ("operator set 99: PyTorch writes those from 18 to", "onnx", {"opset": 99}),
        (r"^operator set 18: ONNX cannot be written \(no\)$", "onnx", {"opset": 18}),
    ):
        with pytest.raises(InputError, match=words):
            deploy.export(tiny, tmp_path / "net", form, **options)
        assert list(tmp_path.iterdir()) == []
