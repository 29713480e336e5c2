"""Payloads of any size with all that an export may hold, from a fixed seed."""

import json
import random
from typing import Any

CLASSES = ("gun", "knife", "tablet")
STATUSES = ("accepted", "accepted", "accepted", "unreviewed", "rejected", "abandoned")
REVIEWER = "Erika Mustermann"


def synthetic_payload(
    batch_key: str, tracks: int, frames: int, seed: int = 1, embedding: int = 0
) -> dict[str, Any]:
    """Return a payload with `tracks` times `frames` annotations, unsorted.

    Every second frame is annotated. Some boxes are rejected, some have no area or are malformed,
    and one track is twice in a frame.
    """
    rng = random.Random(seed)
    images = [
        {
            "id": f"{frame:024x}",
            "file_name": f"f{frame:05}.jpg",
            "width": 1920,
            "height": 1080,
            "frame_index": frame,
            "frame_version": 1,
            "gcs_uri": f"gs://dataset/{batch_key}/f{frame:05}.jpg",
        }
        for frame in range(0, 2 * frames, 2)
    ]
    annotations: list[dict[str, Any]] = []
    for track in range(tracks):
        x, y = rng.uniform(0, 1700), rng.uniform(0, 900)
        for image in images:
            number = len(annotations)
            x, y = x + rng.uniform(-2, 2), y + rng.uniform(-2, 2)
            width, height = rng.uniform(10, 200), rng.uniform(10, 150)
            odd = rng.random()
            box: Any = [x, y, width, height]
            if odd < 0.001:
                box = [0, 0, 0, 0]
            elif odd < 0.002:
                box = None
            annotations.append(
                {
                    "id": number or f"{number:024x}",
                    "annotation_id": f"{number:024x}",
                    "image_id": image["id"],
                    "track_tag": f"patch_{track:03}",
                    "category_id": 1,
                    "category_name": rng.choice(CLASSES),
                    "bbox": box,
                    "area": None if odd > 0.9 else width * height,
                    "status": rng.choice(STATUSES),
                    "confidence": None if odd > 0.8 else rng.random(),
                    "person_down": odd > 0.95,
                    "blur_decision": "sharp",
                    "blur_metrics": {"blur_decision": "sharp", "v": 12.5},
                    "embedding_swin": [rng.gauss() for _ in range(embedding)],
                    "has_mask": None,
                    "meta": None,
                    "labels": None,
                    "created_at": "2025-11-20T00:00:00",
                    "updated_at": "2025-11-20T00:00:00.250000+00:00",
                    "latest_judgment": {
                        "status": "accepted",
                        "user": REVIEWER,
                        "note": f"seen by {REVIEWER}",
                        "created_at": "2025-11-21T10:00:00",
                    },
                }
            )
    twice = dict(annotations[0], id="twice", annotation_id="twice", bbox=[1, 2, 30, 40])
    annotations.append(dict(twice, status="accepted"))
    rng.shuffle(annotations)
    rng.shuffle(images)
    return {
        "info": {"batch_key": batch_key, "exported_at": "2026-01-01T00:00:00", "tracks": []},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "gun"}],
        "tracks": [
            {
                "track_tag": f"patch_{track:03}",
                "primary_class": CLASSES[track % 2] if track % 5 else None,
                "categories": ["gun"],
                "manually_completed": True,
                "status": "active",
                "pending_annotations": 3,
            }
            for track in range(tracks)
        ],
    }


def kept_boxes(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the annotations that conversions keep, said anew and plainly."""
    return [
        annotation
        for annotation in payload["annotations"]
        if annotation["status"] != "rejected"
        and annotation["bbox"]
        and annotation["bbox"][2] > 0
        and annotation["bbox"][3] > 0
    ]


def as_bytes(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()
