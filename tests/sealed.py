"""Runs a program without internet sockets, and says which of its processes asked for one.

    python tests/sealed.py PROGRAM ARGUMENTS...

The kernel asks us about every socket(2) of the internet families, by a seccomp filter that all children inherit: so
that sockets of C++ libraries and of helper processes are seen, which a guard in Python misses. Linux only; no rights
and no packages needed. Exit code: the program's own; 3 when one asked; 4 where this system has no such filters.
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

_MACHINES = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
"""AUDIT_ARCH_*, and the numbers of socket(2) and seccomp(2)."""
_NO_NEW_PRIVS, _FILTER, _NEW_LISTENER = 38, 1, 8
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_RECEIVE, _SEND = 0xC0502100, 0xC0182101


def seal() -> int:
    """Have the listener asked about internet sockets of this process and its children.

    Returns: the listener.
    Raises: OSError where the kernel has no such filter.
    """
    architecture, socket_number, seccomp_number = _MACHINES[platform.machine()]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 0, 5, architecture), (_LOAD, 0, 0, 0), (_EQUAL, 0, 3, socket_number)]
    steps += [(_LOAD, 0, 0, 16), (_EQUAL, 2, 0, socket.AF_INET), (_EQUAL, 1, 0, socket.AF_INET6)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ASK)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    system = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(_FILTER), ctypes.c_ulong(_NEW_LISTENER), program)
    system.prctl(_NO_NEW_PRIVS, *(ctypes.c_ulong(x) for x in (1, 0, 0, 0)))
    listener: int = system.syscall(ctypes.c_long(seccomp_number), *arguments)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def watch(listener: int) -> int:
    """Refuse every internet socket until all the filtered processes have ended. Returns: how many were asked for."""
    asked = 0
    events = select.poll()
    events.register(listener, select.POLLIN)
    while events.poll()[0][1] & select.POLLIN:
        request = bytearray(80)
        try:
            ioctl(listener, _RECEIVE, request)
            number, process = struct.unpack_from("QI", request)
            asked += 1
            who = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:300]
            print(f"asked for an internet socket: {process} {who}", file=sys.stderr, flush=True)
            ioctl(listener, _SEND, struct.pack("Qqii", number, 0, -errno.EPERM, 0))
        except FileNotFoundError:  # it has ended meanwhile
            continue
    return asked


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
