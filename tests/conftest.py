"""No test opens a socket to another host, and none sees the weights folder of whoever runs it."""

import os

import pytest_socket

os.environ.pop("RFLW_WEIGHTS", None)


def pytest_runtest_setup():
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
