"""Azure accounts, names and signatures; the store itself is tested with Azurite in the lab."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from pipeline.config.targets import AzureSettings
from pipeline.errors import UsageError
from stages.sink.azure_account import API_VERSION, AzureAccount, find_account, parse_az_url

KEY = base64.b64encode(b"key" * 20).decode()


def test_signature_is_the_documented_one() -> None:
    """The string to sign of "Authorize with Shared Key", with its example of a container."""
    account = AzureAccount("myaccount", "https://h", base64.b64decode(KEY), None)
    url = "https://h/mycontainer?restype=container&comp=metadata&timeout=20"

    signed_url, headers = account.authorise("GET", url, {}, 0)

    text = (
        f"GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{headers['x-ms-date']}\nx-ms-version:{API_VERSION}\n"
        "/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    )
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
    assert signed_url == url
    assert headers["authorization"] == f"SharedKey myaccount:{base64.b64encode(digest).decode()}"


def test_body_and_conditions_are_signed() -> None:
    """Length, MD5, type and conditions stand in their own lines."""
    account = AzureAccount("a12", "https://h", b"k", None)
    headers = {"content-md5": "m", "content-type": "t", "if-none-match": "*", "range": "bytes=1-2"}

    _, signed = account.authorise("PUT", "https://h/c/b", headers, 17)

    text = (
        f"PUT\n\n\n17\nm\nt\n\n\n\n*\n\nbytes=1-2\nx-ms-date:{signed['x-ms-date']}\n"
        f"x-ms-version:{API_VERSION}\n/a12/c/b"
    )
    digest = base64.b64encode(hmac.digest(b"k", text.encode(), hashlib.sha256)).decode()
    assert signed["authorization"] == f"SharedKey a12:{digest}"


def test_shared_access_signature_goes_into_the_url() -> None:
    """With a signature nothing is signed here, and the query keeps what was there."""
    account = AzureAccount("a12", "https://h", None, "sv=1&sig=x")

    assert account.authorise("PUT", "https://h/c/b?comp=block", {}, 1)[0] == (
        "https://h/c/b?comp=block&sv=1&sig=x"
    )
    assert account.authorise("HEAD", "https://h/c/b", {}, 0)[0] == "https://h/c/b?sv=1&sig=x"


def test_secrets_are_not_shown() -> None:
    """An account that lands in a message or a traceback shows no secret."""
    account = AzureAccount("a12", "https://h", b"hunter2", "sig=hunter2")

    assert "hunter2" not in repr(account)


@pytest.mark.parametrize(
    ("settings", "environ", "endpoint"),
    [
        ({}, {"AZURE_STORAGE_ACCOUNT": "abc"}, "https://abc.blob.core.windows.net"),
        ({"account": "xyz"}, {"AZURE_STORAGE_ACCOUNT": "abc"}, "https://xyz.blob.core.windows.net"),
        ({"account": "xyz", "endpoint": "http://h:1/xyz/"}, {}, "http://h:1/xyz"),
        (
            {},
            {
                "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=https;AccountName=abc;"
                f"AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn"
            },
            "https://abc.blob.core.chinacloudapi.cn",
        ),
        (
            {},
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=abc;BlobEndpoint=http://h:1/abc"},
            "http://h:1/abc",
        ),
    ],
)
def test_account_is_found(settings: dict[str, str], environ: dict[str, str], endpoint: str) -> None:
    """Settings win over the environment; a connection string says all at once."""
    account = find_account(AzureSettings(**settings), {"AZURE_STORAGE_KEY": KEY, **environ})  # type: ignore[arg-type]

    assert account.endpoint == endpoint
    assert account.key == base64.b64decode(KEY)


def test_signature_is_preferred_to_the_key() -> None:
    """Who hands out both means the narrower one."""
    environ = {
        "AZURE_STORAGE_ACCOUNT": "abc",
        "AZURE_STORAGE_KEY": KEY,
        "AZURE_STORAGE_SAS_TOKEN": "?sv=1",
    }

    account = find_account(AzureSettings(), environ)

    assert (account.key, account.sas) == (None, "sv=1")


@pytest.mark.parametrize(
    ("settings", "environ", "said"),
    [
        ({}, {"AZURE_STORAGE_KEY": KEY}, "which account"),
        ({}, {"AZURE_STORAGE_ACCOUNT": "a b", "AZURE_STORAGE_KEY": KEY}, "which account"),
        ({}, {"AZURE_STORAGE_ACCOUNT": "abc"}, "no AZURE_STORAGE_KEY"),
        ({}, {"AZURE_STORAGE_ACCOUNT": "abc", "AZURE_STORAGE_KEY": "hunter2!"}, "not base64"),
        (
            {"endpoint": "ftp://h"},
            {"AZURE_STORAGE_ACCOUNT": "abc", "AZURE_STORAGE_KEY": KEY},
            "URL",
        ),
    ],
)
def test_what_is_missing_is_said(
    settings: dict[str, str], environ: dict[str, str], said: str
) -> None:
    """One line says what to set, and never what was set."""
    with pytest.raises(UsageError, match=said) as caught:
        find_account(AzureSettings(**settings), environ)  # type: ignore[arg-type]

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "az://",
        "az://Dumps/x",
        "az://ab/x",
        "az://dumps",
        "az://dumps/",
        "az://dumps/a/",
        "az://d-/x",
    ],
)
def test_url_without_a_blob_is_refused(url: str) -> None:
    """A target names a container and a blob."""
    with pytest.raises(UsageError, match="az://"):
        parse_az_url(url)


@pytest.mark.parametrize("url", ["az://acc:hunter2@dumps/x", "az://dumps/x?sig=hunter2"])
def test_secret_in_the_url_is_refused_without_repeating_it(url: str) -> None:
    """Secrets in a URL are refused, and not shown again."""
    with pytest.raises(UsageError) as caught:
        parse_az_url(url)

    assert "hunter2" not in str(caught.value)
