"""How the system's ``ssh`` is called: never asking, never trusting a new host, nothing forwarded.

Options on the command line win over the OpenSSH configuration, which decides everything else:
proxies, keys, agents, certificates, aliases.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from stages.sink.ssh_process import SshProcess
from stages.sink.ssh_words import failure

if TYPE_CHECKING:
    from pipeline.config.targets import NetSettings, SshSettings
    from stages.sink.ssh_url import SshTarget

_FIXED: Final = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "UpdateHostKeys=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "ControlMaster=no",
    "EscapeChar=none",
    "Compression=no",
    "LogLevel=ERROR",
)
_ALIVE_MISSES: Final = 3
_FAST: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Loopback, one connection: 358 MB/s against 260 MB/s with OpenSSH's first choice, and 40 % less
of a core at each end (docs/adr/0012)."""
_CONFIG_LIMIT: Final = 1 << 20
_CONFIG_S: Final = 20.0


async def ssh_argv(target: SshTarget, ssh: SshSettings, net: NetSettings) -> list[str]:
    """Everything up to the remote command or ``-s sftp``.

    Raises:
        SinkError: ssh is missing, or refuses its configuration.
    """
    argv = _plain_argv(target, ssh, net)
    if ssh.ciphers == "fast" and has_aes():
        ciphers = fast_first(await _configured_ciphers(target, argv))
        if ciphers:
            argv += ["-o", f"Ciphers={','.join(ciphers)}"]
    return argv


def remote(argv: list[str], target: SshTarget, command: str) -> list[str]:
    """`argv` that has the user's shell at the other end run `command`."""
    return [*argv, "--", target.host, command]


def subsystem(argv: list[str], target: SshTarget) -> list[str]:
    """`argv` that speaks SFTP with the server."""
    return [*argv, "-s", "--", target.host, "sftp"]


def _plain_argv(target: SshTarget, ssh: SshSettings, net: NetSettings) -> list[str]:
    argv = [ssh.program, "-x", "-a", "-T"]
    if ssh.config is not None:
        argv += ["-F", ssh.config]
    alive_s = max(1, math.ceil(net.stall_timeout_s / _ALIVE_MISSES))
    options = [
        *_FIXED,
        f"ConnectTimeout={math.ceil(net.connect_timeout_s)}",
        f"ServerAliveInterval={alive_s}",
        f"ServerAliveCountMax={_ALIVE_MISSES}",
    ]
    if ssh.known_hosts is not None:
        options += [f'UserKnownHostsFile="{ssh.known_hosts}"', "GlobalKnownHostsFile=none"]
    for option in options:
        argv += ["-o", option]
    if ssh.identity is not None:
        argv += ["-i", ssh.identity]
    if target.port is not None:
        argv += ["-p", str(target.port)]
    if target.user is not None:
        argv += ["-l", target.user]
    return argv


async def _configured_ciphers(target: SshTarget, argv: list[str]) -> list[str]:
    """The ciphers that the configuration allows for this host, in its order."""
    process = await SshProcess.start([*argv, "-G", "--", target.host])
    said = b""
    try:
        with anyio.move_on_after(_CONFIG_S):
            while (more := await process.read(1 << 16)) and len(said) < _CONFIG_LIMIT:
                said += more
        code, words = await process.last_words()
    finally:
        await process.close()
    if code != 0:
        raise failure(target.show(), code, words)
    for line in said.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(" ")
        if key.lower() == "ciphers":
            return value.strip().split(",")
    return []


def fast_first(ciphers: list[str]) -> list[str]:
    """`ciphers` with AES-GCM in front; none is added, so that a policy is kept."""
    fast = [cipher for cipher in _FAST if cipher in ciphers]
    return [*fast, *(cipher for cipher in ciphers if cipher not in fast)] if fast else []


def has_aes(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True when the processor says that it has AES instructions."""
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip().lower() in ("flags", "features"):
                    return "aes" in value.split()
    except OSError:
        return False
    return False
