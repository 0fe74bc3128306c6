"""Models by name on the Hugging Face hub: references, the local cache, downloads, headers alone, uploads.

The only package that imports huggingface_hub, whose settings apply: `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, tokens.
"""

from evomerge.checkpoints.hub.reference import HubId, hub_id, locate
from evomerge.checkpoints.hub.snapshot import Snapshot, address, cached, find, missing, name_of, resolve, size

__all__ = [
    "HubId",
    "Snapshot",
    "address",
    "cached",
    "find",
    "hub_id",
    "locate",
    "missing",
    "name_of",
    "resolve",
    "size",
]
