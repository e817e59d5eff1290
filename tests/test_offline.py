"""No test reaches another host: all run under this block, those of every command, too."""

import socket

import pytest
import pytest_socket

from rflw import InputError, build


def test_the_block_holds():
    with pytest.raises(pytest_socket.SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # of no one: RFC 5737


def test_weights_that_would_be_downloaded_are_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="download") as caught:
        build("refinenet-lw-resnet50", 2, "imagenet")
    assert "\n" not in str(caught.value)
