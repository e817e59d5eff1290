"""Fast inference computes what the plain network does, says what it did, and what it writes runs elsewhere."""

from copy import deepcopy
import re
from shutil import copyfile
import sys
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import rflw
from rflw import InputError, build, deploy, device, prediction
from rflw.data.synthetic import scene
from rflw.nn import pooling
from rflw.nn.blocks import CRP
from rflw_study.speed import InONNXRuntime


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


@pytest.fixture(scope="module")
def small():
    return awake("refinenet-lw-efficientnet_lite0")


@pytest.fixture(scope="module")
def tiny():
    return stir(Tiny())


@pytest.fixture(scope="module")
def shipped():
    return rflw.load("embedded")


@pytest.fixture(scope="module")
def scenes():
    return [scene("val", i)[0] for i in range(6)]


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-4):
    return a.shape == b.shape and ((a - b).norm() / b.norm()).item() < tolerance


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "refinenet-lw-efficientnet_lite0",
        "refinenet-lw-mobilenet_v2",
        "refinenet-lw-resnet50",
        "refinenet-lw-timm:resnet18",
        "refinenet-lw-timm:mobilenetv3_small_050",
    ],
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


class TwiceAgain(Twice):
    """Both at once: each read as often as each is used."""

    def forward(self, x):
        return super().forward(super().forward(x))


class Before(Twice):
    """A convolution that somebody else uses, too."""

    def forward(self, x):
        return super().forward(self.conv(x))


class Rectified(nn.Conv2d):
    """A convolution that does more."""

    def forward(self, x):
        return super().forward(x).relu()


SHARED = nn.Conv2d(3, 3, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    "net",
    [
        Twice(),
        Again(),
        TwiceAgain(),
        Before(),
        nn.Sequential(Rectified(3, 3, 1), nn.BatchNorm2d(3)),
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
def test_folding_counts_and_leaves_the_rest(images):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2),
    )
    stir(net)
    expected = net(images)
    assert deploy.fold_batch_norm(net) == 2 and close(net(images), expected)
    assert isinstance(net[5], nn.BatchNorm2d) and len(net[1]) == len(net[4]) == 0


def test_only_maps_without_bias_of_a_refinenet_are_merged(small):
    maps = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    assert deploy.merge_linear(maps) == 0
    model = deepcopy(small)
    stages = model.decoder.stages
    stages[1].adapt = nn.Conv2d(256, 256, 1)  # with a bias
    stages[2].adapt = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    assert deploy.merge_linear(model) == 1
    assert [isinstance(s.adapt, nn.Identity) for s in stages] == [True, False, False, True]


@torch.no_grad()
@pytest.mark.parametrize(
    "name, stages",
    [
        ("refinenet-lw-resnet50", 3),
        ("refinenet-lw-efficientnet_lite0", 3),
        ("refinenet-lw-mobilenet_v2", 0),
        ("refinenet-lw-rcu-efficientnet_lite0", 0),
        ("refinenet-efficientnet_lite0", 0),
    ],
)
def test_merging_linear_maps_changes_no_answer(name, stages, images):
    model = awake(name)
    expected, before = model(images), sum(p.numel() for p in model.parameters())
    assert deploy.merge_linear(model) == stages
    assert close(model(images), expected)
    after = sum(p.numel() for p in model.parameters())
    assert before - after == stages * 256 * 256  # a 1x1 of 256 -> 256 in each


@torch.no_grad()
def test_optimise_leaves_the_network_as_it_was_and_says_what_it_did(small, images, monkeypatch):
    monkeypatch.setattr(deploy, "keep_freed_memory", kept := Mock())
    before = {key: value.clone() for key, value in small.state_dict().items()}
    fast = deploy.optimise(small, compiled=False)
    kept.assert_called_once_with()  # on CPUs
    assert close(fast(images), small(images))
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    *first, pools, last = fast.steps
    assert (first, last) == (["fold", "merge"], "channels-last") and pools.startswith("pools: ")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.net.modules())
    assert all(isinstance(stage.adapt, nn.Identity) for stage in fast.net.decoder.stages)
    assert (fast.name, fast.num_classes, fast.mean) == (small.name, 5, small.mean)
    assert fast.left_out == {} and not hasattr(fast, "card")
    # which CPUs have not anyway
    assert deploy.optimise(Tiny(), graphs=False, compiled=False).left_out == {}


