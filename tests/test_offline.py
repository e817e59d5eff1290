"""The commands that people use most ask no other host."""

import socket

from contract import rflw
from PIL import Image
import pytest
import pytest_socket

from rflw import InputError, build
from rflw.data.synthetic import scene

COMMANDS = (
    "models",
    "complexity refinenet-lw-mobilenet_v2 --size 64 64",
    "recipes",
    "records",
    "claims",
    "campaign status",
    "data list",
    "train embedded-lw-efficientnet_lite0 --dry-run",
    "predict {photo} --checkpoint embedded -o {out}",
)


def test_the_block_holds():
    with pytest.raises(pytest_socket.SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # of no one: RFC 5737


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_ask_no_other_host(command, tmp_path):
    Image.fromarray(scene("val", 0)[0]).save(tmp_path / "photo.png")
    assert rflw(command.format(photo=tmp_path / "photo.png", out=tmp_path / "out"))[0] == 0


def test_weights_that_would_be_downloaded_are_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="download") as caught:
        build("refinenet-lw-resnet50", 2, "imagenet")
    assert "\n" not in str(caught.value)
