"""Certificates: which are taken, which are refused before anything starts, and a server behind one."""

from __future__ import annotations

import socket
import ssl
import subprocess

import httpx
import pytest

from deepseek.errors import ConfigError
from deepseek.serve import BackgroundServer
from deepseek.serve.options import Safety
from deepseek.serve.security.tls import TlsFiles
from tests.fake_serving import FakeModel


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a maker of certificates: `make(name, days)` gives their files."""
    folder = tmp_path_factory.mktemp("tls")

    def make(name: str, *, days: int = 90, extra: tuple[str, ...] = ()) -> TlsFiles:
        cert, key = folder / f"{name}.crt", folder / f"{name}.key"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost".split()
        more = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *extra]
        try:
            subprocess.run(
                [*command, "-keyout", key, "-out", cert, "-days", str(days), *more], check=True, capture_output=True
            )
        except FileNotFoundError:
            pytest.skip("this machine has no openssl to make certificates with")
        key.chmod(0o600)
        return TlsFiles(cert, key)

    return make


@pytest.fixture(scope="module")
def good(make):
    return make("good")


def test_a_good_pair_is_taken_without_a_word(good, caplog):
    good.check()
    assert caplog.text == ""


def test_a_leaf_that_may_sign_nothing_is_taken_too(make):
    make("leaf", extra=("-addext", "basicConstraints=critical,CA:FALSE")).check()


def test_files_that_are_not_there_are_named(good, tmp_path):
    for files, option in (
        (TlsFiles(tmp_path / "no", good.key), "--tls-cert"),
        (TlsFiles(good.certificate, tmp_path), "--tls-key"),
    ):
        with pytest.raises(ConfigError) as error:
            files.check()
        assert option in error.value.fix


def test_a_key_of_another_certificate_is_told_as_such(good, make):
    with pytest.raises(ConfigError, match="is not the key of"):
        TlsFiles(good.certificate, make("other").key).check()


def test_what_is_no_certificate_is_told(good, tmp_path):
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for files in (TlsFiles(nonsense, good.key), TlsFiles(good.certificate, nonsense)):
        with pytest.raises(ConfigError, match="no certificate with its key"):
            files.check()


def test_an_encrypted_key_is_told_with_the_way_out(good, tmp_path):
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkcs8", "-topk8", "-in", good.key, "-out", locked, "-passout", "pass:x"]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match="encrypted"):
        TlsFiles(good.certificate, locked).check()


def test_an_expired_certificate_is_refused(make):
    with pytest.raises(ConfigError, match="has expired"):
        dated(make("past"), "20200101000000Z", "20200102000000Z").check()


def test_a_certificate_of_the_future_is_refused(make):
    with pytest.raises(ConfigError, match="not valid yet"):
        dated(make("future"), "20900101000000Z", "20910102000000Z").check()


def dated(files: TlsFiles, start: str, end: str) -> TlsFiles:
    """Write the certificate anew, valid between two times (`openssl req` knows them only from version 3.4 on)."""
    folder = files.key.parent / f"{files.key.stem}-authority"
    folder.mkdir()
    (folder / "index").touch()
    config = folder / "config"
    config.write_text(
        f"""
        [ca]\ndefault_ca = here
        [here]\ndatabase = {folder}/index\nrand_serial = yes\nnew_certs_dir = {folder}\ndefault_md = sha256
        policy = any\n[any]\ncommonName = supplied\n[req]\ndistinguished_name = none\n[none]
        """.replace("        ", "")
    )
    request = ["openssl", "req", "-config", config, "-new", "-key", files.key, "-subj", "/CN=localhost"]
    subprocess.run([*request, "-out", folder / "csr"], check=True, capture_output=True)
    sign = ["openssl", "ca", "-config", config, "-batch", "-notext", "-selfsign", "-keyfile", files.key]
    times = ["-startdate", start, "-enddate", end, "-in", folder / "csr", "-out", files.certificate]
    subprocess.run([*sign, *times], check=True, capture_output=True)
    return files


def test_a_certificate_that_ends_soon_and_an_open_key_are_warned_of(make, caplog):
    files = make("soon", days=3)
    files.key.chmod(0o644)
    files.check()
    assert "renew it" in caplog.text and "chmod 600" in caplog.text


def test_one_half_is_not_enough(good):
    with pytest.raises(ConfigError, match="needs its key"):
        Safety(tls_cert=good.certificate).tls()


def test_a_server_speaks_tls_only_and_takes_a_renewed_certificate(make, tmp_path):
    first, second = make("first"), make("second")
    live = TlsFiles(tmp_path / "live.crt", tmp_path / "live.key")
    for source, target in zip(first, live, strict=True):
        target.write_bytes(source.read_bytes())
    live.key.chmod(0o600)
    safety = Safety(tls_cert=live.certificate, tls_key=live.key)
    with BackgroundServer({"m": FakeModel("fine ")}, safety=safety) as server:
        assert server.url.startswith("https://127.0.0.1:")
        answer = complete(server.url, first)
        assert answer.json()["choices"][0]["text"] == "fine "
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/health")
        with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as plain:
            ssl.create_default_context(cafile=str(second.certificate)).wrap_socket(plain, server_hostname="localhost")
        for source, target in zip(second, live, strict=True):
            target.write_bytes(source.read_bytes())
        server._running.reload()
        assert complete(server.url, second).status_code == 200
        live.key.write_text("spoilt")
        server._running.reload()
        assert complete(server.url, second).status_code == 200


def complete(url: str, trusted: TlsFiles) -> httpx.Response:
    context = ssl.create_default_context(cafile=str(trusted.certificate))
    body = {"prompt": "x", "max_tokens": 5}
    return httpx.post(url + "/v1/completions", json=body, verify=context)