@torch.no_grad()
def test_nothing_asked_for_is_nothing_done(small, images):
    nothing = dict.fromkeys(("fold", "merge", "channels_last", "pools", "compiled"), False)
    plain = deploy.optimise(small, **nothing)
    assert plain.steps == () and torch.equal(plain(images), small(images))
    assert plain.layout == torch.contiguous_format


@torch.no_grad()
def test_compiled_computes_the_same_at_every_size(images):
    model = stir(Tiny())
    fast = deploy.optimise(model, compiled=True)
    assert fast.steps == ("fold", "pools: maxima", "channels-last", "compile")
    pools = {module.pool for module in fast.net.modules() if isinstance(module, CRP)}
    assert pools == {pooling.FORMS["maxima"]}
    for x in (images, images[:1, :, :40, :50]):
        assert close(fast(x), model(x))
    assert len(list(fast.parameters())) == len({id(p) for p in fast.parameters()})


def test_code_is_made_with_constant_weights(monkeypatch):
    from torch._inductor import config

    seen = []
    monkeypatch.setattr(pooling, "can_compile", lambda: True)
    monkeypatch.setattr(
        torch, "compile", lambda net, **_: lambda x: seen.append(config.freezing) or net(x)
    )
    deploy.optimise(Tiny(), compiled=True)(torch.zeros(1, 3, 40, 40))
    assert seen == [True] and not config.freezing


@pytest.mark.parametrize(
    ("asked", "steps", "mode"),
    [
        (None, ("fp16", "compile", "graphs"), "reduce-overhead"),
        (True, ("fp16", "compile", "graphs"), "reduce-overhead"),
        (False, ("fp16", "compile"), None),
    ],
)
def test_graphs_and_half_precision_are_for_cuda_unless_not_asked_for(
    monkeypatch, asked, steps, mode
):
    modes, model = [], Tiny()
    monkeypatch.setattr(torch, "compile", lambda net, **options: modes.append(options["mode"]))
    monkeypatch.setattr(model, "parameters", lambda: iter([Mock(device=torch.device("cuda"))]))
    monkeypatch.setattr(pooling, "can_compile", lambda: False)  # on CPUs
    fast = deploy.optimise(
        model, "fp16", fold=False, merge=False, channels_last=False, pools=False, graphs=asked
    )
    assert (fast.steps, modes, fast.left_out) == (steps, [mode], {})


@pytest.mark.parametrize(("graphs", "mode"), [(True, "reduce-overhead"), (False, None)])
def test_outputs_that_a_graph_would_overwrite_are_copied(monkeypatch, graphs, mode):
    held, asked = torch.zeros(1, 5, 10, 10), []
    monkeypatch.setattr(
        torch, "compile", lambda net, **options: asked.append(options) or (lambda x: held)
    )
    fast = deploy.optimise(Tiny(), compiled=False)
    fast.compile(graphs)
    assert asked == [{"dynamic": False, "mode": mode}]
    for _ in range(2):  # when the code is made, and later
        assert (fast(torch.zeros(1, 3, 40, 40)).data_ptr() == held.data_ptr()) is not graphs


def test_a_network_made_fast_is_known_by_what_it_was_made_of(shipped):
    fast = deploy.optimise(shipped, compiled=False)
    assert (fast.card, fast.std, fast.device) == (shipped.card, shipped.std, torch.device("cpu"))
    assert (fast.dtype, fast.precision) == (torch.float32, "fp32")
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    assert all(p.requires_grad for p in shipped.parameters())
    assert not fast(torch.zeros(1, 3, 40, 40, requires_grad=True)).requires_grad


