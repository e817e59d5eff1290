"""What the book's page for a reader's own photos loads."""

import numpy as np
from PIL import Image
import pytest
import torch
import torch.nn.functional as F

from rflw_study import web


def test_weights_in_half_precision_take_half_the_room_and_compute_the_same(tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    random = np.random.RandomState(0)
    weight = random.normal(0, 0.1, (64, 32, 3, 3)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(weight, "w")]
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, c, 8, 8])
        for name, c in (("x", 32), ("y", 64))
    ]
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = onnx.helper.make_graph([conv], "one", shapes[:1], shapes[1:], tensors)
    opset = [onnx.helper.make_opsetid("", 20)]
    path = tmp_path / "one.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    before = path.stat().st_size
    web.halve(path)
    assert path.stat().st_size < 0.51 * before
    x = random.normal(size=(1, 32, 8, 8)).astype(np.float32)
    run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run
    half = torch.from_numpy(weight).half().float()
    expected = F.conv2d(torch.from_numpy(x), half, padding=1)
    np.testing.assert_allclose(run(None, {"x": x})[0], expected, atol=1e-4)


def test_every_sample_is_there():
    for scene in sum(web.SAMPLES.values(), ()):
        with Image.open(web.DRAWN / f"{scene}.jpg") as image:
            assert (image.size, image.mode) == ((web.WIDTH, web.HEIGHT), "RGB")


def test_the_page_lists_every_shipped_network_for_photos(tmp_path, monkeypatch):
    for name in web.RUNTIME:
        (tmp_path / name).write_bytes(b"12345")
    monkeypatch.setattr(web, "network", lambda name, folder: {"name": name})
    web.write(tmp_path)
    text = (tmp_path / "networks.json").read_text()
    assert '"camvid"' in text and "embedded" not in text and text.count(": 5") == 3
