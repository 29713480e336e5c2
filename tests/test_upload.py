"""A copy of the exports on object storage, on moto's S3 server."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Workflow
from tests.fault_server import FaultServer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("upload")]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "t3st-k3y",
    "AWS_SECRET_ACCESS_KEY": "t3st-s3cr3t-0123456789",
    "AWS_DEFAULT_REGION": "us-east-1",
}
UPLOAD = ("--config", "upload_to=s3://archive/nightly/")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket, and the environment that clients of it need."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("snakemake_storage_plugin_s3")
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            monkeypatch.setenv(name, value)
        bucket = boto3.resource("s3").Bucket("archive")
        bucket.create()
        yield bucket
    finally:
        server.stop()


def objects(bucket: Any) -> dict[str, bytes]:
    return {
        item.key.removeprefix("nightly/"): item.get()["Body"].read()
        for item in bucket.objects.all()
    }


def test_exports_are_copied(workflow: Workflow, server: FaultServer, bucket: Any) -> None:
    server.add("tablet/4")
    workflow.run(*UPLOAD)
    results = workflow.folder / "results"
    local = {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("*") if p.is_file()}
    assert objects(bucket) == local
    before = {item.key: item.last_modified for item in bucket.objects.all()}

    said = workflow.run(*UPLOAD)
    assert not server.count("export")
    assert "upload" not in said
    assert {item.key: item.last_modified for item in bucket.objects.all()} == before

    server.edit("tablet4_0001", "patch_000", reviews=7)
    bucket.Object("nightly/guns_1016205_complete_tracks.json").delete()
    workflow.run(*UPLOAD)
    assert workflow.exported() == ["tablet4_0001"]
    copies = objects(bucket)
    for key in ("guns_1016205", "tablet4_0001"):
        assert copies[f"{key}_complete_tracks.json"] == workflow.published(key)

    for path in workflow.folder.rglob("*"):
        if path.is_file():
            assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in path.read_bytes(), path


def test_a_storage_that_fails_costs_no_export(
    workflow: Workflow, server: FaultServer, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow.run()
    server.edit("tablet4_0001", "patch_000", reviews=7)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = workflow.run(*UPLOAD, expect=1)
    print(said)
    assert "Could not connect to the endpoint URL" in said
    workflow.assert_as_served("guns_1016205")
    workflow.run()
    workflow.assert_as_served("guns_1016205", "tablet4_0001")


def test_a_bad_url_is_refused(workflow: Workflow) -> None:
    said = workflow.run("--config", "upload_to=ftp://x", expect=1)
    assert "upload_to is 'ftp://x': it must be s3://bucket" in said
