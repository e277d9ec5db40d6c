"""`/`: a page for people, who see what a session holds, ask it, and have it forget.

One file, which asks nothing but this server, and holds nothing before somebody's key opens it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter()
PAGE = files(__name__).joinpath("index.html").read_bytes()


def _hashed(tag: str) -> str:
    """The page's own style or script, as a policy names it: no other one is ever run."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>".encode(), PAGE, re.DOTALL)
    assert len(found) == 1, f"one <{tag}> expected in the page"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"


HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashed('script')}",
            f"style-src {_hashed('style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            # Nobody lays a page of their own over the buttons that forget.
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    ),
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page, which needs no key: what it shows does."""
    return Response(PAGE, media_type="text/html", headers=HEADERS)
