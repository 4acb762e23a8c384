"""Settings of network targets, one section a kind; a section's extra need not be installed."""

# No `from __future__ import annotations`, for the reason given in `pipeline.config.settings`.

from typing import Annotated, Literal

from msgspec import Struct

from pipeline.config.bounds import GIB, KIB, MIB, TIB, seconds, size, whole


class NetSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What every network target has in common: retries, deadlines, manners.

    There is no setting that turns the verification of certificates or host keys off.
    """

    concurrency: Annotated[int, whole(1, 64)] = 4
    """Requests, parts or windows under way at once."""
    connect_timeout_s: Annotated[float, seconds(0.1, 600)] = 10
    stall_timeout_s: Annotated[float, seconds(0.1, 3600)] = 30
    """A connection on which nothing moves for this long is lost."""
    retry_deadline_s: Annotated[float, seconds(0, 86400)] = 300
    """How long one part or window may go on failing."""
    retry_first_s: Annotated[float, seconds(0.001, 60)] = 0.25
    """Bound of the first wait; it doubles with every failure, and the wait is drawn below it."""
    retry_most_s: Annotated[float, seconds(0.001, 600)] = 20
    rate_limit: Annotated[int, size(0, 1 * TIB)] = 0
    """Bytes a second of all connections together; 0 is no limit."""
    start_jitter_s: Annotated[float, seconds(0, 3600)] = 0
    """Wait up to this long before the first connection; for fleets that fail together."""
    ca_file: str | None = None
    """PEM file of the authorities to trust instead of the system's."""
    journal_dir: str = "auto"
    """Where uploads keep what `resume` needs; auto is $XDG_STATE_HOME/dumpstream, none is nowhere:
    what a failed upload sent is then discarded."""


class S3Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """``s3://bucket/key``.

    Keys never stand here: they come from the environment, a profile, web identity or instance
    metadata, or are not needed with `presigned`.
    """

    endpoint: str | None = None
    """URL of the service; None is AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's, or AWS."""
    region: str | None = None
    """None is AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1."""
    path_style: bool | Literal["auto"] = "auto"
    """The bucket in the path instead of in the host's name; auto is wherever an endpoint is set."""
    profile: str | None = None
    """Of ~/.aws/config and ~/.aws/credentials; None is AWS_PROFILE or default."""
    part_size: Annotated[int, size(5 * MIB, 5 * GIB)] | Literal["auto"] = "auto"
    """auto is 5 MiB, or what keeps the largest possible dump within 10,000 parts."""
    buffer_bytes: Annotated[int, size(10 * MIB, 64 * GIB)] = 48 * MIB
    """All part buffers together; concurrency shrinks to fit, down to one part under way."""
    checksum: Literal["sha256", "crc32c", "none"] = "sha256"
    """What the server stores and checks of each part, beside the signed SHA-256 of every request;
    none for servers that refuse the headers."""
    server_side_encryption: str | None = None
    """AES256, aws:kms or aws:kms:dsse, where the bucket's own default is not enough."""
    kms_key_id: str | None = None
    storage_class: str | None = None
    presigned: str | None = None
    """A file with presigned part URLs, or with the URL where they are; or that URL, if it holds no
    secret (docs/adr/0010)."""


class AzureSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``az://container/blob``.

    Secrets never stand here: AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or
    AZURE_STORAGE_SAS_TOKEN hold them.
    """

    account: str | None = None
    """None is AZURE_STORAGE_ACCOUNT, or the connection string's."""
    endpoint: str | None = None
    """URL of the blob service; None is the connection string's or the public cloud's."""
    block_size: Annotated[int, size(64 * KIB, 4000 * MIB)] | Literal["auto"] = "auto"
    """auto is 4 MiB, or what keeps the largest possible dump within 10,000 blocks."""
    buffer_bytes: Annotated[int, size(1 * MIB, 64 * GIB)] = 48 * MIB


class SshSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``sftp://`` and ``ssh://``: the system's OpenSSH, with its agent, keys and configuration.

    Host keys are always checked, whatever the OpenSSH configuration says.
    """

    program: str = "ssh"
    config: str | None = None
    """OpenSSH configuration file instead of ~/.ssh/config and /etc/ssh/ssh_config."""
    identity: str | None = None
    """Private key file to use beside the agent's keys."""
    known_hosts: str | None = None
    """File of trusted host keys instead of those that the OpenSSH configuration names."""
    connections: Annotated[int, whole(1, 16)] = 4
    """SFTP only: a connection carries at most one window (2 MiB) a round trip, and keeps at most
    one core at each end busy."""
    ciphers: Literal["fast", "configured"] = "fast"
    """fast tries AES-GCM first where the processor has AES; of the configured ciphers only."""
    window_bytes: Annotated[int, size(1 * MIB, 1 * GIB)] = 8 * MIB
    """SFTP only: bytes under way that the server has not answered for, of all connections."""
    remote_program: str = "dumpstream"
    """ssh:// only: what is looked for at the other end to receive the dump; empty looks for
    nothing and has the shell write the stream into a file."""
    verify: Literal["samples", "all", "none"] = "samples"
    """SFTP only: what is read back and compared before the dump gets its name."""


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``http://`` and ``https://``, as target and as source.

    Secrets never stand here: DUMPSTREAM_HTTP_TOKEN holds a bearer token, or a file that
    DUMPSTREAM_HTTP_TOKEN_FILE or `token_file` names; a user's password comes from `netrc`.
    """

    ranges: Literal["auto", "always", "never"] = "auto"
    """Whether pieces are written with Content-Range, so that what fails is sent again alone and
    the file is directly readable; auto tries whether the server can, and at what price."""
    piece_bytes: Annotated[int, size(256 * KIB, 1 * GIB)] = 4 * MIB
    """What one request with Content-Range carries. Four of 4 MiB under way are 50 MB/s at a round
    trip of 50 ms although each is read back; of 8 MiB, `buffer_bytes` leaves room for two."""
    buffer_bytes: Annotated[int, size(1 * MIB, 64 * GIB)] = 32 * MIB
    """All piece buffers together; `net.concurrency` shrinks to fit."""
    token_file: str | None = None
    """File that holds a bearer token."""
    netrc: str | None = None
    """File with users and passwords by host; None is NETRC or ~/.netrc."""
    verify: Literal["auto", "samples", "all", "none"] = "auto"
    """What is read back and compared before the dump gets its name; auto is samples over TLS, which
    checks every byte on the way, and all without it."""


class TcpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """``tcp://`` and ``tls://``: the sender's end. The receiver takes its limits as options; the
    authority that must have signed its certificate is `net.ca_file`.
    """

    window_bytes: Annotated[int, size(256 * KIB, 4 * GIB)] = 8 * MIB
    """Sent and not yet acknowledged; 8 MiB fill 50 MB/s at a round trip of 160 ms."""
    chunk_bytes: Annotated[int, size(16 * KIB, 4 * MIB)] = 1 * MIB
    """Largest chunk; at most a quarter of the window is used."""
    heartbeat_s: Annotated[float, seconds(0.05, 60)] = 5
    """Both ends say at least this often that they live."""
    cert_file: str | None = None
    """PEM file with our certificate, and its chain, for ``tls://``."""
    key_file: str | None = None
    """PEM file with its key, not encrypted; None when `cert_file` holds it too."""
    server_name: str | None = None
    """Name that the receiver's certificate must have; None is the host of the URL."""


class TargetEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One of ``[[targets]]``: where the dump goes when those before it could not take it."""

    url: str
    """URL or path, as on the command line."""
    deadline_s: Annotated[float, seconds(1, 604800)] | None = None
    """Seconds from the start of this attempt to the dump's final name; None waits for ever."""
    what: Literal["dump", "dmesg"] = "dump"
    """dmesg keeps the kernel's log only: for the last resort."""
