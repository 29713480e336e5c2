"""Shows a demo database as text of at most 80 columns."""

import sqlite3

from .reads import JsonObject, list_batches, list_tracks

KEY_WIDTH = 30
ROW = "  {:<12} {:<18} {:<12} {:>5} {:>8} {:>9}  {}"


def batch_table(connection: sqlite3.Connection) -> str:
    """Return a paragraph a batch, newest first, and in it a line a track."""
    return "\n\n".join(_batch(connection, batch) for batch in list_batches(connection))


def _batch(connection: sqlite3.Connection, batch: JsonObject) -> str:
    listing = sorted(list_tracks(connection, batch["batch_key"]), key=lambda t: t["track_tag"])
    counts = f"{batch['frame_count']} frames, {batch['annotation_count']} boxes"
    head = f"{_fit(batch['batch_key'], KEY_WIDTH)}  {counts}, of {batch['created_at'][:19]}"
    if not listing:
        return f"{head}\n  no tracks"
    titles = ROW.format("track", "state", "class", "boxes", "pending", "frames", "down")
    return "\n".join([head, titles.rstrip(), *(_track(track) for track in listing)])


def _track(track: JsonObject) -> str:
    frames = "-"
    if track["frame_count"]:
        frames = f"{track['first_frame_index']}-{track['last_frame_index']}"
    return ROW.format(
        _fit(track["track_tag"], 12),
        _state(track),
        _fit(track["primary_class"] or ", ".join(track["categories"]) or "-", 12),
        track["total_annotations"],
        track["pending_annotations"],
        frames,
        "yes" if track["person_down"] else "",
    ).rstrip()


def _state(track: JsonObject) -> str:
    """Name a track's state by what matters most to the `complete` export."""
    if track["manually_completed"]:
        return "completed by hand"
    if track["status"] == "abandoned":
        return f"abandoned from {track['abandoned_from_frame']}"
    if track["pending_annotations"] == 0:
        return "complete"
    return "pending"


def _fit(text: str, width: int) -> str:
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"
