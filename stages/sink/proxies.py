"""Which proxy the environment names for a URL, as curl reads it.

References: curl(1), ENVIRONMENT; CVE-2016-5385 ("httpoxy"). ``http_proxy``, ``https_proxy`` and
``all_proxy``, in lower case first and then in capitals, but for ``HTTP_PROXY``; ``no_proxy`` lists
hosts that are reached directly: names with all that is below them, addresses, networks
(``10.0.0.0/8``), or ``*``. Sources and targets go the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import ConfigError

_KINDS = ("http", "https")


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """URL of the proxy to reach `url` by, None for a direct connection.

    Raises:
        ConfigError: the variable names no HTTP proxy; its value is not shown, for it may hold a
            password.
    """
    parts = urlsplit(url)
    names = (f"{parts.scheme}_proxy", "all_proxy")
    found = [(name, value) for name in names if (value := _value(name, environ))]
    if not found or _is_direct(parts.hostname or "", _value("no_proxy", environ)):
        return None
    name, value = found[0]
    proxy = value if "://" in value else f"http://{value}"
    if _address(proxy) is None:
        raise ConfigError("environment", name, "is no http://HOST:PORT of a proxy")
    return proxy


def show_proxy(proxy: str) -> str:
    """Its host and port, without user and password."""
    return _address(proxy) or "?"


def _value(name: str, environ: Mapping[str, str]) -> str:
    # Empty is as good as not set (curl 7.88.1, tried).
    value = environ.get(name, "").strip()
    # A request's header "Proxy" reaches a CGI program as HTTP_PROXY, so curl never looks at that.
    if not value and name != "http_proxy":
        value = environ.get(name.upper(), "").strip()
    return value


def _address(proxy: str) -> str | None:
    try:
        parts: SplitResult = urlsplit(proxy)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _KINDS or not parts.hostname:
        return None
    return parts.hostname if port is None else f"{parts.hostname}:{port}"


def _is_direct(host: str, listed: str) -> bool:
    """Whether ``no_proxy`` has `host`."""
    words = [word.strip().lower() for word in listed.replace(",", " ").split()]
    return any(_covers(word, host.lower().rstrip(".")) for word in words)


def _covers(word: str, host: str) -> bool:
    if word == "*":
        return True
    import ipaddress  # 3 ms that most runs do without

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = word.lstrip(".").rstrip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))
    try:
        return address in ipaddress.ip_network(word.strip("[]"), strict=False)
    except ValueError:
        return False
