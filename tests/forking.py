"""Python programs in processes forked from one server process that has the heavy imports behind it.

    forking.run([sys.executable, "cli_demo.py", "--prompt", "hello"], capture_output=True, env=environment)
    forking.Popen(argv, ...)                  a `subprocess.Popen`: pipes, poll, wait, communicate, signals, exit code
    forking.open_terminal(argv, ...)          the same in a pseudo-terminal of its own
argv is `python SCRIPT|-m MODULE|-c CODE` with arguments; a test of imports passes the `preload` it needs.
Elsewhere than on Linux these are fresh processes. Keep one test per script that uses `subprocess` itself.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pty
import runpy
import socket
import struct
import subprocess
import sys
import termios
import types
from typing import Any

# MODULE or MODULE:ATTRIBUTE. The first list is for tests of imports; the second for programs.
TORCH = ("torch",)
PROGRAM = (
    "chatglm:ChatGLMForConditionalGeneration",
    "chatglm:load_pipeline",
    "transformers:Seq2SeqTrainer",
    "prompt_toolkit:PromptSession",
    "fastapi",
    "uvicorn",
    "sse_starlette",
    "torch.distributed.tensor",
)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PR_SET_CHILD_SUBREAPER = 36
_LENGTH = struct.Struct("!Q")
_servers: dict[tuple[str, ...], _Server] = {}


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` for `[sys.executable, ...]`: the child is forked instead of started.

    It is reparented to this process, which therefore waits for it as for its own.
    """

    def __init__(self, argv: list[str], *, preload: tuple[str, ...] = PROGRAM, **options: Any) -> None:
        self._preload = preload
        super().__init__(argv, **options)

    if sys.platform == "linux":

        def _execute_child(  # the signature of Python 3.11 to 3.13
            self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
            p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
            start_new_session, process_group,
        ) -> None:  # fmt: skip
            assert args[0] == sys.executable, args
            fds = [given if given != -1 else own for own, given in enumerate((p2cread, c2pwrite, errwrite))]
            request = {
                "argv": [os.fspath(word) for word in args[1:]],
                "cwd": os.fspath(cwd or os.getcwd()),
                "env": dict(os.environ if env is None else env),
                "session": start_new_session,
            }
            try:
                if self._preload not in _servers:
                    _servers[self._preload] = _Server(self._preload)
                self.pid = _servers[self._preload].fork(request, fds)
                self._child_created = True
            finally:
                self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def run(
    argv: list[str],
    *,
    input: str | bytes | None = None,
    capture_output: bool = False,
    timeout: float = 240,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with `Popen` from here."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(argv, **options) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def open_terminal(argv: list[str], rows: int, columns: int, **options: Any) -> tuple[Popen, int]:
    """The process and the other end of its terminal, which the caller closes."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    given = options.pop("env", None) or os.environ
    options["env"] = {name: value for name, value in given.items() if name not in ("COLUMNS", "LINES")}  # of another
    try:
        process = Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_take_terminal, **options
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return process, master


def close() -> None:
    """End the servers and wait for them, so that what they measured is written."""
    while _servers:
        _servers.popitem()[1].close()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Server:
    """Client of one server process. Requests and process ids go over a socket; its end ends the server."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", os.path.abspath(__file__), str(theirs.fileno()), *preload],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def fork(self, request: dict[str, Any], fds: list[int]) -> int:
        """Returns the process id."""
        content = json.dumps(request).encode()
        socket.send_fds(self._socket, [_LENGTH.pack(len(content))], fds)
        self._socket.sendall(content)
        (pid,) = _LENGTH.unpack(_read(self._socket, _LENGTH.size))
        return int(pid)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)


def _read(source: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = source.recv(size - len(content))
        if not part:
            raise EOFError("the fork server has ended")
        content += part
    return content


def _serve(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for every request. Returns its request in each forked process, and None in the server at its end."""
    while True:
        header, fds, _, _ = socket.recv_fds(control, _LENGTH.size, 3)
        if not header:
            return None
        request = json.loads(_read(control, _LENGTH.unpack(header)[0]))
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                os.close(writer)
                control.close()
                return request, fds
            os.write(writer, _LENGTH.pack(pid))
            os._exit(0)
        os.waitpid(middle, 0)  # from here on the child belongs to the client
        control.sendall(os.read(reader, _LENGTH.size))
        for fd in (*fds, reader, writer):
            os.close(fd)


def _become_a_fresh_process(request: dict[str, Any], fds: list[int]) -> None:
    """Everything that `exec` would have set, from the session to `sys.stdout`."""
    if request["session"]:
        os.setsid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    if request["session"] and os.isatty(0):
        _take_terminal()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    through = bool(os.environ.get("PYTHONUNBUFFERED"))

    def text(number: int, mode: str, errors: str, line_buffering: bool) -> io.TextIOWrapper:
        raw = open(number, mode, closefd=False)  # noqa: SIM115
        return io.TextIOWrapper(raw, encoding or "utf-8", errors, line_buffering=line_buffering, write_through=through)

    sys.stdin = text(0, "rb", errors or "strict", False)
    sys.stdout = text(1, "wb", errors or "strict", os.isatty(1))
    sys.stderr = text(2, "wb", "backslashreplace", True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    if "torch" in sys.modules and (num_threads := os.environ.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(num_threads))


def _run_program(argv: list[str]) -> None:
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        return
    module = types.ModuleType("__main__")
    if argv[0] == "-c":
        code = compile(argv[1], "<string>", "exec")
        sys.argv = ["-c", *argv[2:]]
        sys.path.insert(0, "")
    else:
        with open(argv[0], "rb") as file:
            code = compile(file.read(), argv[0], "exec")
        module.__file__ = argv[0]
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _main() -> None:
    """A server, and in the forked processes the program, whose end is this interpreter's end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path.insert(0, ROOT)
    for name in sys.argv[2:]:
        module, _, attribute = name.partition(":")
        imported = importlib.import_module(module)
        if attribute:
            getattr(imported, attribute)
    sys.path.remove(ROOT)
    assert len(os.listdir("/proc/self/task")) == 1, "an import started a thread: it would be missing in every fork"
    gc.freeze()
    forked = _serve(control)
    if forked is not None:
        _become_a_fresh_process(*forked)
        _run_program(forked[0]["argv"])


if __name__ == "__main__":
    _main()
