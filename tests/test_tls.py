"""https and wss with certificates of a small authority of our own, renewed while the server runs."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import connect

from duplex.config import Config
from duplex.errors import ConfigError
from duplex.serve import running
from duplex.transport.locks.tls import TlsFiles

YEAR = datetime.timedelta(days=365)


class Authority:
    """Signs certificates for "localhost"; ``trust`` is a client's context that believes it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._key, self._serial = folder, ec.generate_private_key(ec.SECP256R1()), 1000
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority for tests")])
        self._root = self._signed(self._name, self._key.public_key(), 999, ca=True)

    def trust(self) -> ssl.SSLContext:
        pem = self._root.public_bytes(serialization.Encoding.PEM).decode()
        return ssl.create_default_context(cadata=pem)

    def issue(self) -> int:
        """Writes ``cert.pem`` and ``key.pem``; returns the certificate's serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        self._serial += 1
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        certificate = self._signed(name, key.public_key(), self._serial)
        (self.folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / "key.pem").write_bytes(private_pem(key))
        return self._serial

    def _signed(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, serial: int, *, ca: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(now - YEAR)
            .not_valid_after(now + YEAR)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        return (builder if ca else builder.add_extension(names, critical=False)).sign(self._key, hashes.SHA256())


def private_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def files(authority: Authority) -> TlsFiles:
    return TlsFiles(authority.folder / "cert.pem", authority.folder / "key.pem")


async def serial_of(port: int, trust: ssl.SSLContext, name: str | None = "localhost") -> int:
    """The serial number of the certificate that a new connection is shown. ``name`` None: the client names nobody."""
    if name is None:
        trust.check_hostname = False
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=name or "")
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


async def test_the_server_speaks_https_and_wss(authority: Authority) -> None:
    authority.issue()
    security = {"tls_certificate": str(authority.folder / "cert.pem"), "tls_key": str(authority.folder / "key.pem")}
    config = Config.model_validate({"server": {"port": 0}, "agent": {"name": "echo"}, "security": security})
    async with running(config) as server:
        assert server.url.startswith("https://localhost:")
        async with httpx.AsyncClient(base_url=server.url, verify=authority.trust()) as client:
            assert (await client.get("/readyz")).status_code == 200
            page = await client.get("/", headers={"Origin": server.url})
            assert 'id="talk"' in page.text
        async with connect(
            server.url.replace("https", "wss") + "/v1/realtime",
            ssl=authority.trust(),
            origin=server.url,  # type: ignore[arg-type]
        ) as call:
            assert json.loads(await call.recv())["type"] == "session.created"
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(verify=ssl.create_default_context()) as stranger:
                await stranger.get(server.url)


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(authority: Authority) -> None:
    first = authority.issue()
    tls, trust = files(authority), authority.trust()
    assert tls.context.minimum_version == ssl.TLSVersion.TLSv1_2

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls.context)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
    assert not tls.refresh()
    assert await serial_of(port, trust) == first
    for _ in range(2):
        renewed = authority.issue()
        assert tls.refresh()
        assert await serial_of(port, trust) == renewed
    assert await serial_of(port, trust, name=None) == renewed
    writer.write(b"still here\n")
    assert await reader.readline() == b"still here\n"
    writer.close()
    server.close()


async def test_a_bad_renewal_changes_nothing_and_is_logged(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first = authority.issue()
    tls, trust = files(authority), authority.trust()
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=tls.context)
    port = server.sockets[0].getsockname()[1]
    other = private_pem(ec.generate_private_key(ec.SECP256R1()))
    with caplog.at_level(logging.ERROR, "duplex.tls"):
        for spoil in (
            lambda: (authority.folder / "key.pem").write_bytes(other),  # the pair is renewed one after the other
            lambda: (authority.folder / "cert.pem").write_text("half a certif"),
            lambda: (authority.folder / "cert.pem").unlink(),
        ):
            spoil()
            assert not tls.refresh()
            assert await serial_of(port, trust) == first
    assert len(caplog.records) == 3
    assert "stays as it was" in caplog.text
    renewed = authority.issue()
    assert tls.refresh()
    assert await serial_of(port, trust) == renewed
    server.close()


def test_files_that_cannot_be_used_are_named_before_anything_starts(authority: Authority) -> None:
    authority.issue()
    certificate, key = authority.folder / "cert.pem", authority.folder / "key.pem"
    locked = authority.folder / "locked.pem"
    locked.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    for pair, says in (
        ((authority.folder / "none.pem", key), "none.pem cannot be read"),
        ((certificate, None), "belong together"),
        ((key, key), "Both must be PEM"),
        ((certificate, locked), "need no password"),
    ):
        with pytest.raises(ConfigError, match=says):
            TlsFiles(*pair)


async def test_a_key_without_a_certificate_is_a_mistake(authority: Authority) -> None:
    authority.issue()
    security = {"tls_key": str(authority.folder / "key.pem")}
    config = Config.model_validate({"server": {"port": 0}, "agent": {"name": "echo"}, "security": security})
    with pytest.raises(ConfigError, match="TLS needs both"):
        async with running(config):
            pass


async def test_plain_http_at_the_https_port_harms_nobody(authority: Authority) -> None:
    authority.issue()
    security = {"tls_certificate": str(authority.folder / "cert.pem"), "tls_key": str(authority.folder / "key.pem")}
    config = Config.model_validate({"server": {"port": 0}, "agent": {"name": "echo"}, "security": security})
    async with running(config) as server:
        port = int(server.url.rpartition(":")[2])

        def shout() -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                try:
                    return plain.recv(100)
                except ConnectionError:
                    return b""

        assert not (await asyncio.to_thread(shout)).startswith(b"HTTP")
        async with httpx.AsyncClient(base_url=server.url, verify=authority.trust()) as client:
            assert (await client.get("/healthz")).status_code == 200
