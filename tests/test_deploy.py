"""Fast inference computes what the plain network does, says what it did, and what it writes runs elsewhere."""

from copy import deepcopy
import re
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

import rflw
from rflw import InputError, build, deploy, device, prediction
from rflw.data.synthetic import scene
from rflw.nn import pooling
from rflw.nn.blocks import CRP


def awake(name: str, classes: int = 5) -> nn.Module:
    """A random network whose batch norms have something to do."""
    torch.manual_seed(0)
    model = build(name, classes).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        for tensor, low, high in zip(tensors, (0.5, -0.3, -0.3, 0.5), (1.5, 0.3, 0.3, 2)):
            tensor.data.uniform_(low, high)
    return model


@pytest.fixture(scope="module")
def small():
    return awake("refinenet-lw-efficientnet_lite0")


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


@torch.no_grad()
def test_folding_leaves_what_does_not_follow_a_convolution(images):
    shared = nn.Conv2d(3, 3, 1)
    one, two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    net = nn.Sequential(
        nn.BatchNorm2d(3), shared, one, shared, two
    ).eval()  # the convolution serves both
    expected = net(images)
    assert deploy.fold_batch_norm(net) == 0 and torch.equal(net(images), expected)


@torch.no_grad()
def test_a_batch_norm_of_the_image_is_left_where_the_last_step_is_a_convolution(images):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).eval()
    net[0].weight.fill_(3.0)
    expected = net(images)
    assert deploy.fold_batch_norm(net) == 0 and torch.equal(net(images), expected)


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
    ],
)
def test_folding_leaves_what_somebody_else_reads_and_what_has_no_statistics(net, images):
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.fill_(3.0)
    expected = net.eval()(images)
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
    ).eval()
    for norm in (net[1], net[4], net[5]):
        norm.running_mean.uniform_(-1, 1)
        norm.weight.uniform_(1, 2)
    expected = net(images)
    assert deploy.fold_batch_norm(net) == 2 and close(net(images), expected)
    assert [type(m) for m in net] == [
        nn.Conv2d,
        nn.Identity,
        nn.ReLU,
        nn.Conv2d,
        nn.Identity,
        nn.BatchNorm2d,
    ]


def test_only_maps_without_bias_of_a_decoder_of_ours_are_merged():
    model = awake("refinenet-lw-efficientnet_lite0")
    assert (
        deploy.merge_linear(
            nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
        )
        == 0
    )
    stage = model.decoder.stages[1]
    stage.adapt = nn.Conv2d(256, 256, 1)  # with a bias
    model.decoder.stages[2].adapt = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    assert deploy.merge_linear(model) == 1 and isinstance(stage.adapt, nn.Conv2d)
    assert [isinstance(s.adapt, nn.Identity) for s in model.decoder.stages] == [
        True,
        False,
        False,
        True,
    ]


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
    assert (
        before - sum(p.numel() for p in model.parameters()) == stages * 256 * 256
    )  # a 1x1 of 256 -> 256 in each


def test_freed_memory_is_kept_on_cpus(small, monkeypatch):
    kept = Mock()
    monkeypatch.setattr(deploy, "keep_freed_memory", kept)
    deploy.optimise(small, compiled=False)
    kept.assert_called_once_with()


@torch.no_grad()
def test_optimise_leaves_the_network_as_it_was_and_says_what_it_did(small, images):
    before = {key: value.clone() for key, value in small.state_dict().items()}
    fast = deploy.optimise(small, compiled=False)
    assert close(fast(images), small(images))
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert (
        fast.steps[:2] == ("fold", "merge")
        and fast.steps[2].startswith("pools: ")
        and fast.steps[3:] == ("channels-last",)
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.net.modules())
    assert all(isinstance(stage.adapt, nn.Identity) for stage in fast.net.decoder.stages)
    assert (fast.name, fast.num_classes, fast.mean) == (
        small.name,
        5,
        small.mean,
    ) and fast.left_out == {}
    assert (
        deploy.optimise(small, graphs=False, compiled=False).left_out == {}
    )  # which CPUs have not anyway
    plain = deploy.optimise(
        small, fold=False, merge=False, channels_last=False, pools=False, compiled=False
    )
    assert plain.steps == () and torch.equal(plain(images), small(images))


