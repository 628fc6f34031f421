"""The configuration: one JSON file and `PROXY_*` variables, structured into frozen values.

A mistake stops the start with one line that names the key and what was expected. A key that a later feature
will bring is an unknown key until it does something.
"""

from __future__ import annotations

import ipaddress
import pathlib
import re
import tempfile
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import attrs
import cattrs

from delta_proxy.access.policy import Grant, Policy, PolicyError, parse_filters
from delta_proxy.s3.user_agents import NEVER_REDIRECT
from delta_proxy.structuring import (
    Invalid,
    Override,
    apply_overrides,
    at,
    between,
    kind_of,
    parse_json,
    present,
    quoted,
    read_overrides,
    strict_converter,
)
from delta_proxy.upstream.stores import (
    AddressingStyle,
    StoreConfig,
    TableLocation,
    check_bucket_name,
    parse_s3_uri,
)

ENVIRONMENT_PREFIX: Final = "PROXY_"
NOT_KEYS: Final = frozenset({"PROXY_SECRET_KEYS"})
"""Variables with the prefix that set no key of the file."""


class ConfigError(Exception):
    """A configuration that cannot be used; str() is one line for the person who wrote it."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(_one_line(f"{source}: {problem}"))


_LONGEST_LINE: Final = 500


def _one_line(text: str) -> str:
    shown = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} ..."
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


class GetMode(Enum):
    """How a GET of a data file is answered: by a 307 to the store, or by the bytes."""

    PRESIGNED_URL = "presignedUrl"
    PROXY = "proxy"


class LogView(Enum):
    """What a client sees of `_delta_log/`: for now the log as it is."""

    PASSTHROUGH = "passthrough"


def _check_bucket(name: str) -> None:
    check_bucket_name(name)


def _check_interface(interface: str) -> None:
    try:
        if interface:
            ipaddress.ip_address(interface)
    except ValueError:
        raise ValueError(f'expected an IP address, or "" for all, found {quoted(interface)}') from None


_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def _check_domain(domain: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(f"expected a host name in lower case without a port, found {quoted(domain)}")


def _check_read_only(read_only: bool) -> None:
    if not read_only:
        raise ValueError("writes are not supported yet; expected true")


def _check_readable(path: pathlib.Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


Port = Annotated[int, between(0, 65535)]
ReadableFile = Annotated[pathlib.Path, _check_readable]
Count = Annotated[int, between(1, 1_000_000)]
Seconds = Annotated[int, between(1, 86_400)]
Bytes = Annotated[int, between(0, 1 << 50)]


@attrs.frozen
class Tls:
    """PEM files of the proxy's own certificate chain and its key."""

    certificate: ReadableFile
    private_key: ReadableFile


@attrs.frozen
class CacheConfig:
    """Where and how long what is known of tables is kept; sizes in bytes."""

    directory: pathlib.Path
    metadata_ttl_seconds: Annotated[int, between(0, 86_400)] = 120
    disk_bytes: Bytes = 10 << 30
    memory_bytes: Bytes = 256 << 20


@attrs.frozen
class Limits:
    """What the proxy takes from clients and waits for from stores."""

    max_connections: Count = 10_000
    max_requests_in_flight: Count = 2_000
    max_header_bytes: Annotated[int, between(1024, 1 << 20)] = 32 << 10
    max_body_bytes: Annotated[int, between(1024, 64 << 20)] = 2 << 20
    idle_timeout_seconds: Seconds = 60
    upstream_connect_timeout_seconds: Seconds = 5
    upstream_idle_timeout_seconds: Seconds = 30
    upstream_connections: Count = 256
    shutdown_seconds: Annotated[int, between(0, 86_400)] = 30
    threads: Annotated[int, between(1, 256)] = 8


def _default_interface(config: Config) -> str:
    return "127.0.0.1" if config.tls is None else ""


