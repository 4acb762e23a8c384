"""Debian packages of suites that this machine does not run: fetched, unpacked, never installed.

Each suite has a private apt root, so the machine's own package state is not touched, and apt itself
checks signatures and hashes.  The mirror is the one that the machine's apt is set up with.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import cache
from tests.lab.commands import LabError, MirrorError, run

if TYPE_CHECKING:
    from collections.abc import Sequence

MIRROR_VARIABLE = "DUMPSTREAM_LAB_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
NATIVE = "amd64"  # the machine that the lab runs on
INDEX_MAX_AGE_S = 24 * 3600
DOWNLOAD_TIMEOUT_S = 900  # sid's debug symbols are 1.2 GB


def mirror() -> str:
    """The Debian mirror that this machine's apt uses for its release proper."""
    if MIRROR_VARIABLE in os.environ:
        return os.environ[MIRROR_VARIABLE]
    # the updates and security suites have a dash in their names
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)"])
    for line in listed.splitlines():
        uri, release, *origin = line.split()
        if origin[:1] == ["Debian"] and "-" not in release:
            return uri
    raise LabError(f"apt knows no Debian mirror; run apt-get update, or set {MIRROR_VARIABLE}")


def _write_config(base: Path, suite: str, architecture: str) -> Path:
    """Writes the apt configuration of a private root and returns its path."""
    for name in ("lists/partial", "cache/archives/partial"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    config = base / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{base}/sources.list";\n'
        'Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferencesparts "/dev/null";\n'
        f'Dir::State "{base}";\n'
        f'Dir::State::lists "{base}/lists";\n'
        'Dir::State::status "/dev/null";\n'
        f'Dir::Cache "{base}/cache";\n'
        f'APT::Architecture "{architecture}";\n'
        f'APT::Architectures "{architecture}";\n'
        'APT::Sandbox::User "root";\n'  # the cache folder need not be readable by apt's own user
        'Acquire::Languages "none";\n'
    )
    return config


def _environment(suite: str, architecture: str = NATIVE) -> dict[str, str]:
    """The environment in which apt works on the suite's private root, its index fetched."""
    name = suite if architecture == NATIVE else f"{suite}-{architecture}"
    base = cache.folder("apt", name)
    stamp = base / "fetched"
    with cache.lock(f"apt-{name}"):
        config = _write_config(base, suite, architecture)
        env = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > INDEX_MAX_AGE_S:
            _update(env, suite, architecture)
            stamp.touch()
    return env


def _update(env: dict[str, str], suite: str, architecture: str) -> None:
    """Fetches the index.

    Raises:
        MirrorError: it is not the one that the mirror's signed Release file names. Seldom used
            architectures lag behind on mirrors that cache; the native one must be right.
        LabError: anything else.
    """
    try:
        run(["apt-get", "-q", "update", "--error-on=any"], env=env)
    except LabError as error:
        if architecture != NATIVE and "Mirror sync in progress" in str(error):
            text = f"the mirror's index of {suite} {architecture} does not match its Release file"
            raise MirrorError(text) from error
        raise


def dependencies(suite: str, package: str, architecture: str = NATIVE) -> list[str]:
    """Names of the packages that `package` depends on, without alternatives and virtual ones."""
    listed = run(["apt-cache", "depends", package], env=_environment(suite, architecture))
    return re.findall(r"^  (?:Depends|PreDepends): ([^<\s]+)$", listed, re.MULTILINE)


def version(suite: str, package: str) -> str:
    """The version of `package` that the suite has.

    Raises:
        LabError: the suite has no such package.
    """
    shown = run(["apt-cache", "show", "--no-all-versions", package], env=_environment(suite))
    found = re.search(r"^Version: (\S+)$", shown, re.MULTILINE)
    if found is None:
        raise LabError(f"{suite} has no package {package}")
    return found[1]


def download(
    suite: str, packages: Sequence[str], into: Path, architecture: str = NATIVE
) -> list[Path]:
    """Downloads packages and returns the .deb files, in no particular order."""
    into.mkdir(parents=True, exist_ok=True)
    env = _environment(suite, architecture)
    run(["apt-get", "-q", "download", *packages], cwd=into, env=env, timeout_s=DOWNLOAD_TIMEOUT_S)
    return sorted(into.glob("*.deb"))


def unpack(suite: str, packages: Sequence[str], into: Path, architecture: str = NATIVE) -> None:
    """Downloads packages and unpacks them all into one folder."""
    debs = into.with_name(into.name + ".debs")
    cache.remove(debs)
    try:
        for deb in download(suite, packages, debs, architecture):
            run(["dpkg-deb", "-x", deb, into], timeout_s=DOWNLOAD_TIMEOUT_S)
    finally:
        cache.remove(debs)


def _extract(deb: Path, member: str, into: Path) -> Path:
    """Unpacks one file of a package, and follows it where it is a symbolic link."""
    # tar ends at the first match, often minutes before the end of a package of debug symbols, so
    # dpkg-deb's own exit status (a broken pipe) says nothing
    script = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --occurrence=1 "./$3"'
    shell = ["bash", "-c", script, "bash", str(deb), str(into), member]
    run(shell, timeout_s=DOWNLOAD_TIMEOUT_S)
    path = into / member
    if path.is_symlink():
        target = os.path.normpath(path.parent / path.readlink())
        return _extract(deb, os.path.relpath(target, into), into)
    return path


def unpack_file(
    suite: str, package: str, member: str, final: Path, architecture: str = NATIVE
) -> None:
    """Downloads a package and unpacks only the file `member` (a path without a leading slash)."""
    debs = final.with_name(final.name + ".debs")
    cache.remove(debs)
    try:
        (deb,) = download(suite, [package], debs, architecture)
        _extract(deb, member, debs).rename(final)
    finally:
        cache.remove(debs)
