"""Nothing is asked of another host that nobody asked for, and temporary files are their owner's alone.

conftest.py blocks sockets for the whole suite; here is whether the block holds, and the commands that people use most.
"""

import os
from pathlib import Path
import socket
import stat
import subprocess
import sys

from PIL import Image
import pytest

from rflw import InputError, build, records
from rflw.data.synthetic import scene
from rflw.nn import pooling

ELSEWHERE = "192.0.2.1"  # of no one: RFC 5737
COMMANDS = """
models
complexity refinenet-lw-mobilenet_v2 --size 64 64
recipes
records
claims
campaign status
data list
train embedded-lw-efficientnet_lite0 --dry-run
predict {photo} --checkpoint embedded -o {out}
"""


def test_the_block_holds(no_network):
    for ask in (
        lambda: socket.create_connection((ELSEWHERE, 80), timeout=1),
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (ELSEWHERE, 9)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg(
            [b"x"], [], 0, (ELSEWHERE, 9)
        ),
        lambda: socket.gethostbyname("127.example.org"),
        lambda: socket.gethostbyaddr(ELSEWHERE),
    ):
        with pytest.raises(ConnectionRefusedError, match="no other host"):
            ask()
    assert len(no_network.read_text().splitlines()) == 6
    no_network.write_text("")
    code = f"import socket; socket.create_connection(({ELSEWHERE!r}, 80), timeout=1)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no other host" in run.stderr and no_network.read_text().split()[1:] == [ELSEWHERE]
    no_network.write_text("")


def test_sockets_of_this_machine_stay_open():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        client.sendall(b"x")
        assert server.accept()[0].recv(1) == b"x"


def test_commands_ask_no_other_host(tmp_path, no_network):
    """In one process, to save imports; each must end well."""
    Image.fromarray(scene("val", 0)[0]).save(tmp_path / "photo.png")
    commands = [
        line.format(photo=tmp_path / "photo.png", out=tmp_path / "out").split()
        for line in COMMANDS.split("\n")
        if line
    ]
    script = f"""
import sys
from rflw import cli
for words in {commands!r}:
    sys.argv = ["rflw", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    print("==", code, *words)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    ended = [line.split()[1:3] for line in run.stdout.splitlines() if line.startswith("== ")]
    assert ended == [["0", words[0]] for words in commands], run.stdout[-1000:] + run.stderr[-1000:]
    assert no_network.read_text() == ""


def test_weights_that_would_be_downloaded_are_refused_in_one_line(
    no_network, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError) as caught:
        build("refinenet-lw-resnet50", 2, "imagenet")
    monkeypatch.setenv("RFLW_WEIGHTS", str(tmp_path))
    with pytest.raises(
        InputError,
        match="holds no resnet50-imagenet.safetensors or .*; torchvision has none here, and the download",
    ):
        build("refinenet-lw-resnet50", 2, "imagenet")
    assert "\n" not in str(caught.value) and "download" in no_network.read_text()
    no_network.write_text("")


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_files_that_are_being_written_are_private(tmp_path):
    modes = []
    before = os.umask(0)
    try:
        records.write_whole(
            tmp_path / "x.json",
            lambda partial: (modes.append(mode(partial)), Path(partial).write_text("x")),
        )
    finally:
        os.umask(before)
    assert modes == [0o600] and mode(tmp_path / "x.json") == 0o644


def test_compiled_code_is_kept_where_nobody_else_writes(tmp_path):
    """PyTorch's own place has a name in /tmp that anyone could take first, and fill with code of theirs."""
    script = "from rflw.nn import pooling; import os; pooling.keep_code_private(); print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")} | {
        "XDG_CACHE_HOME": str(tmp_path)
    }
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    folder = Path(run.stdout.strip())
    assert folder == tmp_path / "rflw/compiled" and mode(folder) == 0o700
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment | {"TORCHINDUCTOR_CACHE_DIR": "/elsewhere"},
    )
    assert run.stdout.strip() == "/elsewhere"  # who has chosen a place keeps it
    folder.chmod(0o777)
    with pytest.raises(InputError, match="others can write"):
        pooling.private_folder(folder)