@torch.no_grad()
def test_compiled_computes_the_same_at_every_size(small, images):
    fast = deploy.optimise(small, compiled=True)
    assert fast.steps[-1] == "compile" and fast.steps[2] == "pools: maxima"
    assert {module.pool for module in fast.net.modules() if isinstance(module, CRP)} == {
        pooling.FORMS["maxima"]
    }
    for x in (images, images[:1, :, :40, :50]):
        assert close(fast(x), small(x))
    assert len(list(fast.parameters())) == len({id(p) for p in fast.parameters()})


def test_code_is_made_for_the_first_sizes_only_and_with_constant_weights(small, monkeypatch):
    from torch._inductor import config

    seen = []

    def fake(net, **_):
        def run(x):
            seen.append((tuple(x.shape[-2:]), config.freezing))
            return net(x)

        return run

    monkeypatch.setattr(pooling, "can_compile", lambda: True)
    monkeypatch.setattr(torch, "compile", fake)
    fast = deploy.optimise(small, compiled=True)
    for side in [40, 40, *range(41, 41 + deploy.SIZES)]:
        fast(torch.zeros(1, 3, side, 40))
    assert seen[:3] == [((40, 40), True), ((40, 40), False), ((41, 40), True)]
    assert len(seen) == 1 + deploy.SIZES  # the last size went uncompiled
    assert (
        deploy.SIZES <= torch._dynamo.config.recompile_limit
    )  # beyond it, torch.compile runs what it is given as it is


@pytest.mark.parametrize(
    ("asked", "steps", "mode", "left_out"),
    [
        (None, ("fp16", "compile", "graphs"), "reduce-overhead", {}),
        (True, ("fp16", "compile", "graphs"), "reduce-overhead", {}),
        (False, ("fp16", "compile"), None, {"graphs": "not asked for"}),
    ],
)
def test_graphs_and_half_precision_are_for_cuda_unless_not_asked_for(
    small, monkeypatch, asked, steps, mode, left_out
):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda net, **options: modes.append(options["mode"]))
    monkeypatch.setattr(small, "parameters", lambda: iter([Mock(device=torch.device("cuda"))]))
    monkeypatch.setattr(pooling, "can_compile", lambda: False)  # on CPUs
    fast = deploy.optimise(
        small, "fp16", fold=False, merge=False, channels_last=False, pools=False, graphs=asked
    )
    assert (fast.steps, modes, fast.left_out) == (steps, [mode], left_out)


@pytest.mark.parametrize(("graphs", "mode"), [(True, "reduce-overhead"), (False, None)])
def test_outputs_that_a_graph_would_overwrite_are_copied(small, monkeypatch, graphs, mode):
    held, asked = torch.zeros(1, 5, 10, 10), []
    monkeypatch.setattr(
        torch, "compile", lambda net, **options: asked.append(options) or (lambda x: held)
    )
    fast = deploy.optimise(small, compiled=False)
    fast.compile(graphs)
    assert asked == [{"dynamic": False, "mode": mode}]
    for _ in range(2):  # when the code is made, and later
        assert (fast(torch.zeros(1, 3, 40, 40)).data_ptr() == held.data_ptr()) is not graphs


def test_a_network_made_fast_is_known_by_what_it_was_made_of(small):
    model = rflw.load("embedded")
    fast = deploy.optimise(model, compiled=False)
    assert (fast.card, fast.std, fast.device) == (model.card, model.std, torch.device("cpu"))
    assert (fast.dtype, fast.precision) == (torch.float32, "fp32")
    assert not hasattr(deploy.optimise(small, compiled=False), "card")
    assert (
        not fast.training
        and not any(p.requires_grad for p in fast.parameters())
        and all(p.requires_grad for p in model.parameters())
    )
    assert (
        deploy.optimise(small, channels_last=False, compiled=False).layout
        == torch.contiguous_format
    )
    assert not fast(torch.zeros(1, 3, 40, 40, requires_grad=True)).requires_grad


