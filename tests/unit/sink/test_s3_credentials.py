"""Where S3 credentials come from: each step of the chain that a capture machine may have."""

from __future__ import annotations

import json
from pathlib import Path

import anyio.to_thread
import pytest

from pipeline.errors import SinkError
from stages.sink.retry import TransientError
from stages.sink.s3_credentials import S3Signer
from tests.support.web_server import Request, Response, web_server

URL = "https://bucket.s3.eu-west-1.amazonaws.com/key?partNumber=1&uploadId=x"
SHA256 = "ab" * 32


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def signed(signer: S3Signer) -> dict[str, str]:
    return signer.sign("PUT", URL, {"x-amz-checksum-crc32c": "c"}, SHA256, "eu-west-1")


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the environment sign, with the session's token where there is one."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    signer = S3Signer("s3://b/k", None)

    assert signer.load() == {}
    headers = signed(signer)

    assert "Credential=AKIDENV/" in headers["Authorization"]
    assert "/eu-west-1/s3/aws4_request" in headers["Authorization"]
    assert headers["X-Amz-Security-Token"] == "token"
    assert "hunter2" not in repr(headers)


def test_signature_covers_body_and_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body's digest is the one given, and the checksum header can't be changed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    signer = S3Signer("s3://b/k", None)
    signer.load()

    headers = signed(signer)

    assert headers["X-Amz-Content-SHA256"] == SHA256
    names = headers["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-checksum-crc32c", "x-amz-content-sha256"} <= set(names)


def test_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile gives keys, region and endpoint."""
    (tmp_path / "credentials").write_text(
        "[dumps]\naws_access_key_id = AKIDFILE\naws_secret_access_key = hunter2\n"
    )
    (tmp_path / "config").write_text(
        "[profile dumps]\nregion = eu-central-1\nendpoint_url = https://h:9000\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    signer = S3Signer("s3://b/k", "dumps")

    assert signer.load() == {"region": "eu-central-1", "endpoint_url": "https://h:9000"}
    assert "Credential=AKIDFILE/" in signed(signer)["Authorization"]


def test_broken_profile_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no profile is named, with the target."""
    (tmp_path / "config").write_text("not a profile at all")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    with pytest.raises(SinkError, match=r"s3://b/k: credentials: .*config") as caught:
        S3Signer("s3://b/k", None).load()

    assert "\n" not in str(caught.value)


async def test_instance_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """The role of a cloud machine is asked for with a session token (IMDSv2)."""
    asked: list[str] = []

    async def metadata(request: Request) -> Response:
        asked.append(request.method)
        if request.method == "PUT":
            return Response(200, b"imds-token")
        assert request.headers["x-aws-ec2-metadata-token"] == "imds-token"
        if request.path.endswith("/security-credentials/"):
            return Response(200, b"dump-role")
        found = {
            "Code": "Success",
            "AccessKeyId": "AKIDROLE",
            "SecretAccessKey": "hunter2",
            "Token": "role-token",
            "Expiration": "2999-01-01T00:00:00Z",
        }
        return Response(200, json.dumps(found).encode())

    async with web_server(metadata) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        signer = S3Signer("s3://b/k", None)
        await anyio.to_thread.run_sync(signer.load)
        headers = await anyio.to_thread.run_sync(signed, signer)

    assert asked[0] == "PUT"
    assert "Credential=AKIDROLE/" in headers["Authorization"]
    assert headers["X-Amz-Security-Token"] == "role-token"


async def test_missing_identity_token_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token file that is not there is named."""
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/dumps")

    with pytest.raises(SinkError, match=r"s3://b/k: credentials: .*/nonexistent/token"):
        await anyio.to_thread.run_sync(_load_and_sign, S3Signer("s3://b/k", None))


async def test_identity_service_out_of_reach_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is not up yet is waited for, as for the store itself."""
    (tmp_path / "token").write_text("jwt-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/dumps")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    with pytest.raises(TransientError, match="credentials"):
        await anyio.to_thread.run_sync(_load_and_sign, S3Signer("s3://b/k", None))


async def test_web_identity_that_is_refused_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that the service does not take is said in one line."""

    async def refuse(_request: Request) -> Response:
        body = (
            b"<ErrorResponse><Error><Code>InvalidIdentityToken</Code>"
            b"<Message>not yours</Message></Error></ErrorResponse>"
        )
        return Response(400, body, {"content-type": "text/xml"})

    (tmp_path / "token").write_text("jwt-hunter2")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/dumps")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    async with web_server(refuse) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        with pytest.raises(SinkError, match="InvalidIdentityToken") as caught:
            await anyio.to_thread.run_sync(_load_and_sign, S3Signer("s3://b/k", None))

    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def _load_and_sign(signer: S3Signer) -> None:
    signer.load()
    signed(signer)
