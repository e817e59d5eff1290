"""Damaged files: every reader of files that come from elsewhere takes them or refuses them in one
line; none crashes or hangs.
"""

from collections.abc import Callable
import io
import json
from pathlib import Path
import shutil
import tarfile
import zipfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import save
import torch

from rflw import InputError, records
from rflw.checkpoint import load, load_official
from rflw.data.images import read_image, read_mask
from rflw.data.readers import open_dataset
from rflw_study import claims

EXAMPLES = 60


@st.composite
def spoiled(draw, whole: bytes) -> bytes:
    """A file that is cut off, has bytes changed, or a part of it twice."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(("cut", "change", "insert", "remove", "repeat"))):
            case "cut":
                del content[place:]
            case "change":
                content[place : place + length] = draw(st.binary(min_size=1, max_size=64))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=64))
            case "remove":
                del content[place : place + length]
            case "repeat":
                content[place:place] = content[place : place + length]
    return bytes(content)


def picture(form: str, mode: str = "RGB", **options) -> bytes:
    ramp = Image.fromarray((np.arange(24 * 32 * 3) % 251).astype(np.uint8).reshape(24, 32, 3))
    file = io.BytesIO()
    ramp.convert(mode).save(file, form, **options)
    return file.getvalue()


def mask() -> bytes:
    file = io.BytesIO()
    image = Image.fromarray((np.arange(24 * 32) % 21).astype(np.uint8).reshape(24, 32))
    image.putpalette(list(range(256)) * 3)
    image.save(file, "PNG")
    return file.getvalue()


def weights() -> bytes:
    tensors = {"encoder.conv1.weight": torch.zeros(4, 3, 3, 3)}
    card = {"model": "refinenet-lw-mobilenet_v2", "classes": ["a", "b"], "data": "voc"}
    return save(tensors, {"rflw": json.dumps(card)})


def pickled() -> bytes:
    file = io.BytesIO()
    tensors = {"module.conv1.weight": torch.zeros(8, 3, 7, 7), "module.segm.weight": torch.ones(2)}
    torch.save({"segmenter": tensors, "epoch": 3}, file)
    return file.getvalue()


def record() -> bytes:
    smallest = min(records.FOLDER.glob("*.json"), key=lambda path: path.stat().st_size)
    return smallest.read_bytes()


def archive(form: str) -> bytes:
    file = io.BytesIO()
    if form == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("a/b.txt", "x" * 600)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as out:
            member = tarfile.TarInfo("a/b.txt")
            member.size = 600
            out.addfile(member, io.BytesIO(b"x" * 600))
    return file.getvalue()


def unpack(path: Path) -> None:
    from rflw_study.prepare import unpack

    target = path.parent / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    unpack(path, target)


def own(path: Path) -> None:
    """One's own data, whose list of classes is damaged."""
    for part, image in (("images", picture("PNG")), ("masks", mask())):
        (path.parent / part).mkdir(exist_ok=True)
        (path.parent / part / "a.png").write_bytes(image)
    dataset = open_dataset(str(path.parent), "train")
    dataset[0]


READERS: dict[str, tuple[str, list[bytes], Callable[[Path], object]]] = {
    "photo": (
        "x.png",
        [
            picture("PNG"),
            picture("JPEG"),
            picture("JPEG", "CMYK"),
            picture("GIF", "P"),
            picture("TIFF", compression="tiff_lzw"),
            picture("WEBP"),
            picture("PNG", "RGBA"),
            picture("BMP"),
        ],
        read_image,
    ),
    "mask": ("x.png", [mask()], lambda path: read_mask(path, 21)),
    "checkpoint": ("x.safetensors", [weights()], load),
    "authors' checkpoint": ("x.pth.tar", [pickled()], lambda path: load_official(path, 2)),
    "record": ("x.json", [record()], records.read),
    "claims": ("claims.yaml", [claims.FILE.read_bytes()], claims.load),
    "zip": ("x.zip", [archive("zip")], unpack),
    "tar": ("x.tar.gz", [archive("tar")], unpack),
    "classes": ("classes.txt", [b"a\nb\n"], own),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_taken_or_refused_in_one_line(name, tmp_path):
    file, wholes, read = READERS[name]
    path = tmp_path / file
    refused = []

    @settings(
        max_examples=EXAMPLES,
        deadline=20_000,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of([spoiled(whole) for whole in wholes]))
    def attack(content: bytes):
        path.write_bytes(content)
        try:
            read(path)
        except InputError as e:
            assert len(str(e).splitlines()) == 1
            refused.append(1)

    attack()
    assert refused  # else nothing was tried
