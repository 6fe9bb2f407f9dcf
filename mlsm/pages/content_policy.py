"""The Content-Security-Policy of a page: which scripts and styles a browser runs there, and what they may ask
for. Text of a corpus or of a run that got into a page as a script would not run.
"""

from __future__ import annotations

import base64
import hashlib


def content_policy(script: str, style: str, *, is_served: bool = False) -> str:
    """The policy of a page with one script and one style, which it allows by their digests, and nothing from
    elsewhere. A served page may ask the server that it comes from.
    """
    server = "connect-src 'self'; " if is_served else ""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; {server}"
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    """The digest by which the policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
