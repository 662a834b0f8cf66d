"""How a server is set up."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.core.config import check
from triptych.core.errors import ConfigError

MIB = 2**20
TOKENS_VARIABLE = "TRIPTYCH_TOKENS"
BODIES = 8
"""Largest bodies that may be in the server at the same time; smaller ones may be more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Where a server listens, and its limits.

    Attributes:
        host: Address to listen on; 0.0.0.0 is every address of this machine.
        port: TCP port; 0 takes a free one.
        max_batch: Items that are computed together, at most.
        max_wait_ms: How long a request may wait for others of its kind while nothing computes; at
            most a quarter of the time that the last ones took, and not where it is alone.
        queue: Requests that may be in the server at once; more are answered with 503.
        max_body_mib: Largest body of a request.
        max_items: Items of a request, at most.
        max_megapixels: Pixels of all images of a request, at most.
        read_timeout_s: Time in which a request must arrive whole.
        grace_s: Time to finish what is running after SIGTERM.
        cors_origins: Origins of web pages that may ask, such as https://example.org.
        host_names: Further names under which a server on a loopback address may be asked.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32
    max_wait_ms: float = 50.0
    queue: int = 64
    max_body_mib: float = 32.0
    max_items: int = 64
    max_megapixels: float = 64.0
    read_timeout_s: float = 30.0
    grace_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges."""
        check(0 <= self.port < 65536, "port", self.port, "be from 0 to 65535")
        for name in ("max_batch", "queue", "max_items"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        for name in ("max_body_mib", "max_megapixels", "read_timeout_s"):
            check(getattr(self, name) > 0, name, getattr(self, name), "be greater than 0")
        for name in ("max_wait_ms", "grace_s"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "be at least 0")
        for origin in self.cors_origins:
            fits = origin == "*" or re.fullmatch(r"https?://[^/\s]+", origin)
            check(bool(fits), "cors_origins", origin, "be like https://example.org, or *")

    @property
    def max_body(self) -> int:
        """Largest body, in bytes."""
        return int(self.max_body_mib * MIB)

    @property
    def max_bodies(self) -> int:
        """Bytes of all bodies in the server, at most."""
        return BODIES * self.max_body

    @property
    def max_pixels(self) -> int:
        """Pixels of the images of a request, at most."""
        return int(self.max_megapixels * 1e6)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_tokens(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return bearer tokens of a file, one a line, and of the environment, with spaces between.

    Args:
        file: Lines that begin with # are comments; None reads no file.
        environment: `TRIPTYCH_TOKENS` holds tokens.

    Raises:
        ConfigError: The file cannot be read or holds none, or a token is too short to be one.
    """
    found = environment.get(TOKENS_VARIABLE, "").split()
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"tokens = {str(file)!r}: cannot be read: {error}") from error
        listed = [line for line in lines if line and not line.startswith("#")]
        check(bool(listed), "tokens", str(file), "hold a token on a line of its own")
        found += listed
    for number, token in enumerate(found):
        if len(token) < 16 or not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII):
            raise ConfigError(
                f"token {number} has {len(token)} characters: take at least 16 letters, digits or "
                "-._~+/=, such as `python -c 'import secrets; print(secrets.token_urlsafe())'` "
                "prints"
            )
    return tuple(found)
