"""Files that mean harm are refused with one line, run no code and take little memory or disk; spoiled ones never crash a parser.

The longer attack is `python -m tests.fuzz`.
"""

import gzip
import io
import json
import os
from pathlib import Path
import resource
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
from PIL import Image
import pytest
from scipy.io import loadmat, savemat
from test_checkpoints import Bomb
import torch
import yaml

from rflw import InputError, build, checkpoint, evaluation, records, training, video
from rflw.config import Recipe
from rflw.data import check
from rflw.data.images import read_image, read_mask
from rflw.data.readers import open_dataset, read_manifest
from rflw.nn import official
from rflw.recipes import RECIPES
from rflw_study import claims, matlab, paper, prepare, studies

ROOT = Path(__file__).resolve().parents[1]


def refused(words: str, action, *args):
    """It must be refused in one line with these words."""
    with pytest.raises(InputError, match=words) as caught:
        action(*args)
    assert len(str(caught.value).splitlines()) == 1


class Limited:
    """Within it, the process may take 1 GB beyond what it has, or as many bytes as are told."""

    def __init__(self, most: int = 1 << 30):
        self.most = most

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + self.most, self.before[1]))

    def __exit__(self, *exception):
        resource.setrlimit(resource.RLIMIT_AS, self.before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_no_parser_crashes_or_hangs(tmp_path):
    """A few spoiled files for each parser, always the same."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--minutes",
            "5",
            "--examples",
            "8",
            "--results",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    found = records.read(tmp_path / "reliability-hostile-files.json")["metrics"]
    assert (found["crashes"], found["hangs"], found["escapes"]) == (0, 0, 0)
    assert found["inputs"] == found["taken"] + found["refused"] and found["parsers"] == 25
    assert all(row["refused"] for row in found["targets"].values())


def test_the_attack_notices_faults(tmp_path):
    """Parsers that crash, hang, die, start a process or write elsewhere."""
    script = """
import os, signal, subprocess, sys, time
from pathlib import Path
from hypothesis import strategies as st
from tests.fuzz import run, targets
run.SLOW = 0.2
elsewhere = Path(sys.argv[1])
def last(folder): return (folder / "x").read_bytes()[:1]
faults = {"crash": lambda f: 1 / 0, "hang": lambda f: time.sleep(9), "death": lambda f: os.kill(os.getpid(), signal.SIGSEGV),
          "start": lambda f: subprocess.run(["true"]), "write": lambda f: elsewhere.write_text("x"), "none": lambda f: None}
for name, fault in faults.items():
    run.TARGETS = {name: targets.Target(name, "x", lambda: st.binary(max_size=3), fault)}
    found = run.attack([name], 2, examples=3)
    print(name, found["targets"][name]["crashes"], found["targets"][name]["hangs"], found["targets"][name]["escapes"] > 0)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x"], cwd=ROOT, capture_output=True, text=True
    )
    rows = [line.split() for line in run.stdout.splitlines()]
    seen = {
        name: (int(crashes) > 0, int(hangs) > 0, escapes == "True")
        for name, crashes, hangs, escapes in rows
    }
    assert seen == {
        "crash": (True, False, False),
        "hang": (False, True, False),
        "death": (True, False, False),
        "start": (False, False, True),
        "write": (False, False, True),
        "none": (False, False, False),
    }, run.stderr[-500:]


# ---------------------------------------------------------------- images


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(100_000, 10_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)]
)
def test_a_header_of_a_billion_pixels(tmp_path, width, height):
    (tmp_path / "x.png").write_bytes(png(width, height))
    with Limited():
        refused("x.png: cannot be read", read_image, tmp_path / "x.png")
        refused("x.png: cannot be read", read_mask, tmp_path / "x.png", 21)


def test_a_decompression_bomb(tmp_path):
    """400 million pixels in half a megabyte."""
    (tmp_path / "x.png").write_bytes(png(20_000, 20_000, bytes(20_001 * 20_000)))
    assert (tmp_path / "x.png").stat().st_size < 500_000
    with Limited():
        refused("x.png: cannot be read", read_image, tmp_path / "x.png")


