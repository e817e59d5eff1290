"""What the book's page for a reader's own photos loads: `python -m rflw_study.web FOLDER`.

Every shipped checkpoint that was trained on photos becomes an ONNX file for ONNX Runtime Web, whose
own files are in FOLDER already. The sample pictures are drawn here, so that they are free to share.
"""

import json
from pathlib import Path
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rflw import checkpoint, plots, prediction
from rflw.data.labels import LABELS, labels_for
from rflw.deploy import export

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WIDTH, HEIGHT = 480, 360


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
    samples, same = SAMPLES.get(model.card["data"], (street, room)), []
    for scene in samples:
        image = scene()
        if side:
            image = image.resize((round(WIDTH * side / HEIGHT), side))
        image.save(folder / f"{name}-{scene.__name__}.png")
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
        "samples": [scene.__name__ for scene in samples],
        "agreement": float(np.mean(same)),  # with rflw.predict, of the samples' pixels
    }


def room_figures(figures: Path) -> None:
    """Write the room of the paper's examples, and its classes by the shipped network `nyu`."""
    with Image.open(figures / "paper_examples.jpg") as examples:
        photo = examples.crop((609, 226, 857, 411)).resize((WIDTH, HEIGHT), Image.LANCZOS)
    mask = prediction.predict(checkpoint.load("nyu"), photo)
    photo.save(figures / "room_photo.jpg")
    plots.overlay(np.asarray(photo), mask, LABELS["nyu"]).save(figures / "room_prediction.jpg")


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
        cast = helper.make_node(
            "Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT
        )
        net.graph.node.insert(0, cast)
    onnx.save(net, path)


# ---------------------------------------------------------------- the samples


def street() -> Image.Image:
    """A street with houses, trees, cars and people, drawn."""
    image = shaded((200, 214, 228), (236, 240, 243))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 182, WIDTH, HEIGHT), fill=(104, 104, 107))
    draw.rectangle((190, 140, 330, 182), fill=(140, 128, 120))
    for wall, colour in (
        ([(0, 10), (120, 80), (190, 140), (190, 185), (0, 260)], (150, 112, 92)),
        ([(480, 30), (400, 95), (330, 140), (330, 185), (480, 235)], (176, 160, 140)),
        ([(0, 260), (190, 185), (200, 186), (0, 330)], (165, 160, 155)),
        ([(480, 235), (330, 185), (322, 186), (480, 300)], (168, 163, 157)),
    ):
        draw.polygon(wall, fill=colour)
    for x, size in ((8, 1.0), (50, 0.85), (90, 0.7), (125, 0.55), (452, 0.9), (410, 0.7)):
        for floor in range(3):
            top = 60 + min(x, 470 - x) * 0.62 + floor * 52 * size
            draw.rectangle((x, top, x + 20 * size, top + 28 * size), fill=(74, 82, 95))
    for near in (0.05, 0.25, 0.6):
        x, y = 258 - 30 * near, 190 + 180 * near
        mark = [(x, y), (x - 4, y + 20 + 40 * near)]
        draw.line(mark, fill=(220, 220, 215), width=int(2 + 4 * near))
    for x, y, radius in ((345, 105, 52), (290, 120, 46), (205, 140, 24)):
        tree(draw, x, y, radius)
    for x, y, size, colour in (
        (235, 190, 0.32, (180, 30, 35)),
        (300, 215, 0.62, (40, 70, 130)),
        (118, 250, 0.9, (205, 205, 208)),
    ):
        car(draw, x, y, size, colour)
    draw.rectangle((398, 60, 402, 260), fill=(95, 95, 92))
    draw.ellipse((386, 52, 414, 80), fill=(200, 30, 30))
    draw.rectangle((391, 62, 409, 70), fill=(240, 240, 240))
    for x, y, size, coat in ((432, 272, 1.1, (60, 60, 110)), (28, 300, 1.2, (40, 90, 80))):
        draw.ellipse((x - 5 * size, y - 62 * size, x + 5 * size, y - 50 * size), (205, 165, 140))
        draw.rectangle((x - 9 * size, y - 50 * size, x + 9 * size, y - 22 * size), coat)
        draw.rectangle((x - 8 * size, y - 22 * size, x + 8 * size, y), (42, 42, 50))
    return grainy(image)


