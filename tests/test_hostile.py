"""Files made to do harm are refused in one line, run no code, and take little memory or disk.

Checkpoints with code or without finite numbers: `test_checkpoint`.
Damaged files of every kind are tried by `make reliability`.
"""

import io
from pathlib import Path
import resource
import struct
import tarfile
import zipfile
import zlib

from PIL import Image
import pytest

from rflw import InputError
from rflw.data.images import read_image, read_mask
from rflw_study import claims, prepare

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


def refused(words: str, action, *args):
    """It must be refused in one line with these words."""
    with pytest.raises(InputError, match=words) as caught:
        action(*args)
    assert len(str(caught.value).splitlines()) == 1


class Limited:
    """Within it, the process may take 1 GB beyond what it has."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, self.before[1]))

    def __exit__(self, *exception):
        resource.setrlimit(resource.RLIMIT_AS, self.before)


# ------------------------------------------------------------ images


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        sum32 = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum32

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@linux
@pytest.mark.parametrize("size", [(100_000, 10_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_a_header_of_a_billion_pixels(tmp_path, size):
    (tmp_path / "x.png").write_bytes(png(*size))
    with Limited():
        refused("x.png: cannot be read", read_image, tmp_path / "x.png")
        refused("x.png: cannot be read", read_mask, tmp_path / "x.png", 21)


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    """Pillow would have Ghostscript draw PostScript, whatever the file's name ends with."""
    trap, program = tmp_path / "executed", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trap}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    refused("photo.png", read_image, path)
    refused("photo.png", read_mask, path, 2)
    assert not trap.exists()
    with pytest.raises(OSError), Image.open(path) as picture:
        picture.load()
    assert trap.exists()  # the trap was a real one


# ------------------------------------------------------------ archives


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/rflw-outside.txt"])
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_archives_stay_inside_their_target(tmp_path, name, form):
    if form == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
    else:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, "evil")
    target = tmp_path / "inner" / "target"
    try:
        prepare.unpack(tmp_path / f"x.{form}", target)
    except InputError as e:
        assert len(str(e).splitlines()) == 1
    assert not (tmp_path / "inner" / "outside.txt").exists()
    assert not (tmp_path / "outside.txt").exists() and not Path("/tmp/rflw-outside.txt").exists()


def test_links_that_lead_out_of_an_archive(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    refused("x.tar", prepare.unpack, tmp_path / "x.tar", tmp_path / "target")


# ------------------------------------------------------------ YAML


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system"]
)
def test_yaml_that_builds_objects(tmp_path, tag):
    trap = tmp_path / "executed"
    text = f"tolerances: {tag.format(trap)}\nnetworks: {{}}\nclaims: []\n"
    (tmp_path / "claims.yaml").write_text(text)
    refused("claims.yaml", claims.load, tmp_path / "claims.yaml")
    assert not trap.exists()