def test_compressed_text_in_an_image(tmp_path):
    """PNG's text chunks are compressed, too: 200 MB in 200 KB."""
    content = png(4, 4, bytes(20))
    text = b"note\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = (
        struct.pack(">I", len(text))
        + b"zTXt"
        + text
        + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    )
    (tmp_path / "x.png").write_bytes(content[:33] + chunk + content[33:])
    with Limited():
        refused("x.png: cannot be read|not an image", read_image, tmp_path / "x.png")


# ---------------------------------------------------------------- archives


@pytest.fixture
def unpacked(tmp_path):
    return tmp_path / "unpacked"


def nothing_left(target: Path) -> bool:
    return not target.exists() and not target.with_name(f"{target.name}.partial").exists()


def test_a_zip_bomb(tmp_path, unpacked):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(24):
            archive.writestr(f"{i}.jpg", bytes(50_000_000))
    refused(
        "x.zip: would unpack to 1.2 GB, .* times its size",
        prepare.unpack,
        tmp_path / "x.zip",
        unpacked,
    )
    assert nothing_left(unpacked)


def test_a_tar_bomb(tmp_path, unpacked):
    """A file of 2 GB of which only the beginning is there: refused by what its header says."""
    member = tarfile.TarInfo("x.jpg")
    member.size = 2_000_000_000
    with gzip.open(tmp_path / "x.tar.gz", "wb") as file:
        file.write(member.tobuf() + bytes(1_000_000))
    refused("x.tar.gz: would unpack to 2.0 GB", prepare.unpack, tmp_path / "x.tar.gz", unpacked)
    assert nothing_left(unpacked)


def test_more_than_the_disk_holds(tmp_path, unpacked, monkeypatch):
    for form, name in (("tar", "x.tar"), ("zip", "x.zip")):
        (tmp_path / "a.jpg").write_bytes(bytes(2000))
        if form == "tar":
            with tarfile.open(tmp_path / name, "w") as archive:
                archive.add(tmp_path / "a.jpg", "a.jpg")
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                archive.write(tmp_path / "a.jpg", "a.jpg")
        monkeypatch.setattr(
            prepare.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1999})
        )
        refused(
            f"{name}: would unpack to .* has room for", prepare.unpack, tmp_path / name, unpacked
        )
        monkeypatch.setattr(
            prepare.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 2000})
        )
        prepare.unpack(tmp_path / name, tmp_path / form)
        assert (tmp_path / form / "a.jpg").stat().st_size == 2000


