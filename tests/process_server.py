"""Starts Python processes by a fork of one that has imported torch, Lightning and transformers.

Such an import takes about seven seconds of CPU time, and tests start very many processes. A forked one is a process
like any other: it has its own arguments, environment, folder, streams and session, it ends as Python does (`atexit`
included), and it can be killed. `processes.py` asks for them; this is the program of the server.

Values that libraries read from the environment when they are imported are read again in the new process: those of
huggingface_hub, transformers, datasets and Lightning. What cannot be read again is in `AT_IMPORT`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

CHECKOUT = Path(__file__).resolve().parent.parent
MOST = 1 << 20  # bytes of a message
# Beginnings of names of variables that count when Python starts or a library is loaded.
AT_IMPORT = ("ARROW_", "KMP_", "LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH", "TRANSFORMERS_")
# Those of AT_IMPORT that a forked process follows nevertheless.
FOLLOWED = ("PYTHONPATH", "TRANSFORMERS_OFFLINE", "TORCHELASTIC_")


def fixed(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment that a process must share with the one that it is forked from."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(AT_IMPORT) and not name.startswith(FOLLOWED)
    }


def send(connection: socket.socket, message: Any, files: tuple[int, ...] = ()) -> None:
    socket.send_fds(connection, [json.dumps(message).encode()], files)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """A message and its files; None at the end."""
    data, files, _, _ = socket.recv_fds(connection, MOST, 3)
    return (json.loads(data) if data else None), files


def serve(listener: socket.socket) -> NoReturn:
    """Forks a process for each request, until the standard input is closed."""
    _preload()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(0, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready == 0:
                os._exit(0)
            if ready in running:
                pid, connection = running.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                with suppress(OSError):
                    send(connection, os.waitpid(pid, 0)[1])
                connection.close()
                continue
            connection, _ = listener.accept()
            request, files = receive(connection)
            pid = os.fork()
            if pid == 0:
                for handle, (_, other) in running.items():
                    os.close(handle)
                    other.close()
                connection.close()
                listener.close()
                _become(request, files)
            for file in files:
                os.close(file)
            with suppress(OSError):
                send(connection, pid)
            handle = os.pidfd_open(pid)
            running[handle] = pid, connection
            poll.register(handle, select.POLLIN)


class Spares(subprocess.Popen[Any]):
    """Takes the place of `subprocess.Popen` in a forked process, for the Python processes that this starts in its turn.

    They are forked before the program begins, so that they are its children, as others would be.
    """

    waiting: ClassVar[list[tuple[int, socket.socket]]] = []

    def _execute_child(self, args: Any, *rest: Any) -> None:
        if not self.waiting or args[0] != sys.executable:
            return super()._execute_child(args, *rest)  # type: ignore[misc]
        _, _, _, _, folder, environment, _, _, _, _, _, _, out, _, errors, _, _, _, _, _, session, *_ = rest
        self.pid, connection = self.waiting.pop(0)
        self._child_created = True
        environment = dict(os.environ) if environment is None else environment
        request = {"arguments": args[1:], "environment": environment, "folder": folder, "session": session}
        send(connection, request, (0, 1 if out == -1 else out, 2 if errors == -1 else errors))
        connection.close()


def _preload() -> None:
    sys.path[:0] = [str(CHECKOUT)]
    names = [f"recipes.{path.stem}" for path in sorted((CHECKOUT / "recipes").glob("[a-z]*.py"))]
    models = [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "mobilenet_v2", "resnet")]
    late = [
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",
        "PIL.JpegImagePlugin",
        "torch.distributed.launcher.api",
    ]
    for name in [*names, *models, *late]:
        with suppress(ImportError):
            importlib.import_module(name)
    sys.path.remove(str(CHECKOUT))
    gc.collect()
    gc.freeze()


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Makes this process what a request describes, and runs its program."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if request["session"]:
        os.setsid()
    if request["folder"]:
        os.chdir(request["folder"])
    own = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["environment"])
    _read_environment_again()
    # "-u", which torchrun gives, is for those who watch.
    arguments: list[str] = [word for word in request["arguments"][:1] if word != "-u"] + request["arguments"][1:]
    _show_as([sys.executable, *arguments])
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [entry for entry in sys.path[1:] if entry not in own]
    sys.path[:] = [os.getcwd(), *(entry for entry in path if entry), *rest]
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
    elif arguments[0] == "-c":
        sys.path[0], sys.argv[:] = "", ["-c", *arguments[2:]]
    else:
        sys.path[0], sys.argv[:] = os.path.dirname(os.path.realpath(arguments[0])), arguments
    for _ in range(request.get("children", 0)):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            here.close()
            for _, other in Spares.waiting:
                other.close()
            Spares.waiting.clear()
            child, streams = receive(there)
            there.close()
            if child is None:
                os._exit(0)
            _become(child, streams)
        there.close()
        Spares.waiting.append((pid, here))
    _run(arguments)


def _run(arguments: list[str]) -> NoReturn:
    """Runs a program and ends as Python does, but for what it clears in memory, which takes half a second."""
    code: object = 0
    try:
        _run_program(arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _run_program(arguments: list[str]) -> None:
    # Of torchrun, which has a name of its own for it.
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess.Popen = subprocess_handler.Popen = Spares  # type: ignore[misc]
    if arguments[0] == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    main = vars(sys.modules["__main__"])
    if arguments[0] == "-c":
        source, file = arguments[1], "<string>"
    else:
        source, file = Path(arguments[0]).read_text("utf-8"), arguments[0]
        main["__file__"] = file
    exec(compile(source, file, "exec", dont_inherit=True), main)


def _read_environment_again() -> None:
    import numpy as np

    np.random.seed()
    tempfile.tempdir = None
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    from huggingface_hub import constants, hf_api
    from lightning.fabric.utilities import rank_zero

    hf_api.api.endpoint = constants.ENDPOINT
    home = os.environ.get("HF_MODULES_CACHE", os.path.join(constants.HF_HOME, "modules"))
    for name in ("transformers.utils.hub", "transformers.utils", "transformers.dynamic_module_utils"):
        if hasattr(sys.modules.get(name), "HF_MODULES_CACHE"):
            sys.modules[name].HF_MODULES_CACHE = home  # type: ignore[attr-defined]
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0


def _show_as(command: list[str]) -> None:
    """Writes another command line over the one that `/proc` shows, as far as there is room."""
    import ctypes

    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = b"\0".join(map(os.fsencode, command))[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
