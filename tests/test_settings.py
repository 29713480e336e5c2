"""Where settings come from, which source wins, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from export_settings import ENVIRONMENT, WorkflowSettings, resolve_settings
from export_via_api import DEFAULT_API_BASE, SettingError, Settings

ROOT = Path(__file__).parents[1]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())


def resolve(
    command_line: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    files: dict[str, Any] | None = None,
) -> WorkflowSettings:
    return resolve_settings(command_line or {}, environ or {}, files or {}, SCHEMA)


def test_defaults_are_those_of_the_stand_alone_exporter() -> None:
    settings = resolve()
    alone = Settings.from_environment({})
    for field in ("api_base", "batch_keys", "status_filter", "request_timeout"):
        assert getattr(settings, field) == getattr(alone, field)
    assert settings.backend_id == DEFAULT_API_BASE
    assert settings.refresh is True


def test_shipped_configuration_holds_the_defaults() -> None:
    shipped = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert resolve(files=shipped) == resolve()


@pytest.mark.parametrize("key", sorted(ENVIRONMENT))
def test_command_line_beats_environment_beats_file(key: str) -> None:
    values: dict[str, tuple[Any, str, Any]] = {
        "api_base": ("http://cli/a", "http://env/a", "http://file/a"),
        "backend_id": ("cli", "env", "file"),
        "batch_key": ("cli", "env", ["file"]),
        "status_filter": ("all", "complete", "all"),
        "request_timeout": (1, "2", 3),
        "time_limit": (1, "2", 3),
        "size_limit": (1, "2", 3),
    }
    cli, env, file = values[key]
    field = "batch_keys" if key == "batch_key" else key

    def seen(*sources: str) -> Any:
        return getattr(
            resolve(
                {key: cli} if "cli" in sources else {},
                {ENVIRONMENT[key]: env} if "env" in sources else {},
                {key: file} if "file" in sources else {},
            ),
            field,
        )

    assert seen("cli", "env", "file") == seen("cli")
    assert seen("env", "file") == seen("env")
    assert seen("file") != seen()
    assert seen("env") != seen("file")


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ("a,b , a,,", ("a", "b")),
        (["a,b", "c"], ("a,b", "c")),
        (1016205, ("1016205",)),
        ([7, "x"], ("7", "x")),
        ("", ()),
        ([], ()),
        (None, ()),
    ],
)
def test_batch_keys(given: object, keys: tuple[str, ...]) -> None:
    assert resolve(files={"batch_key": given}).batch_keys == keys


def test_an_empty_variable_is_no_setting() -> None:
    assert resolve(environ=dict.fromkeys(ENVIRONMENT.values(), " ")) == resolve()


@pytest.mark.parametrize(("text", "refresh"), [("false", False), ("True", True), (False, False)])
def test_refresh_from_the_command_line(text: object, refresh: bool) -> None:
    assert resolve({"refresh": text}).refresh is refresh


@pytest.mark.parametrize(
    ("command_line", "environ", "files", "words"),
    [
        ({}, {}, {"api_bas": "http://x"}, ["api_bas", "did you mean api_base"]),
        ({"zzz": 1}, {}, {}, ["zzz", "known are"]),
        ({}, {}, {"status_filter": "done"}, ["status_filter", "'done'", "complete or all"]),
        ({}, {"EXPORT_STATUS_FILTER": "x"}, {}, ["EXPORT_STATUS_FILTER", "'x'"]),
        ({"request_timeout": 0}, {}, {}, ["request_timeout", "above 0"]),
        ({}, {"EXPORT_REQUEST_TIMEOUT": "0"}, {}, ["EXPORT_REQUEST_TIMEOUT", "above 0"]),
        ({}, {"EXPORT_REQUEST_TIMEOUT": "nan"}, {}, ["EXPORT_REQUEST_TIMEOUT"]),
        ({}, {"EXPORT_REQUEST_TIMEOUT": "soon"}, {}, ["EXPORT_REQUEST_TIMEOUT", "'soon'"]),
        ({}, {}, {"request_timeout": True}, ["request_timeout"]),
        ({}, {}, {"batch_key": 1.5}, ["batch_key", "quote"]),
        ({}, {}, {"batch_key": {"a": 1}}, ["batch_key"]),
        ({}, {}, {"refresh": "maybe"}, ["refresh", "'maybe'"]),
        ({}, {}, {"api_base": "localhost:8081/api"}, ["api_base", "http://"]),
        ({}, {"EXPORT_API_BASE": "ftp://x/y"}, {}, ["EXPORT_API_BASE", "http://"]),
        ({}, {"EXPORT_API_BASE": "http://x/y?key=1"}, {}, ["EXPORT_API_BASE", "'?'"]),
        ({}, {}, {"api_base": 7}, ["api_base"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    command_line: dict[str, Any], environ: dict[str, str], files: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingError) as refused:
        resolve(command_line, environ, files)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_credentials_stay_in_the_environment() -> None:
    settings = resolve(environ={"EXPORT_API_BASE": "http://me:hunter2@host/api/"})
    assert settings.api_base == "http://host/api"
    assert "hunter2" not in repr(settings)
    with pytest.raises(SettingError) as refused:
        resolve(files={"api_base": "http://me:hunter2@host/api"})
    assert "hunter2" not in str(refused.value)


def test_the_backend_is_known_by_its_address_unless_named() -> None:
    assert resolve({"api_base": "HTTP://Host:80/api/"}).backend_id == "http://host:80/api"
    assert resolve({"backend_id": "prod"}).backend_id == "prod"


def test_every_key_is_documented() -> None:
    documented = (ROOT / "config/README.md").read_text()
    for key in SCHEMA["properties"]:
        assert f"`{key}`" in documented
    for variable in ENVIRONMENT.values():
        assert f"`{variable}`" in documented