def test_attributes_of_a_tar_member_are_not_read_into_memory(tmp_path, unpacked):
    """A name of 4 GB: tarfile would read as much as there is."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 4_000_000_000
    stream = zlib.compressobj(9, zlib.DEFLATED, 31)
    with open(tmp_path / "x.tar.gz", "wb") as file:
        file.write(stream.compress(tarfile.TarInfo("a.txt").tobuf() + member.tobuf()))
        file.write(stream.compress(bytes(1_000_000)))
        file.write(stream.flush())
    with Limited():
        refused(
            "x.tar.gz: cannot be unpacked.*attributes of 4000000000 bytes",
            prepare.unpack,
            tmp_path / "x.tar.gz",
            unpacked,
        )
    assert nothing_left(unpacked)


# ---------------------------------------------------------------- MATLAB files


TREES = [
    {"a": np.arange(12, dtype=np.uint8).reshape(3, 4)},
    {"a": {"b": np.eye(3), "c": "text", "d": {"e": np.zeros((0, 3))}}},
    {
        "a": np.array([{"x": 1}, {"x": 2}], object),
        "b": 1 + 2j,
        "c": np.array([], float),
        "d": "",
        "e": np.float32(3),
    },
    {"s": np.array([(1, "u"), (2, "v")], [("n", object), ("t", object)])},
]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("tree", range(len(TREES)))
def test_whole_mat_files_are_read_as_scipy_does(tmp_path, tree, compressed):
    savemat(tmp_path / "x.mat", TREES[tree], do_compression=compressed)
    theirs, ours = loadmat(tmp_path / "x.mat", simplify_cells=True), matlab.read(tmp_path / "x.mat")
    assert repr(ours) == repr(theirs) and set(TREES[tree]) <= set(ours)


def test_sparse_arrays_are_read(tmp_path):
    from scipy.sparse import csc_matrix

    savemat(tmp_path / "x.mat", {"a": csc_matrix(np.eye(3))})
    assert np.array_equal(matlab.read(tmp_path / "x.mat")["a"].toarray(), np.eye(3))


def mat(array: bytes, order: str = "<") -> bytes:
    return (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + struct.pack(f"{order}H", 0x0100)
        + (b"IM" if order == "<" else b"MI")
        + array
    )


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def array(kind: int, dims: tuple, *parts: bytes) -> bytes:
    return element(
        14,
        element(6, struct.pack("<II", kind, 0))
        + element(5, struct.pack(f"<{len(dims)}i", *dims))
        + element(1, b"a")
        + b"".join(parts),
    )


def test_mat_files_of_the_other_byte_order():
    flags, dims = (
        element(6, struct.pack(">II", 9, 0), ">"),
        element(5, struct.pack(">2i", 1, 2), ">"),
    )
    content = mat(
        element(14, flags + dims + element(1, b"a", ">") + element(2, b"\3\4", ">"), ">"), ">"
    )
    assert loadmat(io.BytesIO(matlab.checked(content)))["a"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (array(9, (2, 2), element(0, bytes(4))), "type 0"),  # crashes SciPy's reader
        (array(9, (2, 2), element(14, bytes(8))), "type 14"),
        (array(9, (2, 3), element(2, bytes(4))), "6 numbers in 4 bytes"),
        (array(9, (2, -2), element(2, bytes(4))), "dimensions"),
        (array(9, (2,), element(2, bytes(4))), "dimensions"),
        (array(1, (40_000, 50_000)), "2000000000 entries"),  # would take 16 GB
        (
            array(2, (40_000, 50_000), element(5, struct.pack("<i", 4)), element(1, b"x\0\0\0")),
            "2000000000 entries",
        ),
        (array(2, (1, 1), element(5, struct.pack("<i", 0)), element(1, b"x\0\0\0")), "no length"),
        (array(4, (1, 9), element(16, bytes(8))), "9 characters in 8 bytes"),
        (array(17, (1, 1)), "class 17"),
        (array(9, (1, 1), element(2, b"\1"))[:-4], "cut off"),
        (element(2, bytes(8)), "a variable of type 2"),
        (element(15, zlib.compress(bytes(300_000_000), 9)), "cut off or too many"),
        (
            element(15, zlib.compress(array(9, (1, 1), element(2, b"\1")))[:-3]),
            "cut off or too many",
        ),
        (element(15, b"not deflated"), "damaged"),
    ],
)
def test_mat_files_that_mean_harm(tmp_path, content, says):
    (tmp_path / "x.mat").write_bytes(mat(content))
    with Limited():
        refused(
            f"x.mat: cannot be read as a MATLAB 5 file .*{says}",
            prepare._mat,
            tmp_path / "x.mat",
            "a",
        )


def test_arrays_within_arrays_without_end(tmp_path):
    inner = array(9, (1, 1), element(2, b"\1"))
    for _ in range(500):
        inner = array(1, (1, 1), inner)
    (tmp_path / "x.mat").write_bytes(mat(inner))
    refused("too deep", prepare._mat, tmp_path / "x.mat", "a")


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    """Pillow would have Ghostscript draw PostScript, whatever the file's name ends with."""
    trap, gs = tmp_path / "executed", tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {trap}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    refused("not an image", read_image, path)
    refused("not an image", read_mask, path, 2)
    assert not trap.exists()
    with pytest.raises(OSError), Image.open(path) as picture:
        picture.load()
    assert trap.exists()  # the trap was a real one


@pytest.mark.parametrize(
    "form", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
)  # AVIF: not in the oldest Pillow
def test_photos_of_every_form_are_read(tmp_path, form):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo", form)
    assert read_image(tmp_path / "photo").shape == (30, 40, 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_picture_that_is_cut_off_is_told_in_one_line(tmp_path, recwarn, compression, share):
    path = tmp_path / "photo.tif"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path, compression=compression)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused("photo.tif", read_image, path)
    assert not recwarn.list


