"""The model hub, where a reader has it: can it be reached at all?"""

from __future__ import annotations

import os
from pathlib import Path

from chinese_llama_lab.sources.fetch import is_offline


def hub_endpoint() -> str:
    """The hub's address, or the mirror's in `HF_ENDPOINT`."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers within `timeout` seconds; False where downloads are switched off.

    The hub's own client tries for half a minute before it gives up, so it is asked only after this.
    """
    import httpx
    from huggingface_hub import constants

    if is_offline() or constants.HF_HUB_OFFLINE:
        return False
    try:
        return httpx.head(hub_endpoint(), timeout=timeout, follow_redirects=True).status_code < 500
    except httpx.HTTPError:
        return False


def cached_hub_file(repo: str, filename: str) -> Path | None:
    """A hub file that is in the hub client's own cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename)
    return Path(found) if isinstance(found, str) else None
