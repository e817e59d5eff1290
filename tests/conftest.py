"""No test opens a socket to another host, and none sees the weights folder of whoever runs it."""

import os

import pytest_socket

os.environ.pop("RFLW_WEIGHTS", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, each process computes on one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    if any(item.path.name == "test_standin.py" for item in items):
        from tests import standin  # PyTorch counts its devices when it first differentiates

        standin.install()


def pytest_runtest_setup():
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