# ---------------------------------------------------------------- JSON, YAML and what they hold


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "\ufeff{", "NaN", '"x"', "[]", "{}"]
)
def test_json_of_any_depth(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    refused("manifest.json", read_manifest, tmp_path)
    refused("manifest.json", records.read, tmp_path / "manifest.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"unexpected": {"train": "few"}},
        {"unexpected": {"train": [1, 2]}},
        {"unexpected": {"train": {}}},
        {"unexpected": {"train": {"found": 1}}},
        {"unexpected": []},
        {"statements": {}},
        {"splits": [1]},
    ],
)
def test_manifests_of_other_entries(tmp_path, changes):
    whole = {
        "splits": {},
        "sha256": {},
        "statements": [],
        "unexpected": {"train": {"official": 2, "found": 1}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(whole))
    assert read_manifest(tmp_path) == whole
    (tmp_path / "manifest.json").write_text(json.dumps(whole | changes))
    refused("not a manifest", read_manifest, tmp_path)


@pytest.mark.parametrize("line", ["0  /etc/hostname", "0  ../outside", "0  images/../../outside"])
def test_sums_of_files_outside_the_folder(tmp_path, line):
    """None is opened: a missing one would be called missing."""
    (tmp_path / "SHA256SUMS").write_text(f"{line}\n")
    assert check._changed(tmp_path) == [
        f"{tmp_path / 'SHA256SUMS'}: {line[3:]} leads out of the folder"
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"size": [10**5, 10**5], "polygon": [[0, 0, 1, 0, 1, 1]]},
        {"size": [10**9, 10**9], "polygon": []},
        {"size": [2.5, 4], "polygon": []},
        {"size": [3, 4], "polygon": [[0, 0, 1e9, 0, 1, 1]]},
        {"size": [3, 4], "polygon": [[0, 0, float("nan"), 0, 1, 1]]},
        {"size": [3, 4], "polygon": {"size": [3, 4], "counts": [1 << 40]}},
        {"size": [3, 4], "polygon": [dict.fromkeys("abcdef", 1)]},
        {"size": [3, 4], "polygon": [["a"] * 6]},
        {"size": [3, 4], "polygon": {"size": [10**6, 10**6], "counts": [12]}},
        {"size": [3, 4], "polygon": {"size": [4, 3], "counts": [12]}},
        {"size": [3, 4], "polygon": {"size": 12, "counts": [12]}},
    ],
)
def test_regions_of_any_size(content):
    paint = prepare._paint_with_coco()
    with Limited():
        refused(
            "a region of image 7 cannot be decoded",
            paint,
            Path("x.json"),
            "7",
            tuple(content["size"]),
            [(1, content["polygon"])],
        )


class TestYaml:
    def refuse(self, tmp_path, text: str, words: str):
        (tmp_path / "claims.yaml").write_text(text)
        with Limited():
            refused(words, claims.load, tmp_path / "claims.yaml")

    @pytest.mark.parametrize(
        "tag",
        [
            "!!python/object/apply:os.system ['touch {}']",
            "!!python/object/new:pathlib.Path ['{}']",
            "!!python/name:os.system",
        ],
    )
    def test_tags_that_build_objects(self, tmp_path, tag):
        trap = tmp_path / "executed"
        text = f"tolerances: {tag.format(trap)}\nnetworks: {{}}\nclaims: []\n"
        self.refuse(tmp_path, text, "not YAML .*could not determine a constructor")
        assert not trap.exists()
        if "system [" in tag:
            yaml.load(text, yaml.UnsafeLoader)
            assert trap.exists()  # the trap was a real one

    def test_a_billion_laughs(self, tmp_path):
        text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
        for before, name in zip("abcdefgh", "bcdefghi"):
            text += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        self.refuse(tmp_path, text, "expected tolerances, networks and claims")
        wrapped = "".join(f"  {line}\n" for line in text.splitlines())
        self.refuse(tmp_path, f"tolerances:\n{wrapped}networks: {{}}\nclaims: [*i]\n", "claim 1")

    def test_depth_without_end(self, tmp_path):
        self.refuse(tmp_path, "[" * 50_000, "not YAML|expected|too deep")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", "8"),
        ("batch", 2.5),
        ("batch", True),
        ("crop", [96]),
        ("crop", [96, "128"]),
        ("scale", [float("nan"), 1.0]),
        ("momentum", float("inf")),
        ("model", 3),
        ("flip", 1),
        ("name", None),
        ("stages", [[]]),
        ("stages", {}),
        ("stages", 3),
    ],
)
def test_recipes_of_other_types(field, value):
    from dataclasses import asdict

    config = json.loads(json.dumps(asdict(RECIPES["embedded-lw-efficientnet_lite0"])))
    assert Recipe.of(config) == RECIPES["embedded-lw-efficientnet_lite0"]
    refused("not a recipe|no stages", Recipe.of, config | {field: value})