@attrs.frozen(kw_only=True)
class Config:
    """The whole configuration; DESIGN's table of keys says what each means, in snake_case here."""

    table_mapping: Mapping[str, TableLocation]
    cache: CacheConfig
    allowed_partitions: Mapping[str, Grant] = MappingProxyType({})
    deny_by_default: bool = False
    read_only: Annotated[bool, _check_read_only] = True
    get_mode: GetMode = GetMode.PRESIGNED_URL
    proxy_partial: bool = False
    presign_expiry_seconds: Annotated[int, between(1, 604_800)] = 300
    never_redirect: tuple[str, ...] = NEVER_REDIRECT
    log_view: LogView = LogView.PASSTHROUGH
    port: Port = 18080
    metrics_port: Port | None = None
    bucket: Annotated[str, _check_bucket] = "datalake"
    domains: tuple[Annotated[str, _check_domain], ...] = ()
    tls: Tls | None = None
    interface: Annotated[str, _check_interface] = attrs.Factory(_default_interface, takes_self=True)
    storage: StoreConfig = attrs.field(factory=StoreConfig)
    limits: Limits = Limits()

    @property
    def policy(self) -> Policy:
        """The policy of these grants."""
        return Policy(
            everyone=self.allowed_partitions,
            deny_by_default=self.deny_by_default,
            tables=frozenset(self.table_mapping),
            named=frozenset(self.allowed_partitions),
        )


