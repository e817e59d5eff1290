"""What the book's page for a reader's own photos loads: `python -m rflw_study.web FOLDER`.

Every shipped checkpoint that was trained on photos becomes an ONNX file for ONNX Runtime Web, whose
own files are in FOLDER already. The sample pictures were drawn, so that they are free to share.
"""

import json
from pathlib import Path
import sys

import numpy as np
from PIL import Image

from rflw import checkpoint, prediction
from rflw.data.labels import LABELS, labels_for
from rflw.deploy import export
from rflw.records import REPOSITORY

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SAMPLES = {"camvid": ("street",), "nyu": ("room",)}  # by data set; others have both
DRAWN, WIDTH, HEIGHT = REPOSITORY / "book/web", 480, 360


def write(folder: Path) -> None:
    """Write the networks, the samples and networks.json, which lists them."""
    names = sorted(path.stem for path in checkpoint.SHIPPED.glob("*.safetensors"))
    networks = [network(name, folder) for name in names if name != "embedded"]
    runtime = {name: (folder / name).stat().st_size for name in RUNTIME}
    text = json.dumps({"runtime": runtime, "networks": networks}, indent=1)
    (folder / "networks.json").write_text(text, encoding="utf-8")


def network(name: str, folder: Path) -> dict:
    """Write a checkpoint as FOLDER/NAME.onnx, and its samples -> what the page tells about it."""
    import onnxruntime

    model, path = checkpoint.load(name), folder / f"{name}.onnx"
    export(model, path, whole=True)
    halve(path)
    run = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run
    side = model.card.get("short_side")  # that the network was trained for
    samples, same = SAMPLES.get(model.card["data"], ("street", "room")), []
    for scene in samples:
        image = Image.open(DRAWN / f"{scene}.jpg")
        if side:
            image = image.resize((round(WIDTH * side / HEIGHT), side))
        image.save(folder / f"{name}-{scene}.png")
        expected = prediction.predict(model, image)
        same.append((run(None, {"image": np.asarray(image)})[0] == expected).mean())
    classes = model.card["classes"]
    labels = LABELS.get(model.card["data"], labels_for(classes))
    return {
        "name": name,
        "bytes": path.stat().st_size,
        "classes": classes,
        "colours": labels.colours,
        "side": side,
        "samples": samples,
        "agreement": float(np.mean(same)),  # with rflw.predict, of the samples' pixels
    }


def halve(path: Path) -> None:
    """Store an ONNX file's weights in float16; the runtime casts them to float32 when it loads."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    net = onnx.load(path)
    large = [t for t in net.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims)]
    for tensor in large:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        net.graph.initializer.remove(tensor)
        net.graph.initializer.append(numpy_helper.from_array(half, f"{tensor.name}.half"))
        names = [f"{tensor.name}.half"], [tensor.name]
        net.graph.node.insert(0, helper.make_node("Cast", *names, to=TensorProto.FLOAT))
    onnx.save(net, path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
