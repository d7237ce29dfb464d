"""The Content-Security-Policy of a self-contained page, whose one style sheet and script are named by their hashes."""

import base64
import hashlib


def content_policy(style: str, script: str, *, images: bool = False) -> str:
    """The policy of a page that loads nothing, runs no other script and applies no other style.

    Args:
        style: the text of its `<style>`, exactly.
        script: the text of its `<script>`, exactly.
        images: whether it may show images that are part of it, as `data:` addresses.
    """
    allowed = f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}"
    return f"{allowed}; img-src data:" if images else allowed


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
