"""Runs a program without the internet, and says which of its processes wanted it.

    python tests/sealed.py PROGRAM ARGUMENTS...

The kernel asks us about every connect(2), and every sendto(2) with an address, by a seccomp filter that all children
inherit: so that what C++ libraries and helper processes do is seen, which a guard in Python misses. Linux only; no
rights and no packages needed. Exit code: the program's own; 3 when one wanted the internet; 4 where this system has no
such filters.
"""

import ctypes
import errno
import platform
import select
import socket
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path

_MACHINES = {"x86_64": (0xC000003E, 42, 44, 317), "aarch64": (0xC00000B7, 203, 206, 277)}
"""AUDIT_ARCH_*, and the numbers of connect(2), sendto(2) and seccomp(2)."""
_NO_NEW_PRIVS, _FILTER, _NEW_LISTENER = 38, 1, 8
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND, _GO_ON = 0xC0502100, 0xC0182101, 1


def seal() -> int:
    """Have the listener asked about what this process and its children send to others.

    Returns: the listener.
    Raises: OSError where the kernel has no such filter.
    """
    architecture, connect, sendto, seccomp = _MACHINES[platform.machine()]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 0, 6, architecture), (_LOAD, 0, 0, 0), (_EQUAL, 3, 0, connect)]
    steps += [(_EQUAL, 0, 3, sendto), (_LOAD, 0, 0, 48), (_EQUAL, 1, 0, 0)]  # 48: the address
    steps += [(_RETURN, 0, 0, _ASK), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    system = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(_FILTER), ctypes.c_ulong(_NEW_LISTENER), program)
    system.prctl(_NO_NEW_PRIVS, *(ctypes.c_ulong(x) for x in (1, 0, 0, 0)))
    listener: int = system.syscall(ctypes.c_long(seccomp), *arguments)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def watch(listener: int) -> int:
    """Refuse the internet until all the filtered processes have ended. Returns: how often it was wanted."""
    wanted = 0
    events = select.poll()
    events.register(listener, select.POLLIN)
    while events.poll()[0][1] & select.POLLIN:
        request = bytearray(80)
        try:
            ioctl(listener, _RECEIVE, request)
            number, process, call = struct.unpack_from("QIxxxxi", request)
            address = struct.unpack_from("6Q", request, 32)[1 if call == _MACHINES[platform.machine()][1] else 4]
            with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
                memory.seek(address)
                family = int.from_bytes(memory.read(2), sys.byteorder)
            refused = family in (socket.AF_INET, socket.AF_INET6)
            if refused:
                wanted += 1
                who = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:300]
                print(f"wanted the internet: {who}", file=sys.stderr, flush=True)
            answer = (0, -errno.ENETUNREACH, 0) if refused else (0, 0, _GO_ON)
            ioctl(listener, _SEND, struct.pack("Qqii", number, *answer))
        except FileNotFoundError:  # it has ended meanwhile
            continue
    return wanted


def main() -> int:
    ours, theirs = socket.socketpair()

    def before() -> None:
        socket.send_fds(theirs, [b"x"], [seal()])

    try:
        program = subprocess.Popen(sys.argv[1:], preexec_fn=before)
    except (subprocess.SubprocessError, KeyError):
        print("this system has no seccomp listeners", file=sys.stderr)
        return 4
    listener = socket.recv_fds(ours, 1, 1)[1][0]
    return 3 if watch(listener) else program.wait()


if __name__ == "__main__":
    sys.exit(main())