def test_without_a_compiler_it_says_so(images, monkeypatch):
    monkeypatch.setattr(pooling, "can_compile", lambda: False)
    model = stir(Tiny())
    fast = deploy.optimise(model)
    assert "compiler" in fast.left_out["compile"] and "compile" not in fast.steps
    with torch.no_grad():
        assert close(fast(images), model(images))


NO_INT8 = torch.__version__.startswith(
    ("2.10.", "2.11.")
)  # where torchao finds nothing to quantise


def test_int8_that_would_change_nothing_is_refused(images, monkeypatch):
    """As some versions of PyTorch do: nothing is found to be quantised."""
    image = np.zeros((40, 40, 3), np.uint8)
    quantiser = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.X86InductorQuantizer"
    monkeypatch.setattr(f"{quantiser}.annotate", lambda self, graph: graph)
    words = f"finds nothing to quantise with PyTorch {re.escape(torch.__version__)}"
    with pytest.raises(InputError, match=words):
        deploy.optimise(Tiny(), "int8", compiled=False, calibration=[image])


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.98), ("int8", 0.95)])
def test_lower_precisions_agree_on_what_they_were_trained_for(shipped, scenes, precision, share):
    if precision == "bf16" and not device.computes_in_bf16(torch.device("cpu")):
        pytest.skip("this processor does not compute in bf16")
    options = {"compiled": False, "calibration": scenes}
    if precision == "int8" and NO_INT8:
        with pytest.raises(InputError, match="nothing to quantise"):
            deploy.optimise(shipped, precision, **options)
        return
    fast = deploy.optimise(shipped, precision, **options)
    assert precision in fast.steps
    for image in (scenes[5], scenes[5][:70, :101]):
        assert (rflw.predict(fast, image) == rflw.predict(shipped, image)).mean() > share
    if precision == "int8":  # values really are 8 bits wide
        assert any("quantize_per_tensor" in str(node.target) for node in fast.net.graph.nodes)


def test_precisions_that_a_device_has_not_are_refused(monkeypatch):
    monkeypatch.setattr(deploy, "computes_in_bf16", lambda device: False)
    model, image = Tiny(), np.zeros((40, 40, 3), np.uint8)
    for precision, words in (
        ("bf16", "does not compute"),
        ("fp16", "CUDA"),
        ("int8", "calibrate"),
        ("fp8", "choose from: fp32, bf16, fp16, int8"),
    ):
        with pytest.raises(InputError, match=words):
            deploy.optimise(model, precision)
    with pytest.raises(InputError, match="no images"):
        deploy.optimise(model, "int8", calibration=[])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchao.quantization.pt2e", None)  # as if it were not there
        with pytest.raises(InputError, match=r"needs torchao: pip install 'rflw\[deploy\]'"):
            deploy.optimise(model, "int8", calibration=[image])
    monkeypatch.setattr(model, "parameters", lambda: iter([Mock(device=torch.device("cuda"))]))
    with pytest.raises(InputError, match="int8: on CPUs"):
        deploy.optimise(model, "int8", calibration=[image])


