"""The workflow's settings: command line, environment, configuration file, defaults, in this order.

The names and meanings are in `config/README.md`; the closed JSON schema in `workflow/schemas/`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from export_via_api import (
    SettingError,
    Settings,
    parse_api_base,
    parse_size,
    parse_status_filter,
    parse_timeout,
    show,
    split_batch_keys,
    split_credentials,
)
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

ENVIRONMENT = {
    "api_base": "EXPORT_API_BASE",
    "backend_id": "EXPORT_BACKEND_ID",
    "batch_key": "EXPORT_BATCH_KEY",
    "status_filter": "EXPORT_STATUS_FILTER",
    "request_timeout": "EXPORT_REQUEST_TIMEOUT",
    "time_limit": "EXPORT_TIME_LIMIT",
    "size_limit": "EXPORT_SIZE_LIMIT",
}
# Options of the conversions that are used as they are given.
PLAIN = (
    "include_rejected",
    "class_from",
    "reviewers",
    "embeddings",
    "frame_rate",
    "val_percent",
    "test_percent",
)


@dataclasses.dataclass(frozen=True)
class WorkflowSettings(Settings):
    """What a run exports and from where. Holds no secret, so it may be recorded."""

    backend_id: str = ""  # what makes exports of one backend those of another when it differs
    refresh: bool = True  # whether to ask for the manifest
    status_json: bool = False  # whether `status` prints JSON
    upload_to: str = ""  # URL of the folder on object storage that gets a copy
    # Conversions
    formats: tuple[str, ...] = ()  # which are made of every selected export
    include_rejected: bool = False
    class_from: str = "track"  # or `annotation`
    classes: tuple[str, ...] = ()  # those that are numbered first
    reviewers: bool = False  # whether what names reviewers goes in
    embeddings: int = 0  # floats of an embedding in the tables; 0 leaves them out
    frame_rate: float = 30  # frames a second
    val_percent: float = 10  # of the batches
    test_percent: float = 10


def resolve_settings(
    command_line: Mapping[str, Any],
    environ: Mapping[str, str],
    files: Mapping[str, Any],
    schema: Mapping[str, Any],
) -> WorkflowSettings:
    """Merge the sources of settings and check the result.

    Args:
        command_line: What `--config` gave.
        environ: The environment; an empty variable counts as not set.
        files: What configuration files gave; a null counts as not set.
        schema: The configuration's JSON schema, with its defaults.

    Raises:
        SettingError: a key is unknown or a value cannot be used; the message says which and why.
    """
    properties = schema["properties"]
    values = {key: entry["default"] for key, entry in properties.items()}
    names = {key: f"The configuration's {key}" for key in properties}

    given = {key: value for key, value in {**files, **command_line}.items() if value is not None}
    # Snakemake hands `--config refresh=false` on as a text.
    for key in ("refresh", "status_json", "include_rejected", "reviewers"):
        if str(given.get(key)).lower() in ("true", "false"):
            given[key] = str(given[key]).lower() == "true"
    for key in ("formats", "classes"):
        if isinstance(given.get(key), str):
            given[key] = [part.strip() for part in given[key].split(",") if part.strip()]
    _check_schema(given, schema)
    values |= given
    if values["val_percent"] + values["test_percent"] > 100:
        raise SettingError(
            "The configuration's val_percent and test_percent are more than 100 together: "
            "what they leave is for training."
        )
    for key, variable in ENVIRONMENT.items():
        value = environ.get(variable, "").strip()
        if value and key not in command_line:
            # Credentials stay in the environment: what is merged here gets recorded.
            values[key] = split_credentials(value)[0] if key == "api_base" else value
            names[key] = variable

    api_base = parse_api_base(values["api_base"], names["api_base"])
    return WorkflowSettings(
        api_base=api_base,
        batch_keys=_batch_keys(values["batch_key"]),
        status_filter=parse_status_filter(values["status_filter"], names["status_filter"]),
        request_timeout=parse_timeout(values["request_timeout"], names["request_timeout"]),
        time_limit=parse_timeout(values["time_limit"], names["time_limit"]),
        size_limit=parse_size(values["size_limit"], names["size_limit"]),
        backend_id=values["backend_id"] or api_base,
        refresh=values["refresh"],
        status_json=values["status_json"],
        formats=tuple(dict.fromkeys(values["formats"])),
        classes=tuple(dict.fromkeys(values["classes"])),
        upload_to=values["upload_to"].rstrip("/"),
        **{key: values[key] for key in PLAIN},
    )


def _check_schema(given: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    known = schema["properties"]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise SettingError(f"The configuration has an unknown key {show(key)}: {hint}")
    error = best_match(Draft202012Validator(schema).iter_errors(dict(given)))
    if error is not None:
        key = str(error.absolute_path[0])
        raise SettingError(
            f"The configuration's {key} is {show(str(given[key]))}: "
            f"it must be {known[key]['description']}."
        )


def _batch_keys(value: str | int | list[str | int]) -> tuple[str, ...]:
    if isinstance(value, list):  # taken as they are: a key may hold a comma
        return tuple(dict.fromkeys(str(key) for key in value))
    return split_batch_keys(str(value))
