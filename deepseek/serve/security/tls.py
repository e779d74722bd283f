"""The server's certificate: checked before the server starts, shared by HTTP and gRPC, re-read on SIGHUP.

Not here: getting a certificate.
"""

from __future__ import annotations

import logging
import ssl
import stat
import time
from pathlib import Path
from typing import Any, NamedTuple

from deepseek.errors import ConfigError

_LOG = logging.getLogger("deepseek.serve")
_SOON = 14 * 86_400
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED and _NOT_YET_VALID of OpenSSL


class TlsFiles(NamedTuple):
    """A certificate (with its chain) and its private key, both PEM."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise ConfigError where a file is missing, the two don't belong together, or the certificate is not valid.

        Done by a handshake of the two with themselves in memory. Warns of a key that others may read and of a
        certificate that ends within two weeks.
        """
        facts = self._handshake(self.context())
        ends = ssl.cert_time_to_seconds(str(facts["notAfter"]))
        if ends - time.time() < _SOON:
            _LOG.warning("the certificate %s is valid only until %s: renew it", self.certificate, facts["notAfter"])
        if stat.S_IMODE(self.key.stat().st_mode) & 0o077:
            _LOG.warning("others on this machine may read the key: chmod 600 %s", self.key)

    def context(self) -> ssl.SSLContext:
        """Return a context for a server, TLS 1.2 and up. Raises ConfigError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Read the files into a context in use: connections from now on get the new certificate."""
        for path, option in ((self.certificate, "--tls-cert"), (self.key, "--tls-key")):
            if not path.is_file():
                raise ConfigError(f"there is no file {path}", wanted="a PEM file", fix=f"check {option}")
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError as error:
            unlike = error.reason == "KEY_VALUES_MISMATCH"
            raise ConfigError(
                f"{self.key} is not the key of {self.certificate}"
                if unlike
                else f"{self.certificate} and {self.key} are no certificate with its key",
                found=error.reason or error,
                wanted="two PEM files; the server's own certificate first, then its chain",
                fix="openssl x509 -in CERT -noout -text shows what a certificate is",
            ) from None
        except OSError as error:
            raise ConfigError(f"{self.certificate} or {self.key} can't be read", found=error) from None

    def pem(self) -> tuple[bytes, bytes]:
        """Return the private key and the certificate chain as gRPC takes them."""
        return self.key.read_bytes(), self.certificate.read_bytes()

    def _handshake(self, server_context: ssl.SSLContext) -> dict[str, Any]:
        """Return the certificate as a client decodes it."""
        client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client_context.check_hostname = False
        client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted
        client_context.load_verify_locations(self.certificate)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = server_context.wrap_bio(to_server, to_client, server_side=True)
        client = client_context.wrap_bio(to_client, to_server)
        try:
            for _ in range(8):
                done = [_step(side) for side in (client, server)]
                if all(done):
                    return client.getpeercert() or {}
        except ssl.SSLCertVerificationError as error:
            state = {_EXPIRED: "has expired", _NOT_YET: "is not valid yet"}.get(error.verify_code, "is not valid")
            raise ConfigError(
                f"the certificate {self.certificate} {state}",
                found=error.verify_message,
                fix="renew it, and check this machine's clock",
            ) from None
        except ssl.SSLError as error:
            raise ConfigError(f"no connection can be made with {self.certificate}", found=error.reason) from None
        raise ConfigError(f"no connection can be made with {self.certificate}", found="an endless handshake")


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _no_password() -> str:
    raise ConfigError(
        "the private key is encrypted",
        wanted="a key without a password, readable by the server only",
        fix="openssl pkey -in KEY -out NEW_KEY; chmod 600 NEW_KEY",
    )