@pytest.mark.parametrize("name", ["batch\nsize", "\r\n", "a\u2028b", "a\x0bb\x0cc\x85d"])
def test_settings_of_many_lines(name):
    from dataclasses import asdict

    config = json.loads(json.dumps(asdict(RECIPES["embedded-lw-efficientnet_lite0"])))
    refused("^not a recipe", Recipe.of, config | {name: 1})
    refused("^not a recipe", Recipe.of, config | {"stages": [config["stages"][0] | {name: 1}]})


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("refinenet-lw-mobilenet_v2", 2)


CARD = {"classes": ["a", "b"], "data": "own"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(network, tmp_path, value):
    network.decoder.classifier.bias.data[1] = value
    checkpoint.save(network, tmp_path / "x.safetensors", CARD)
    network.decoder.classifier.bias.data[1] = 0
    refused(
        "x.safetensors: decoder.classifier.bias: holds infinities or what is not a number",
        checkpoint.load,
        tmp_path / "x.safetensors",
    )


@pytest.mark.parametrize(
    "card",
    [
        {"model": ["x"]},
        {"model": {}},
        {"classes": "ab"},
        {"classes": [1, 2]},
        {"classes": {"a": 1, "b": 2}},
        {"model": "refinenet-lw-timm:hf-hub:x/y"},
        {"model": "refinenet-lw-timm:local-dir:/tmp"},
        {"model": "refinenet-lw-timm:../../x"},
    ],
)
def test_cards_that_describe_no_model(network, tmp_path, card):
    from safetensors.torch import save_file

    save_file(
        {"a": torch.zeros(1)},
        tmp_path / "y.safetensors",
        {"rflw": json.dumps({"model": network.name} | CARD | card)},
    )
    refused(
        "y.safetensors: its header describes no model", checkpoint.load, tmp_path / "y.safetensors"
    )


OTHER_ENTRIES = [
    {"data": 3},
    {"data": None},
    {"data": ["x"]},
    {"data": {}},
    {"short_side": "a"},
    {"short_side": [1]},
    {"short_side": float("nan")},
    {"short_side": 10**9},
    {"short_side": 1},
    {"short_side": True},
    {"recipe": ["x"], "seed": 0},
    {"recipe": "../../x", "seed": 0},
    {"recipe": "nul\0l", "seed": 0},
    {"recipe": "x", "seed": "../../x"},
]


def whole(network, file: Path, weights: dict = {}, **card) -> Path:  # noqa: B006
    """A checkpoint of the network, with some entries of its weights and its card changed."""
    from safetensors.torch import save_file

    weights = {key: value.contiguous() for key, value in (network.state_dict() | weights).items()}
    save_file(weights, file, {"rflw": json.dumps({"model": network.name} | CARD | card)})
    return file


@pytest.mark.parametrize("card", OTHER_ENTRIES)
def test_cards_whose_entries_are_of_other_types(network, tmp_path, card):
    """Of networks that are whole, so that commands would come to use them."""
    refused(
        "x.safetensors: its header describes no model .its ",
        checkpoint.load,
        whole(network, tmp_path / "x.safetensors", **card),
    )


def test_a_card_that_names_no_data(network, tmp_path):
    from safetensors.torch import save_file

    save_file(
        network.state_dict(),
        tmp_path / "x.safetensors",
        {"rflw": json.dumps({"model": network.name, "classes": ["a", "b"]})},
    )
    refused(
        "x.safetensors: its header describes no model .'data'",
        checkpoint.load,
        tmp_path / "x.safetensors",
    )


def test_a_card_of_a_recipe_without_a_seed(network, tmp_path):
    assert (
        studies.title(checkpoint.load(whole(network, tmp_path / "x.safetensors", recipe="x")))
        == network.name
    )
    assert (
        studies.title(
            checkpoint.load(whole(network, tmp_path / "x.safetensors", recipe="x", seed=3))
        )
        == "x-s3"
    )


@pytest.mark.parametrize("side", [None, 0, 33, 4096])
def test_cards_of_any_sound_shorter_side(network, tmp_path, side):
    assert (
        checkpoint.load(whole(network, tmp_path / "x.safetensors", short_side=side)).card[
            "short_side"
        ]
        == side
    )


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0l", "\ud800"])
def test_data_sets_that_no_folder_can_be_named(name):
    refused("^unknown data set", open_dataset, name, "val")
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(f"a/{name}", "val")


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([0, complex(float("nan"), 0)]),
        torch.zeros(2, dtype=torch.complex64),
        torch.full((2,), 1e300, dtype=torch.float64),
    ],
)
def test_weights_that_are_no_numbers_once_they_are_loaded(network, tmp_path, weights):
    file = whole(network, tmp_path / "x.safetensors", {"decoder.classifier.bias": weights})
    refused(
        "x.safetensors: decoder.classifier.bias: (holds infinities|.* no dense tensor of real numbers)",
        checkpoint.load,
        file,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_widths_are_read(network, tmp_path, dtype):
    bias = torch.tensor([0.5, -2.0])
    file = whole(network, tmp_path / "x.safetensors", {"decoder.classifier.bias": bias.to(dtype)})
    assert torch.equal(checkpoint.load(file).decoder.classifier.bias, bias)


def test_a_safetensors_header_without_end(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with Limited():
        refused("not a whole safetensors file", checkpoint.load, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        ("refinenet-lw-mobilenet_v2", 60_000),
        ("refinenet-timm:vgg19", 2),
        ("refinenet-lw-timm:convnext_xxlarge", 2),
    ],
)
def test_a_small_file_that_names_a_network_of_gigabytes(tmp_path, model, classes):
    from safetensors.torch import save_file

    card = {"model": model, "classes": [str(i) for i in range(classes)], "data": "own"}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"rflw": json.dumps(card)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused("x.safetensors: ", checkpoint.load, tmp_path / "x.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


@pytest.mark.parametrize("how", ["deflated", "one part under many names"])
def test_checkpoints_that_are_zip_bombs(tmp_path, how):
    """Of tensors that take a gigabyte in a megabyte."""
    tensors = {
        f"layer1.{i}.conv1.weight": torch.zeros(25_000_000)
        for i in range(1 if how == "deflated" else 10)
    }
    torch.save(tensors, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        first = None
        for member in whole.infolist():
            large = member.file_size > 1e6
            if large and how != "deflated" and first is not None:
                twin = zipfile.ZipInfo(member.filename)
                for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                    setattr(twin, name, getattr(first, name))
                bomb.filelist.append(twin)
                continue
            kind = zipfile.ZIP_DEFLATED if large and how == "deflated" else zipfile.ZIP_STORED
            bomb.writestr(member.filename, whole.read(member), kind)
            first = bomb.filelist[-1] if large else first
    (tmp_path / "whole.pth").unlink()
    with Limited():
        refused("x.pth: would unpack to", checkpoint.load_official, tmp_path / "x.pth", 2)
        (tmp_path / "last.pt").write_bytes((tmp_path / "x.pth").read_bytes())
        refused("last.pt: would unpack to", training._open_run, tmp_path, True, torch.device("cpu"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_the_authors_that_are_no_numbers(tmp_path, value):
    torch.save({"segm.weight": torch.full((2, 4, 3, 3), value)}, tmp_path / "x.pth")
    refused(
        "x.pth: segm.weight: holds infinities or what is not a number",
        checkpoint.load_official,
        tmp_path / "x.pth",
        2,
    )


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(4, 200, 1000, 1000),  # 3.2 GB of one number
        torch.zeros(70_000).as_strided((4, 200, 100, 100), (1, 1, 300, 300)),
        torch.zeros(4, 2, 1, 1, device="meta"),
        torch.zeros(4, 2, 1, 1, dtype=torch.complex64),
        torch.full((4, 2, 1, 1), 1e300, dtype=torch.float64),
    ],
)
def test_tensors_that_are_not_what_they_seem(tmp_path, value):
    torch.save({"segm.weight": value}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 300_000
    with Limited():
        refused(
            "x.pth: segm.weight: (a Tensor that is no dense|holds infinities)",
            checkpoint.weights_of,
            tmp_path / "x.pth",
        )


def test_a_classifier_of_many_classes_without_weights(tmp_path):
    torch.save({"segm.weight": torch.zeros(65536, 0, 1, 1)}, tmp_path / "x.pth")
    with Limited(1 << 28):  # its network has 600 MB
        refused("x.pth: layer1.0.weight: missing", checkpoint.weights_of, tmp_path / "x.pth")


def test_a_pickle_bomb_where_a_run_goes_on(tmp_path):
    trap = tmp_path / "executed"
    torch.save({"identity": Bomb(trap)}, tmp_path / "last.pt")
    refused(
        "last.pt: not a whole checkpoint of a run",
        training._open_run,
        tmp_path,
        True,
        torch.device("cpu"),
    )
    assert not trap.exists()
    torch.load(tmp_path / "last.pt", weights_only=False)
    assert trap.exists()  # the trap was a real one


def test_an_image_that_is_none_of_ours_is_not_opened_by_name(tmp_path, monkeypatch):
    """A list of ids cannot lead out of the data set's folder."""
    (tmp_path / "x.txt").write_text("../../x\n")
    refused("id '../../x' cannot name a file", prepare._ids, tmp_path / "x.txt")
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", 2).shape == (3, 4)


def test_pipes_are_not_waited_for(tmp_path):
    """Nobody writes into this one: reading it would never end."""
    pipe = tmp_path / "x.mp4"
    os.mkfifo(pipe)
    sitting = evaluation.Sitting(1, 6)
    sitting.file = pipe
    for read in (
        read_image,
        lambda path: read_mask(path, 6),
        checkpoint.load,
        lambda path: official.load_tensors(path, "cpu"),
        lambda path: prepare.sum_line(tmp_path, path.relative_to(tmp_path)),
        lambda path: sitting._read(),
        video.frame_rate,
    ):
        refused("x.mp4: not a file but a pipe", read, pipe)
    skipped = []
    assert (
        list(video.read_photos([pipe], skipped)) == []
        and len(skipped) == 1
        and "a pipe" in skipped[0]
    )
    refused("a folder, not a checkpoint", checkpoint.load, tmp_path)
    refused(
        "cannot be written .it is a folder", records.write_whole, tmp_path, lambda partial: None
    )
    refused(
        "cannot be written .File name too long",
        records.write_whole,
        tmp_path / ("a" * 300),
        lambda partial: None,
    )


@pytest.mark.parametrize(
    "claim", [b"r" + struct.pack("<I", 10**8), b"p100000000\n", b"\x96" + struct.pack("<Q", 10**9)]
)
def test_a_pickle_that_claims_more_than_it_is_takes_no_memory(tmp_path, claim):
    """To remember something as number 100,000,000, and a gigabyte of bytes that are not there, in a file that torch cannot read."""
    path, whole = tmp_path / "x.pth", b"\x80\x02N."
    for content in (b"\x80\x02N" + claim + b".", 3 * whole + b"\x80\x02N" + claim + b"."):
        path.write_bytes(content)
        tracemalloc.start()
        refused("x.pth: ", checkpoint.load_official, path, 21)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6


def test_a_heading_of_several_lines_is_refused_in_one(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "FOLDER", tmp_path)
    (tmp_path / "text.csv").write_text('id,"section\nand\r\nmore"\n')
    refused("text.csv, line 1: the columns are", paper.statements)


def test_a_place_in_a_picture_that_is_a_fraction(tmp_path):
    """Pillow stumbles over it with an error that is none of its own."""
    path = tmp_path / "x.tif"
    Image.new("L", (32, 24)).save(path)
    content = path.read_bytes()
    place = next(
        content.find(struct.pack("<HHI", 273, kind, 1))
        for kind in (3, 4)
        if struct.pack("<HHI", 273, kind, 1) in content
    )
    path.write_bytes(
        content[:place]
        + struct.pack("<HHII", 273, 5, 1, len(content))
        + content[place + 12 :]
        + struct.pack("<II", 9, 2)
    )
    refused("x.tif: cannot be read", read_mask, path, 21)
    refused("x.tif: cannot be read", read_image, path)