class TestExport:
    def run(self, path, **inputs):
        import onnxruntime

        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, inputs
        )[0]

    @torch.no_grad()
    def test_onnx_takes_any_size(self, tiny, tmp_path):
        facts = deploy.export(tiny, tmp_path / "net.onnx")
        assert facts["error"] < 1e-4 and facts["agreement"] == 1
        assert (facts["input"], facts["output"]) == ("image", "logits")
        for h, w in ((33, 33), (64, 200), (111, 50)):
            x = torch.rand(1, 3, h, w)
            got = torch.from_numpy(self.run(tmp_path / "net.onnx", image=x.numpy()))
            assert got.shape == (1, 5, -(-h // 4), -(-w // 4)) and close(got, tiny(x))
        x = torch.rand(3, 3, 40, 50)
        assert close(torch.from_numpy(self.run(tmp_path / "net.onnx", image=x.numpy())), tiny(x))
        nodes = onnx.load(tmp_path / "net.onnx").graph.node
        attributes = [a for node in nodes if node.op_type == "MaxPool" for a in node.attribute]
        kernels = {tuple(a.ints) for a in attributes if a.name == "kernel_shape"}
        assert kernels == {(1, 5), (5, 1)}

    def test_whole_sees_images_at_the_short_side_of_the_checkpoint(self, tiny, scenes):
        """As `predict` does, upright and lying."""
        network = deepcopy(tiny)
        network.card = {"short_side": 75}
        whole = deploy.Whole(network)
        for image in (scenes[3], scenes[3][:90, :55], scenes[3][:40]):
            with torch.no_grad():
                classes = whole(torch.from_numpy(image)).numpy()
            assert (classes == rflw.predict(network, image)).mean() > 0.999
            assert (classes == rflw.predict(network, image, 0)).mean() < 0.999

    def test_whole_shows_the_network_what_predict_shows_it(self, tiny, scenes):
        seen, image = [], scenes[3][:70, :101]

        class Witness(nn.Module):
            mean, std = tiny.mean, tiny.std

            def forward(self, x):
                seen.append(x)
                return torch.zeros(1, 5, 18, 26)

        deploy.Whole(Witness())(torch.from_numpy(image))
        torch.testing.assert_close(seen[0], prediction.normalise(image, tiny, torch.device("cpu")))

    def test_a_network_from_image_to_classes_and_its_int8(
        self, shipped, scenes, tmp_path, monkeypatch
    ):
        image, whole, path = scenes[3][:70, :101], tmp_path / "net.onnx", tmp_path / "int8.onnx"
        deploy.export(shipped, whole, whole=True, opset=18)  # takes half a minute
        classes = self.run(whole, image=image)
        assert classes.dtype == np.uint8 and classes.shape == (70, 101)
        assert (classes == rflw.predict(shipped, image)).mean() > 0.999
        written = onnx.load(whole)
        assert written.opset_import[0].version == 18
        names = {entry.key: entry.value for entry in written.metadata_props}["classes"]
        assert names.split(", ") == list(shipped.card["classes"])
        monkeypatch.setattr(deploy, "_program", lambda *_: None)  # it is written once
        monkeypatch.setattr(deploy, "_write_onnx", lambda _, at, *more: copyfile(whole, at))
        facts = deploy.export(shipped, path, whole=True, calibration=scenes[:3])
        size = 4 * sum(p.numel() for p in shipped.parameters()) / 1e6
        assert facts["mb"] < 0.3 * size + 0.5 and facts["agreement"] > 0.9
        assert facts["error"] is None and {*tmp_path.iterdir()} == {whole, path}
        shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}
        weights = {
            name.removesuffix("_quantized"): dims
            for name, dims in shapes.items()
            if name.endswith("_quantized") and len(dims) == 4
        }
        convolutions = sum(isinstance(m, nn.Conv2d) for m in shipped.modules())
        assert len(weights) == convolutions - deploy.merge_linear(deepcopy(shipped))
        # a scale for each channel of output
        assert all(shapes[f"{name}_scale"] == dims[:1] for name, dims in weights.items())

    def test_int8_of_logits_is_only_reported(self, tiny, tmp_path):
        facts = deploy.export(tiny, tmp_path / "net.onnx", calibration=deploy._noise())
        assert facts["error"] is None and facts["agreement"] > 0.8

    def test_torch_export_takes_any_size(self, tiny, tmp_path):
        deploy.export(tiny, tmp_path / "net.pt2", "torch-export")
        x = torch.rand(1, 3, 50, 81)
        program = torch.export.load(tmp_path / "net.pt2")
        assert close(program.module()(x), tiny(x))
        limits = [(size.lower, size.upper) for size in program.range_constraints.values()]
        assert limits[1:] == [(33, 16384)] * 2  # height, width, after the batch
        assert close(program.module()(torch.cat([x, x.flip(3)])), tiny(torch.cat([x, x.flip(3)])))

    def export_spoiled(self, tiny, tmp_path, monkeypatch, spoil, whole=False):
        """Export `tiny` with its classifier spoiled on the way."""
        spoiled = deepcopy(tiny)
        spoil(spoiled[-1])
        program = deploy._program(spoiled, whole)
        monkeypatch.setattr(deploy, "_program", lambda *_: program)
        return deploy.export(tiny, tmp_path / "net.pt2", "torch-export", whole)

    @pytest.mark.parametrize(("whole", "index"), [(False, 0), (True, 0), (True, 4)])
    def test_a_wrong_file_is_refused_and_not_left(self, tiny, tmp_path, monkeypatch, whole, index):
        def spoil(classifier):
            classifier.weight.data[index] *= 2
            # class maps show only that another class has won
            classifier.bias.data[index] += 100 * whole

        with pytest.raises(InputError, match="does not compute what the network does"):
            self.export_spoiled(tiny, tmp_path, monkeypatch, spoil, whole)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("factor", "taken"), [(1 + 3e-5, True), (1 + 3e-4, False)])
    def test_logits_may_differ_by_rounding_only(self, tiny, tmp_path, monkeypatch, factor, taken):
        def spoil(classifier):  # no pixel gets another class
            classifier.weight.data *= factor
            classifier.bias.data *= factor

        if not taken:
            with pytest.raises(InputError, match="what the network does: 100.00 %"):
                self.export_spoiled(tiny, tmp_path, monkeypatch, spoil)
            return
        facts, path = self.export_spoiled(tiny, tmp_path, monkeypatch, spoil), tmp_path / "net.pt2"
        assert facts["error"] == pytest.approx(3e-5, rel=0.2) and facts["agreement"] == 1
        assert (facts["file"], facts["mb"]) == (str(path), path.stat().st_size / 1e6)

    @pytest.mark.parametrize(("wrong", "taken"), [(29, True), (30, False)])
    def test_one_pixel_in_a_thousand_may_have_another_class(self, tiny, wrong, taken):
        def run(image):  # another class in some of the (97 * 131 + 33 * 50 + 160 * 96) pixels
            classes = torch.zeros(image.shape[:2], dtype=torch.uint8)
            if len(image) == 160:
                classes[7, :wrong] = 1
            return classes

        def plain(image):
            return torch.zeros(image.shape[:2], dtype=torch.uint8)

        if taken:
            assert deploy._compare(plain, run, tiny, True, None) == {
                "error": None,
                "agreement": 1 - wrong / 29717,
            }
        else:
            with pytest.raises(InputError, match="99.90 % of the pixels agree"):
                deploy._compare(plain, run, tiny, True, None)

    @torch.no_grad()
    def test_onnxruntime_stands_in_for_the_network(self, tiny, images):
        stand_in = InONNXRuntime(tiny)
        assert close(stand_in(images), tiny(images))  # two images, one after the other
        for entry in ("name", "num_classes", "mean", "std"):
            assert getattr(stand_in, entry) == getattr(tiny, entry)

    def test_what_cannot_be_exported_is_refused(self, tiny, tmp_path, monkeypatch):
        for form, options, words in (
            ("tflite", {}, "choose from: onnx, torch-export"),
            ("torch-export", {"calibration": [np.zeros((40, 40, 3))]}, "for onnx"),
            ("onnx", {"calibration": []}, "images to calibrate"),
            ("onnx", {"opset": 13}, "operator set 13: PyTorch writes those from 18 to"),
            ("onnx", {"opset": 99}, "operator set 99: PyTorch writes those from 18 to"),
        ):
            with pytest.raises(InputError, match=words):
                deploy.export(tiny, tmp_path / "net", form, **options)

        with monkeypatch.context() as patch:
            patch.setattr(torch.onnx, "export", Mock(side_effect=RuntimeError("no\nway")))
            words = "operator set 18: ONNX cannot be written (no)"
            with pytest.raises(InputError, match=f"^{re.escape(words)}$"):
                deploy.export(tiny, tmp_path / "net", opset=18)

        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(deploy, "import_module", missing)
        with pytest.raises(InputError, match=r"rflw\[deploy\]"):
            deploy.export(tiny, tmp_path / "net")
        assert list(tmp_path.iterdir()) == []
