"""Hold every thread of a process without stopping it, until stdin ends:   python freeze.py PID

A process held by SIGSTOP shows as stopped. One that a debugger holds does not: it is simply still, as one that waits for ever. Root only.
"""

import ctypes
import os
import sys
from pathlib import Path

PTRACE_ATTACH, WALL = 16, 0x40000000


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for thread in Path(f"/proc/{sys.argv[1]}/task").iterdir():
        if libc.ptrace(PTRACE_ATTACH, int(thread.name), None, None):
            raise OSError(ctypes.get_errno(), f"thread {thread.name} cannot be held")
        os.waitpid(int(thread.name), WALL)
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.read()  # the kernel lets go of all of them when this process ends


if __name__ == "__main__":
    main()
