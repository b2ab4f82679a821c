"""Models of the family from the hub: those that ask for a token, and how much room they need."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from duplex.errors import WeightsError, WeightsUnreachableError
from duplex.weights import Manifest, ModelStore, load_manifest

DATA = b"weights" * 100


class GatedHub:
    """Answers 401 without the token, and sends who has it to another host for the file, as the real one does."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                token = self.headers.get("Authorization")
                outer.seen.append((self.path, token))
                if self.path.startswith("/elsewhere/"):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(DATA)))
                    self.end_headers()
                    self.wfile.write(DATA)
                elif token == "Bearer hf_right":
                    self.send_response(302)
                    # Another origin: the same machine by another name.
                    self.send_header("Location", f"http://localhost:{outer.port}/elsewhere/{self.path[1:]}")
                    self.end_headers()
                else:
                    self.send_response(403 if token else 401)
                    self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedHub]:
    hub = GatedHub()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.close()


def one_model(size_bytes: int = len(DATA)) -> Manifest:
    file = {"name": "m.safetensors", "size_bytes": size_bytes, "sha256": hashlib.sha256(DATA).hexdigest()}
    source = {"kind": "hub", "repo": "maker/model", "revision": "r", "paths": {"m.safetensors": "m.safetensors"}}
    entry = {"name": "m", "title": "m", "role": "native", "licence": "L", "files": [file], "sources": [source]}
    return Manifest.model_validate({"default": [], "model": [entry]})


def test_a_gated_model_says_where_its_licence_is(
    tmp_path: Path, gated: GatedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path, one_model())
    with pytest.raises(
        WeightsUnreachableError, match=r"HTTP 401: accept the licence at http\S+/maker/model, and set HF_"
    ):
        store.pull(["m"])
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(WeightsUnreachableError, match="a token that may read it"):
        store.pull(["m"])
    monkeypatch.setenv("HF_TOKEN", " hf_right\n")
    store.pull(["m"])
    assert (store.path("m") / "m.safetensors").read_bytes() == DATA


def test_the_token_is_for_the_hub_alone(tmp_path: Path, gated: GatedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    ModelStore(tmp_path, one_model()).pull(["m"])
    assert [token for path, token in gated.seen if not path.startswith("/elsewhere/")] == ["Bearer hf_right"]
    assert [token for path, token in gated.seen if path.startswith("/elsewhere/")] == [None]


def test_a_model_needs_its_own_size_of_room(tmp_path: Path, gated: GatedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=15_000_000_000))
    with pytest.raises(WeightsError, match="needs about 16000 MB"):
        ModelStore(tmp_path, one_model(16_000_000_000)).pull(["m"])
    with pytest.raises(WeightsUnreachableError):  # room enough: the hub is asked
        ModelStore(tmp_path, one_model(14_000_000_000)).pull(["m"])


def test_the_family_in_the_manifest() -> None:
    """Lengths add up: parameters in bfloat16, and a header of names."""
    manifest = load_manifest()
    for repo, parameters in (
        ("kyutai/moshika-pytorch-bf16", 7_687_729_152),
        ("nvidia/personaplex-7b-v1", 8_371_408_896),
    ):
        entry = manifest.find(repo)
        assert entry is not None
        assert manifest.find(entry.name) is entry
        lm = next(spec for spec in entry.files if spec.name == "model.safetensors")
        assert 0 < lm.size_bytes - 2 * parameters < 100_000
        assert entry.name not in manifest.default
    assert manifest.find("nobody/nothing") is None
