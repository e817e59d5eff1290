"""The commands that people use most ask no other host; compiled code is private."""

import os
from pathlib import Path
import socket
import stat
import subprocess
import sys

from PIL import Image
import pytest
import pytest_socket

from rflw import InputError, build, cli
from rflw.data.synthetic import scene
from rflw.nn import pooling

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
def test_commands_ask_no_other_host(command, tmp_path, monkeypatch):
    Image.fromarray(scene("val", 0)[0]).save(tmp_path / "photo.png")
    words = command.format(photo=tmp_path / "photo.png", out=tmp_path / "out").split()
    monkeypatch.setattr(sys, "argv", ["rflw", *words])
    with pytest.raises(SystemExit) as end:
        cli.run()
    assert end.value.code in (None, 0)


def test_weights_that_would_be_downloaded_are_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="download") as caught:
        build("refinenet-lw-resnet50", 2, "imagenet")
    assert "\n" not in str(caught.value)


def test_compiled_code_is_kept_where_nobody_else_writes(tmp_path):
    """PyTorch's own place has a name in /tmp that anyone could take first."""
    script = (
        "from rflw.nn import pooling; import os; pooling.keep_code_private(); "
        "print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    folder = Path(run.stdout.strip())
    assert folder == tmp_path / "rflw/compiled"
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(InputError, match="others can write"):
        pooling.private_folder(folder)
