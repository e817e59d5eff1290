"""Python begins with this in every process that the tests start: no other host is asked for anything, and who tries is told of in the
file that RFLW_TRIED names. Sockets of this machine, as processes of one training need, stay open."""

from ipaddress import ip_address
import os
import sys


def elsewhere(event: str, args: tuple) -> str | None:
    """The other host that an event of sys.audit is about, None for none."""
    if event not in (
        "socket.connect",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
    ):
        return None
    where = args[0] if event.startswith("socket.get") else args[1]
    host = where[0] if isinstance(where, tuple) and where else where
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    if not isinstance(host, str) or host.startswith("/"):  # none, or a file
        return None
    try:
        own = ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:  # a name
        own = host in ("", "localhost", os.uname().nodename)
    return None if own else host


def watch(event: str, args: tuple) -> None:
    host = elsewhere(event, args)
    if host is not None:
        told = os.environ.get("RFLW_TRIED")
        if told:
            with open(told, "a") as file:
                file.write(f"{event} {host}\n")
        raise ConnectionRefusedError(f"the tests ask no other host for anything: {host}")


sys.addaudithook(watch)
