"""Python begins with this in every process that the tests start: no other host is asked for anything, and who tries is told of in the
file that RFLW_TRIED names. Sockets of this machine, as processes of one training need, stay open."""
import os
import sys


def elsewhere(event: str, args: tuple) -> str | None:
    """The other host that an event of sys.audit is about, None for none."""
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return None
    where = args[0] if event.startswith("socket.get") else args[1]
    host = where[0] if isinstance(where, tuple) and where else where
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    if not isinstance(host, str) or host.startswith("/"):  # none, or a file
        return None
    own = host in ("", "localhost", "0.0.0.0", "::", "::1", os.uname().nodename) or host.startswith("127.")
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
