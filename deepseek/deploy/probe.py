"""Asks a server whether it is well: `python -m deepseek.deploy.probe http://127.0.0.1:8080/health`, exit code 0 or 1.

For HEALTHCHECK in containers, which have no curl. The standard library only: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import sys
import urllib.request
from http.client import HTTPException


def well(url: str, seconds: float = 4.0) -> bool:
    """Return whether `url` (http) answers 200 within `seconds`; proxies of the environment are not asked."""
    if not url.startswith("http://"):
        return False
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, HTTPException):  # urllib's own errors are OSErrors
        return False


if __name__ == "__main__":
    sys.exit(0 if len(sys.argv) == 2 and well(sys.argv[1]) else 1)
