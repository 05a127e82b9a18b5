"""What the service never does, proved of its code and of what it does: no pickle, no path or URL from a request."""

from __future__ import annotations

import ast
import asyncio
import base64
import builtins
import io
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import service
from service.api.app import create_app
from service.metrics import Metrics
from service.runtime import Runtime
from service.settings import Settings
from tests.api.bodies import JSON, SAFETENSORS
from tests.trio import build_trio

ROOT = Path(service.__file__).parent
READERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml"}
DIALLERS = {"urllib", "http", "httpx", "requests", "aiohttp", "ftplib", "smtplib", "httpcore", "huggingface_hub"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}
# Of urllib, what takes names apart and opens nothing.
HARMLESS = {"urllib.parse", "http"}
# What converts strangers' checkpoints reads PyTorch's format, tensors only, from a path on the command line.
CONVERTERS = {"models/convert.py"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in ROOT.rglob("*.py"):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Names as they are written, such as torch.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_is_imported_that_unpickles_or_fetches() -> None:
    found = [
        (path, name)
        for path, tree in modules()
        for name in imported(tree)
        if name not in HARMLESS and name.split(".")[0] in READERS | DIALLERS
    ]
    assert found == []


def test_nothing_is_evaluated_and_no_shell_is_started() -> None:
    for path, tree in modules():
        for name, call in calls(tree):
            assert name not in EVALUATORS | {"os.system", "os.popen"}, (path, name)
            assert not any(word.arg == "shell" for word in call.keywords), (path, name)
            if name in {"np.load", "numpy.load"}:
                assert "allow_pickle" not in {word.arg for word in call.keywords}, path


def test_pytorchs_format_is_read_by_the_converter_alone_and_tensors_only() -> None:
    readers = [(path, call) for path, tree in modules() for name, call in calls(tree) if name == "torch.load"]
    assert {path for path, _ in readers} == CONVERTERS
    for _, call in readers:
        assert ast.unparse(next(word.value for word in call.keywords if word.arg == "weights_only")) == "True"


def test_routes_name_no_path() -> None:
    """No code of the API opens files: what a request says is never one's name."""
    for path, tree in modules():
        if path.startswith("api/"):
            assert {name.split(".")[0] for name in imported(tree)} & {"pathlib", "os", "shutil", "tempfile"} == set()
            for name, _ in calls(tree):
                assert name != "open", path
                assert name.rsplit(".", 1)[-1] not in {"read_bytes", "read_text", "write_bytes", "write_text"}, path


class Trap:
    """Unpickled, it says so."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("it was unpickled",)


@pytest.fixture(scope="module")
def runtime(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    trio = build_trio(tmp_path_factory.mktemp("nothing") / "trio")
    runtime = Runtime.start(Settings(models=(tiny_checkpoint, trio), slots=4), Metrics())
    yield runtime
    runtime.close(0)


PASSWD = "/etc/passwd"
ENCODED = base64.b64encode(PASSWD.encode()).decode()
PICKLED = base64.b64encode(pickle.dumps(Trap())).decode()
LINKS = ("http://127.0.0.1:9/x.wav", "file:///etc/passwd", PASSWD, "../../etc/passwd")


def hostile() -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests whose strings are paths, addresses and pickles."""
    for link in LINKS:
        encoded = base64.b64encode(link.encode()).decode()
        for data in (link, encoded):
            yield "/predict", {"json": {"media": {"audio": {"data": data}}}}
            yield "/predict", {"json": {"media": {"video": {"data": data}}}}
            for kind in ("image", "audio"):
                yield "/generate", {"json": {"prompt": [{"type": kind, "data": data}]}}
            yield "/sessions", {"json": {"snapshot": data}}
        yield "/predict", {"json": {"model": link, "features": {"audio": [[0.0] * 5]}}}
        yield "/generate", {"json": {"model": link, "prompt": "a"}}
        yield "/sessions", {"json": {"fork_of": link}}
        yield "/predict", {"files": {"audio": (link, link.encode())}}
        yield f"/models/{link}", {}
        yield f"/sessions/{link}", {}
    yield "/sessions", {"json": {"snapshot": PICKLED}}
    yield "/sessions", {"content": pickle.dumps(Trap()), "headers": SAFETENSORS}
    yield "/predict", {"content": pickle.dumps(Trap()), "headers": SAFETENSORS}
    yield "/predict", {"content": pickle.dumps(Trap()), "headers": JSON}
    # FFmpeg follows what a playlist or an SDP names, unless it is kept from it.
    for playlist in (f"#EXTM3U\n#EXTINF:1,\n{LINKS[0]}\n", f"ffconcat version 1.0\nfile {PASSWD}\n"):
        data = base64.b64encode(playlist.encode()).decode()
        yield "/predict", {"json": {"media": {"audio": {"data": data}}}}
        yield "/generate", {"json": {"prompt": [{"type": "audio", "data": data}]}}


def test_no_request_makes_the_service_open_a_file_or_a_connection(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every such request is refused, and nothing that it names is opened on the way, by Python or by what it calls."""
    opened: list[Any] = []

    def noting(call: Any) -> Any:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            opened.append(arguments)
            return call(*arguments, **keywords)

        return noted

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(create_app(runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            got = []
            for path, request in hostile():
                method = "POST" if request else "GET"
                got.append((await client.request(method, path, timeout=60, **request)).status_code)
            return got

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        monkeypatch.setattr(f"{__name__}.LINKS", tuple(link.replace(":9/", f":{port}/") for link in LINKS))
        for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
            monkeypatch.setattr(module, name, noting(getattr(module, name)))
        statuses = asyncio.run(ask())
        monkeypatch.undo()
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert {status // 100 for status in statuses} == {4}, statuses
    names = [str(arguments[0]) for arguments in opened]
    assert not [name for name in names if "passwd" in name or "x.wav" in name]
