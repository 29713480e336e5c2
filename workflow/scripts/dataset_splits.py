"""Which part of a data set a batch belongs to: train, val or test.

Decided by the batch's name alone, so that batches that are added move no other.
"""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")


def split_of(batch_name: str, val_percent: float, test_percent: float) -> str:
    """Return a batch's part.

    Args:
        batch_name: The batch key in its file-name form.
        val_percent: How many percent of the batches go to `val`, about.
        test_percent: The same for `test`; the rest is `train`. A larger share keeps what it had.
    """
    digest = hashlib.sha256(batch_name.encode()).digest()
    place = 100 * int.from_bytes(digest[:8], "big") / (1 << 64)
    if place < test_percent:
        return "test"
    return "val" if place >= 100 - val_percent else "train"


def batch_name_of(export: str) -> str:
    """Return the batch of an export's name, `<batch>_<filter>`."""
    return export.rpartition("_")[0]
