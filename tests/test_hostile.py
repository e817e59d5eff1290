"""Files made to do harm are refused in one line, run no code, and take little memory or disk.

Checkpoints with code or without finite numbers: `test_checkpoint`.
Damaged files of every kind are tried by `make reliability`.
"""

import io
from pathlib import Path
import resource
import tarfile
import zipfile

from PIL import Image
import pytest
from test_own_data import png

from rflw import InputError
from rflw.data.images import read_image, read_mask
from rflw_study import prepare


def refused(words: str, action, *args):
    """It must be refused in one line with these words."""
    with pytest.raises(InputError, match=words) as caught:
        action(*args)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def one_gigabyte():
    """The process may take so much beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("size", [(100_000, 10_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_a_header_of_a_billion_pixels(tmp_path, size, one_gigabyte):
    (tmp_path / "x.png").write_bytes(png(*size, 8, b""))
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


def packed(path, name: str, link: str = "") -> Path:
    """An archive that holds one file, or a link."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "evil")
    else:
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo(name)
            member.size, member.linkname = 0 if link else 4, link
            member.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(b"evil"))
    return path


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/rflw-outside.txt"])
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_archives_stay_inside_their_target(tmp_path, name, form):
    try:
        prepare.unpack(packed(tmp_path / f"x.{form}", name), tmp_path / "inner/target")
    except InputError as e:
        assert len(str(e).splitlines()) == 1
    assert not (tmp_path / "inner/outside.txt").exists()
    assert not Path("/tmp/rflw-outside.txt").exists()


def test_links_that_lead_out_of_an_archive(tmp_path):
    refused("x.tar", prepare.unpack, packed(tmp_path / "x.tar", "a", "/etc"), tmp_path / "target")