def test_without_a_compiler_it_says_so(small, images, monkeypatch):
    monkeypatch.setattr(pooling, "can_compile", lambda: False)
    fast = deploy.optimise(small)
    assert "compiler" in fast.left_out["compile"] and "compile" not in fast.steps
    with torch.no_grad():
        assert close(fast(images), small(images))


NO_INT8 = torch.__version__.startswith(
    ("2.10.", "2.11.")
)  # where torchao finds nothing to quantise


def test_int8_that_would_change_nothing_is_refused(monkeypatch):
    """As some versions of PyTorch do: nothing is found to be quantised."""
    model, image = rflw.load("embedded"), scene("val", 5)[0]
    quantiser = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer.X86InductorQuantizer"
    monkeypatch.setattr(f"{quantiser}.annotate", lambda self, graph: graph)
    with pytest.raises(
        InputError, match=f"finds nothing to quantise with PyTorch {re.escape(torch.__version__)}"
    ):
        deploy.optimise(model, "int8", compiled=False, calibration=[image])


def test_lower_precisions_agree_on_what_they_were_trained_for():
    model, image = rflw.load("embedded"), scene("val", 5)[0]
    calibration = [scene("val", i)[0] for i in range(6)]
    expected = rflw.predict(model, image)
    for precision, share in zip("bf16 int8".split(), (0.98, 0.95)):
        if precision == "bf16" and not device.computes_in_bf16(torch.device("cpu")):
            continue
        if precision == "int8" and NO_INT8:
            with pytest.raises(InputError, match="nothing to quantise"):
                deploy.optimise(model, precision, compiled=False, calibration=calibration)
            return
        fast = deploy.optimise(model, precision, compiled=False, calibration=calibration)
        assert (rflw.predict(fast, image) == expected).mean() > share, precision
        assert precision in fast.steps
        assert (
            rflw.predict(fast, image[:70, :101]) == rflw.predict(model, image[:70, :101])
        ).mean() > share, precision
    kinds = [node.target for node in fast.net.graph.nodes]  # int8: values really are 8 bits wide
    assert any("quantize_per_tensor" in str(kind) for kind in kinds)


def test_precisions_that_a_device_has_not_are_refused(small, monkeypatch):
    monkeypatch.setattr(deploy, "computes_in_bf16", lambda device: False)
    for line in (
        "bf16: does not compute",
        "fp16: CUDA",
        "int8: calibrate",
        "fp8: unknown precision",
    ):
        precision, words = line.split(": ")
        with pytest.raises(InputError, match=words):
            deploy.optimise(small, precision)
    with pytest.raises(InputError, match="no images"):
        deploy.optimise(small, "int8", calibration=[])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torchao.quantization.pt2e", None)  # as if it were not there
        with pytest.raises(InputError, match=r"needs torchao: pip install 'rflw\[deploy\]'"):
            deploy.optimise(small, "int8", calibration=[scene("val", 0)[0]])
    monkeypatch.setattr(small, "parameters", lambda: iter([Mock(device=torch.device("cuda"))]))
    with pytest.raises(InputError, match="int8: on CPUs"):
        deploy.optimise(small, "int8", calibration=[scene("val", 0)[0]])


