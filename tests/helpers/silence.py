"""Run a command that may not open a network socket: `python tests/helpers/silence.py -- COMMAND …`.

A seccomp filter in the kernel checks every system call of the process, its threads and its
children, in any language. The first attempt to open a socket other than a Unix-domain one (which
cannot leave the machine), or an io_uring (which could open sockets unseen by the filter), kills the
whole process with SIGSYS. So a command that ends in any other way has made no such call. This
script first closes file descriptors above 2, so that the command inherits no socket.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys

AF_UNIX = 1
# (audit architecture, system call numbers of socket and io_uring_setup)
_MACHINES = {
    "x86_64": (0xC000003E, 41, 425),
    "aarch64": (0xC00000B7, 198, 425),
}
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def forbid_network_sockets() -> None:
    """Install the filter in this process; OSError if the kernel refuses it."""
    architecture, socket, io_uring = _MACHINES[platform.machine()]
    kill, allow = 8, 9  # positions of the last two instructions
    instructions = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, kill - 2, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_GREATER_EQUAL, kill - 4, 0, _X32_BIT),
        (_JUMP_IF_EQUAL, kill - 5, 0, io_uring),
        (_JUMP_IF_EQUAL, 0, allow - 6, socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_IF_EQUAL, allow - 8, kill - 8, AF_UNIX),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program), zero, zero),
    ):
        if libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"the kernel refuses the filter: {os.strerror(number)}")


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if not arguments:
        print("usage: python tests/helpers/silence.py -- COMMAND [ARGUMENT…]", file=sys.stderr)
        return 2
    child = os.fork()
    if child == 0:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        forbid_network_sockets()
        os.execvp(arguments[0], arguments)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGSYS:
        print("silence: killed: it tried to open a network socket", file=sys.stderr)
    else:
        print("silence: no network socket was opened", file=sys.stderr)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