def tree(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int) -> None:
    draw.rectangle((x - radius * 0.1, y, x + radius * 0.1, y + radius * 1.7), fill=(70, 55, 42))
    random = np.random.RandomState(x)
    for angle, distance, size, light in random.rand(radius * 5, 4):
        left = x + np.cos(6.28 * angle) * distance**0.5 * radius
        top = y + np.sin(6.28 * angle) * distance**0.5 * radius * 0.85
        leaf, green = 3 + 0.14 * radius * size, 45 + int(65 * light)
        colour = (int(0.62 * green), green, int(0.42 * green))
        draw.ellipse((left - leaf, top - leaf, left + leaf, top + leaf), fill=colour)


def car(draw: ImageDraw.ImageDraw, x: int, y: int, size: float, colour: tuple) -> None:
    def box(shape, left, top, right, bottom, fill):
        shape((x + left * size, y + top * size, x + right * size, y + bottom * size), fill=fill)

    def cabin(half: int, top: int, fill) -> None:
        corners = [(-half - 8, -22), (-half, top), (half, top), (half + 8, -22)]
        draw.polygon([(x + dx * size, y + dy * size) for dx, dy in corners], fill=fill)

    box(draw.ellipse, -52, 6, 52, 20, (58, 58, 60))
    box(draw.rectangle, -46, -24, 46, 12, colour)
    cabin(26, -46, colour)
    cabin(20, -42, (48, 58, 70))
    for side in (-1, 1):
        box(draw.rectangle, side * 36 - 7, 4, side * 36 + 7, 20, (25, 25, 26))
        box(draw.rectangle, side * 38 - 6, -14, side * 38 + 6, -7, (190, 40, 35))
    box(draw.rectangle, -12, -4, 12, 3, (225, 225, 215))


def room() -> Image.Image:
    """A bedroom with a window, a bed, a lamp and a picture, drawn."""
    image = shaded((214, 206, 190), (190, 180, 164))
    draw = ImageDraw.Draw(image)
    for corners, colour in (
        ([(0, 0), (90, 30), (390, 30), (480, 0)], (238, 236, 230)),  # ceiling
        ([(0, 360), (90, 250), (390, 250), (480, 360)], (150, 110, 74)),  # floor
        ([(480, 0), (390, 30), (390, 250), (480, 360)], (198, 188, 172)),  # right wall
        ([(180, 250), (350, 250), (410, 345), (150, 345)], (96, 118, 158)),  # blanket
        ([(150, 345), (410, 345), (410, 360), (150, 360)], (76, 96, 132)),
        ([(175, 200), (352, 200), (352, 250), (175, 250)], (104, 70, 44)),  # headboard
        ([(20, 180), (110, 180), (110, 300), (20, 330)], (128, 92, 58)),  # chest of drawers
        ([(425, 70), (470, 55), (470, 330), (425, 285)], (120, 84, 52)),  # door
    ):
        draw.polygon(corners, fill=colour)
    for left in (190, 272):
        draw.rounded_rectangle((left, 228, left + 66, 258), 10, fill=(236, 234, 228))  # pillows
    draw.rectangle((120, 70, 240, 165), fill=(245, 245, 245))  # window
    for left, top in ((126, 76), (183, 76), (126, 121), (183, 121)):
        draw.rectangle((left, top, left + 51, top + 38), fill=(176, 206, 232))
    draw.rectangle((280, 80, 350, 140), fill=(60, 44, 30))  # picture
    draw.rectangle((286, 86, 344, 134), fill=(120, 150, 110))
    draw.polygon([(45, 150), (60, 110), (84, 110), (98, 150)], fill=(240, 226, 180))  # lamp
    draw.rectangle((69, 150, 75, 180), fill=(90, 80, 70))
    for top in (205, 240, 275):
        draw.line((24, top, 106, top), fill=(84, 58, 36), width=2)
    return grainy(image)


def shaded(top: tuple, bottom: tuple) -> Image.Image:
    """A picture whose colour goes from one at the top to another at the bottom."""
    rows = np.linspace(top, bottom, HEIGHT).round().astype(np.uint8)
    return Image.fromarray(np.repeat(rows[:, None], WIDTH, axis=1))


def grainy(image: Image.Image) -> Image.Image:
    """With soft edges and a camera's noise: the networks have seen photos only."""
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), float)
    noise = np.random.RandomState(0).normal(0, 3, (HEIGHT, WIDTH, 1))
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


SAMPLES = {"camvid": (street,), "nyu": (room,)}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