def load(path: pathlib.Path, environ: Mapping[str, str]) -> Config:
    """The configuration of a file with the `PROXY_*` variables over it; raises ConfigError.

    Relative paths inside are taken from the working directory of this moment. `cache.directory` is by default
    `delta-s3-proxy` under XDG_CACHE_HOME, `~/.cache` or the directory for temporary files.
    """
    document = _read(path)
    try:
        overrides = read_overrides(Config, environ, ENVIRONMENT_PREFIX, NOT_KEYS)
    except Invalid as error:
        raise ConfigError(error.spot, error.problem) from None
    try:
        return _structure(apply_overrides(document, overrides), environ)
    except Invalid as error:
        raise _blame(error, str(path), overrides) from None


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        document = parse_json(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text: byte {error.start}") from None
    except Invalid as error:
        raise ConfigError(str(path), error.problem) from None
    if not isinstance(document, dict):
        raise ConfigError(str(path), f"expected an object, found {kind_of(document)}")
    return document


def _blame(error: Invalid, file: str, overrides: tuple[Override, ...]) -> ConfigError:
    """The error against the variable that set the value, else against the file."""
    for override in reversed(overrides):
        if error.path[: len(override.path)] == override.path:
            rest = Invalid(error.problem, error.path[len(override.path) :])
            return ConfigError(override.name, f"{rest.spot}: {rest.problem}" if rest.spot else rest.problem)
    return ConfigError(file, f"{error.spot}: {error.problem}" if error.spot else error.problem)


def _structure(document: dict[str, Any], environ: Mapping[str, str]) -> Config:
    plain, converter = strict_converter(), strict_converter()
    converter.register_structure_hook(Grant, _structure_grant)
    converter.register_structure_hook(LogView, _structure_log_view)
    converter.register_structure_hook(
        StoreConfig, lambda value, _: _store(present(value, StoreConfig, plain), StoreConfig())
    )
    with at("storage"):
        storage = converter.structure(document.get("storage", {}), StoreConfig)
    converter.register_structure_hook(
        TableLocation, lambda value, _: _structure_location(value, storage, plain)
    )
    cache = document.get("cache", {})
    if isinstance(cache, dict):
        document = {**document, "cache": {"directory": _cache_directory(environ), **cache}}
    config = converter.structure(document, Config)
    _check(config)
    return config


def _cache_directory(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME")
    base = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else tempfile.gettempdir())
    return f"{base}/delta-s3-proxy"


def _structure_grant(value: object, _: object) -> Grant:
    try:
        return parse_filters(value)
    except PolicyError as error:
        raise Invalid(error.problem, (error.spot,) if error.spot else ()) from None


def _structure_log_view(value: object, _: object) -> LogView:
    if value == "filtered":
        raise Invalid('the filtered view is not built yet; expected "passthrough"')
    if value != LogView.PASSTHROUGH.value:
        raise Invalid(
            f'expected "passthrough", found {quoted(value) if isinstance(value, str) else kind_of(value)}'
        )
    return LogView.PASSTHROUGH


@attrs.frozen
class _Place:
    """A table's location written as an object: what it does not give is taken from `storage`."""

    uri: str
    endpoint: str | None
    region: str | None
    profile: str | None
    addressing_style: AddressingStyle


def _structure_location(value: object, storage: StoreConfig, plain: cattrs.Converter) -> TableLocation:
    if isinstance(value, str):
        return _location(value, storage)
    if not isinstance(value, dict):
        raise Invalid(f'expected "s3://bucket/prefix" or an object with "uri", found {kind_of(value)}')
    given = present(value, _Place, plain)
    if "uri" not in given:
        raise Invalid('missing key "uri"')
    uri = given.pop("uri")
    with at("uri"):
        _location(uri, storage)
    return _location(uri, _store(given, storage))


def _location(uri: str, store: StoreConfig) -> TableLocation:
    try:
        bucket, prefix = parse_s3_uri(uri)
    except ValueError as error:
        raise Invalid(str(error)) from None
    return TableLocation(bucket, prefix, store)


_REGION = re.compile(r"[A-Za-z0-9_-]+")


def _store(given: Mapping[str, Any], default: StoreConfig) -> StoreConfig:
    """The default with the given fields over it, checked."""
    store = attrs.evolve(default, **given)
    if store.endpoint is not None:
        with at("endpoint"):
            store = attrs.evolve(store, endpoint=_endpoint(store.endpoint, store.addressing_style))
    if store.region is not None and not _REGION.fullmatch(store.region):
        raise Invalid(f"expected the name of a region, found {quoted(store.region)}", ("region",))
    if store.profile == "":
        raise Invalid("expected the name of a profile, found an empty string", ("profile",))
    return store


def _endpoint(url: str, style: AddressingStyle) -> str:
    """The URL without a slash at its end; raises Invalid when it is more than scheme, host and port."""
    expected = Invalid(f'expected "http://host:port" or "https://host:port", found {quoted(url)}')
    try:
        parts = urlsplit(url)
        bare = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        raise expected from None
    if not bare or parts.path not in {"", "/"} or "?" in url or "#" in url or "@" in url:
        raise expected
    if style is AddressingStyle.VIRTUAL and _is_address(parts.hostname or ""):
        raise Invalid("virtual addressing needs a host name, not an IP address")
    return url.removesuffix("/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


_RESERVED_ALIASES = frozenset({"", ".", "..", "_delta_log"})


def _check(config: Config) -> None:
    """Raises Invalid for values that contradict each other."""
    if not config.table_mapping:
        raise Invalid("expected at least one table", ("tableMapping",))
    for alias in config.table_mapping:
        if alias in _RESERVED_ALIASES or "/" in alias or not _is_plain_text(alias):
            raise Invalid(f"{quoted(alias)} cannot be the alias of a table", ("tableMapping",))
    _check_locations(config.table_mapping)
    for alias in config.allowed_partitions:
        if alias not in config.table_mapping:
            raise Invalid("is no alias of tableMapping", ("allowedPartitions", alias))
    if config.port and config.port == config.metrics_port:
        raise Invalid(f"{config.port} is also the port", ("metricsPort",))


def _is_plain_text(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no object key holds.
    return text.isprintable()


def _check_locations(tables: Mapping[str, TableLocation]) -> None:
    """No table may be or hold another: what one alias denies, the other could serve."""
    seen: dict[tuple[str | None, str, str], str] = {}
    for alias, location in tables.items():
        key = (location.store.endpoint, location.bucket, f"{location.prefix}/" if location.prefix else "")
        for (endpoint, bucket, prefix), other in seen.items():
            overlap = prefix.startswith(key[2]) or key[2].startswith(prefix)
            if (endpoint, bucket) == key[:2] and overlap:
                raise Invalid(f"overlaps with {quoted(other)}: {location.uri}", ("tableMapping", alias))
        seen[key] = alias