class TestExport:
    def run(self, path, **inputs):
        import onnxruntime

        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, inputs
        )[0]

    @torch.no_grad()
    def test_onnx_takes_any_size(self, small, tmp_path):
        facts = deploy.export(small, tmp_path / "net.onnx")
        assert (
            facts["error"] < 1e-4
            and facts["agreement"] == 1
            and (facts["input"], facts["output"]) == ("image", "logits")
        )
        for h, w in ((33, 33), (64, 200), (111, 50)):
            x = torch.rand(1, 3, h, w)
            got = torch.from_numpy(self.run(tmp_path / "net.onnx", image=x.numpy()))
            assert got.shape == (1, 5, -(-h // 4), -(-w // 4)) and close(got, small(x))
        import onnx

        pools = [
            node
            for node in onnx.load(tmp_path / "net.onnx").graph.node
            if node.op_type == "MaxPool"
        ]
        assert {
            tuple(a.ints) for node in pools for a in node.attribute if a.name == "kernel_shape"
        } == {(1, 5), (5, 1)}

    def test_whole_is_predict(self, tmp_path):
        model, image = rflw.load("embedded"), scene("val", 3)[0][:70, :101]
        deploy.export(model, tmp_path / "net.onnx", whole=True, opset=18)
        classes = self.run(tmp_path / "net.onnx", image=image)
        assert classes.dtype == np.uint8 and classes.shape == (70, 101)
        assert (classes == rflw.predict(model, image)).mean() > 0.999
        import onnx

        written = onnx.load(tmp_path / "net.onnx")
        assert written.opset_import[0].version == 18
        assert {p.key: p.value for p in written.metadata_props}["classes"].split(", ") == list(
            model.card["classes"]
        )

    def test_whole_shows_the_network_what_predict_shows_it(self, small):
        seen, image = [], scene("val", 3)[0][:70, :101]

        class Witness(nn.Module):
            mean, std = small.mean, small.std

            def forward(self, x):
                seen.append(x)
                return torch.zeros(1, 5, 18, 26)

        deploy.Whole(Witness())(torch.from_numpy(image))
        torch.testing.assert_close(seen[0], prediction.normalise(image, small, torch.device("cpu")))

    def test_int8_is_small_and_agrees(self, tmp_path):
        model = rflw.load("embedded")
        facts = deploy.export(
            model,
            tmp_path / "net.onnx",
            whole=True,
            calibration=[scene("val", i)[0] for i in range(6)],
        )
        assert facts["mb"] < 0.3 * 4 * sum(p.numel() for p in model.parameters()) / 1e6 + 0.5
        assert facts["agreement"] > 0.9
        facts = deploy.export(
            model, tmp_path / "logits.onnx", calibration=[scene("val", i)[0] for i in range(3)]
        )
        assert facts["agreement"] > 0.9 and facts["error"] is None
        import onnx

        shapes = {
            tensor.name: list(tensor.dims)
            for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer
        }
        weights = {
            name.removesuffix("_quantized"): dims
            for name, dims in shapes.items()
            if name.endswith("_quantized") and len(dims) == 4
        }
        merged = deploy.merge_linear(deepcopy(model))
        assert (
            merged > 0
            and len(weights) == sum(isinstance(m, nn.Conv2d) for m in model.modules()) - merged
        )
        assert all(
            shapes[f"{name}_scale"] == dims[:1] for name, dims in weights.items()
        )  # a scale for each channel of output

    def test_torch_export_takes_any_size(self, small, tmp_path):
        deploy.export(small, tmp_path / "net.pt2", "torch-export")
        x = torch.rand(1, 3, 50, 81)
        program = torch.export.load(tmp_path / "net.pt2")
        assert close(program.module()(x), small(x))
        assert [(limits.lower, limits.upper) for limits in program.range_constraints.values()] == [
            (33, 16384)
        ] * 2  # height, width

    @pytest.mark.parametrize(("whole", "index"), [(False, 0), (True, 0), (True, 4)])
    def test_a_wrong_file_is_refused_and_not_left(self, small, tmp_path, monkeypatch, whole, index):
        def spoil(net):
            net.decoder.classifier.weight.data[index] *= 2
            net.decoder.classifier.bias.data[index] += (
                100 * whole
            )  # class maps tell only that another class has won

        monkeypatch.setattr(deploy, "merge_linear", spoil)
        with pytest.raises(InputError, match="does not compute what the network does"):
            deploy.export(small, tmp_path / "net.pt2", "torch-export", whole)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("factor", "taken"), [(1 + 3e-5, True), (1 + 3e-4, False)])
    def test_logits_may_differ_by_rounding_only(self, small, tmp_path, monkeypatch, factor, taken):
        def spoil(net):  # no pixel gets another class
            net.decoder.classifier.weight.data *= factor
            net.decoder.classifier.bias.data *= factor

        monkeypatch.setattr(deploy, "merge_linear", spoil)
        if taken:
            facts = deploy.export(small, tmp_path / "net.pt2", "torch-export")
            assert facts["error"] == pytest.approx(3e-5, rel=0.2) and facts["agreement"] == 1
            assert facts["mb"] == (tmp_path / "net.pt2").stat().st_size / 1e6 and facts[
                "file"
            ] == str(tmp_path / "net.pt2")
        else:
            with pytest.raises(
                InputError, match="does not compute what the network does: 100.00 %"
            ):
                deploy.export(small, tmp_path / "net.pt2", "torch-export")

    @pytest.mark.parametrize(("wrong", "taken"), [(29, True), (30, False)])
    def test_one_pixel_in_a_thousand_may_have_another_class(self, small, wrong, taken):
        def run(image):  # another class in some of the (97 * 131 + 33 * 50 + 160 * 96) pixels
            classes = torch.zeros(image.shape[:2], dtype=torch.uint8)
            if len(image) == 160:
                classes[7, :wrong] = 1
            return classes

        def plain(image):
            return torch.zeros(image.shape[:2], dtype=torch.uint8)

        if taken:
            assert deploy._compare(plain, run, small, True, None) == {
                "error": None,
                "agreement": 1 - wrong / 29717,
            }
        else:
            with pytest.raises(InputError, match="99.90 % of the pixels agree"):
                deploy._compare(plain, run, small, True, None)

    @pytest.mark.parametrize("classes", [4, 6])
    def test_a_file_of_other_classes_is_refused(self, small, tmp_path, monkeypatch, classes):
        def spoil(net):
            net.decoder.classifier = nn.Conv2d(256, classes, 3, padding=1)

        monkeypatch.setattr(deploy, "merge_linear", spoil)
        words = rf"gives \(1, {classes}, 25, 33\) for \(1, 3, 97, 131\), \(1, 5, 25, 33\) expected"
        with pytest.raises(InputError, match=words):
            deploy.export(small, tmp_path / "net.pt2", "torch-export")
        assert list(tmp_path.iterdir()) == []

    @torch.no_grad()
    def test_onnxruntime_stands_in_for_the_network(self, small, images):
        stand_in = deploy.InONNXRuntime(small)
        assert close(stand_in(images), small(images))  # two images, one after the other
        assert (stand_in.name, stand_in.num_classes, stand_in.mean, stand_in.std) == (
            small.name,
            5,
            small.mean,
            small.std,
        )

    def test_what_cannot_be_exported_is_refused(self, small, tmp_path, monkeypatch):
        for form, options, words in (
            ("tflite", {}, "unknown format"),
            ("torch-export", {"calibration": [scene("val", 0)[0]]}, "for onnx"),
            ("onnx", {"calibration": []}, "images to calibrate"),
            ("onnx", {"opset": 5}, "operator set 5"),
            ("onnx", {"opset": 99}, "operator set 99"),
        ):
            with pytest.raises(InputError, match=words):
                deploy.export(small, tmp_path / "net", form, **options)

        with monkeypatch.context() as patch:
            patch.setattr(torch.onnx, "export", Mock(side_effect=RuntimeError("no\nway " * 100)))
            with pytest.raises(InputError) as caught:
                deploy.export(small, tmp_path / "net", opset=18)
            assert (
                str(caught.value)
                == f"operator set 18: ONNX cannot be written ({('no way ' * 100)[:200]})"
            )

        def missing(name):
            raise ImportError(name)

        monkeypatch.setattr(deploy, "import_module", missing)
        with pytest.raises(InputError, match=r"rflw\[deploy\]"):
            deploy.export(small, tmp_path / "net")
        assert list(tmp_path.iterdir()) == []


def test_patches_of_noise_are_of_odd_sizes():
    images = deploy._noise()
    assert [image.shape[:2] for image in images] == [(97, 131), (33, 50), (160, 96)]
    for image in images:
        assert (
            image.dtype == np.uint8
            and (image[:8, :8] == image[0, 0]).all()
            and (image[:8, 8:16] == image[0, 8]).all()
        )
        assert len(np.unique(image)) > 50
