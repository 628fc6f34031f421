"""The configuration: one JSON file and `PROXY_*` variables, structured into frozen values.

A mistake stops the start with one line that names the key and what was expected. A key that a later feature
will bring is an unknown key until it does something. Secrets are never repeated in an error.
"""

from __future__ import annotations

import ipaddress
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import attrs
import cattrs

from delta_proxy.access.audit import STANDARD_OUTPUT
from delta_proxy.access.identity import ANONYMOUS
from delta_proxy.access.keys import VARIABLE as SECRET_KEYS
from delta_proxy.access.keys import Secret, SecretKeys
from delta_proxy.access.oidc import PRINCIPAL_PREFIX, checked_url
from delta_proxy.access.permission_feed import DEFAULT_POLL_SECONDS, DEFAULT_STALE_SECONDS
from delta_proxy.access.policy import Grant, Policy, PolicyError, parse_filters
from delta_proxy.access.sts import (
    DEFAULT_SESSION_SECONDS,
    MAX_SESSION_SECONDS,
    MIN_SESSION_SECONDS,
    is_session_key,
)
from delta_proxy.s3.cors import CorsRule, check_count
from delta_proxy.s3.user_agents import NEVER_REDIRECT
from delta_proxy.structuring import (
    NO_KEY,
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
from delta_proxy.upstream.origin import namespace
from delta_proxy.upstream.stores import (
    AddressingStyle,
    CommitProbe,
    StoreConfig,
    TableLocation,
    check_bucket_name,
    parse_s3_uri,
)

ENVIRONMENT_PREFIX: Final = "PROXY_"
NOT_KEYS: Final = frozenset({SECRET_KEYS})
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
    """What a restricted principal sees of `_delta_log/`: its view of the log, or the log as it is."""

    FILTERED = "filtered"
    PASSTHROUGH = "passthrough"


class AuthMode(Enum):
    """Who verifies a request: the proxy, or the store that the client signed it for."""

    IAM = "iam"
    FORWARD = "forward"


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


def _check_readable(path: pathlib.Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


_ACCESS_KEY = re.compile(r"[A-Za-z0-9._+=@-]{3,128}")
_SHORTEST_SECRET: Final = 8


def _check_access_key(access_key: str) -> None:
    if not _ACCESS_KEY.fullmatch(access_key):
        raise ValueError("expected 3 to 128 letters, digits and ._+=@-")
    if is_session_key(access_key):
        raise ValueError(f"{quoted(access_key[:4])} begins the access keys of sessions; choose another one")


def _check_url(url: str) -> None:
    checked_url(url)


def _check_given(text: str) -> None:
    if not text:
        raise ValueError("expected a text that is not empty")


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
    max_requests_per_principal: Count = 128
    max_header_bytes: Annotated[int, between(1024, 1 << 20)] = 32 << 10
    max_body_bytes: Annotated[int, between(1024, 64 << 20)] = 2 << 20
    idle_timeout_seconds: Seconds = 60
    upstream_connect_timeout_seconds: Seconds = 5
    upstream_idle_timeout_seconds: Seconds = 30
    upstream_connections: Count = 256
    splice_bytes: Annotated[int, between(0, 1 << 40)] = 256 << 10
    shutdown_seconds: Annotated[int, between(0, 86_400)] = 30
    threads: Annotated[int, between(1, 256)] = 8


@attrs.frozen
class User:
    """A user of the file. Its grants are added to those of its groups and of everyone."""

    access_key: Annotated[str, _check_access_key]
    secret_key: Secret
    groups: tuple[str, ...] = ()
    allowed_partitions: Mapping[str, Grant] = MappingProxyType({})
    read_only: bool = False


@attrs.frozen
class Group:
    """A group of the file: what each of its members may read."""

    allowed_partitions: Mapping[str, Grant] = MappingProxyType({})


@attrs.frozen
class Database:
    """Where users and grants lie besides the file, and for how long the last known ones stay in force."""

    uri: str = attrs.field(default="sqlite:delta_proxy.db", repr=False)
    stale_seconds: Seconds = int(DEFAULT_STALE_SECONDS)
    poll_seconds: Annotated[int, between(1, 5)] = int(DEFAULT_POLL_SECONDS)


@attrs.frozen
class Sts:
    """The OpenID Connect issuer whose tokens are taken for session credentials.

    A session lasts `session_seconds` unless the client asks for less.
    """

    issuer: Annotated[str, _check_url]
    audience: Annotated[str, _check_given]
    jwks_uri: Annotated[str, _check_url] | None = None
    session_seconds: Annotated[int, between(MIN_SESSION_SECONDS, MAX_SESSION_SECONDS)] = (
        DEFAULT_SESSION_SECONDS
    )
    groups_claim: Annotated[str, _check_given] = "groups"


LOOPBACK: Final = "127.0.0.1"


def _default_interface(config: Config) -> str:
    return LOOPBACK if config.tls is None and not config.verifies else ""


@attrs.frozen(kw_only=True)
class Config:
    """The whole configuration; the README's table of keys says what each means, in snake_case here."""

    table_mapping: Mapping[str, TableLocation]
    cache: CacheConfig
    allowed_partitions: Mapping[str, Grant] = MappingProxyType({})
    users: Mapping[str, User] = MappingProxyType({})
    groups: Mapping[str, Group] = MappingProxyType({})
    deny_by_default: bool = False
    database_enabled: bool = False
    database: Database = attrs.field(factory=Database)
    sts: Sts | None = None
    default_auth_mode: AuthMode = AuthMode.IAM
    allow_auth_mode_header: bool = False
    audit: Annotated[str, _check_given] | None = None
    read_only: bool = True
    get_mode: GetMode = GetMode.PRESIGNED_URL
    proxy_partial: bool = False
    presign_expiry_seconds: Annotated[int, between(1, 604_800)] = 300
    never_redirect: tuple[str, ...] = NEVER_REDIRECT
    cors: Annotated[tuple[CorsRule, ...], check_count] = ()
    log_view: LogView = LogView.FILTERED
    port: Port = 18080
    metrics_port: Port | None = None
    metrics_interface: Annotated[str, _check_interface] = LOOPBACK
    bucket: Annotated[str, _check_bucket] = "datalake"
    domains: tuple[Annotated[str, _check_domain], ...] = ()
    tls: Tls | None = None
    interface: Annotated[str, _check_interface] = attrs.Factory(_default_interface, takes_self=True)
    storage: StoreConfig = attrs.field(factory=StoreConfig)
    workers: Annotated[int, between(1, 64)] = 1
    limits: Limits = Limits()
    secret_keys: SecretKeys | None = attrs.field(default=None, metadata=NO_KEY)

    @property
    def verifies(self) -> bool:
        """Whether the proxy knows anybody: then every request must prove who sent it."""
        return bool(self.users) or self.database_enabled or self.sts is not None

    @property
    def grants(self) -> Iterator[tuple[tuple[str, ...], str, Grant]]:
        """Every grant of the file: the path of keys to it, the alias, the grant."""
        holders: list[tuple[tuple[str, ...], Mapping[str, Grant]]] = [((), self.allowed_partitions)]
        holders += [(("users", name), user.allowed_partitions) for name, user in self.users.items()]
        holders += [(("groups", name), group.allowed_partitions) for name, group in self.groups.items()]
        for holder, grants in holders:
            for alias, grant in grants.items():
                yield (*holder, "allowedPartitions", alias), alias, grant

    @property
    def policy(self) -> Policy:
        """The policy of these grants. With a database a table is open to nobody whom no grant names."""
        return Policy(
            everyone=self.allowed_partitions,
            deny_by_default=self.deny_by_default or self.database_enabled,
            tables=frozenset(self.table_mapping),
            named=frozenset(alias for _, alias, _ in self.grants),
        )


def load(path: pathlib.Path, environ: Mapping[str, str]) -> Config:
    """The configuration of a file with the `PROXY_*` variables over it; raises ConfigError.

    Relative paths inside are taken from the working directory of this moment. `cache.directory` is by default
    `delta-s3-proxy` under XDG_CACHE_HOME, `~/.cache` or the directory for temporary files.
    """
    return parse(read(path), str(path), environ)


def parse(text: str, source: str, environ: Mapping[str, str]) -> Config:
    """The configuration of a text as `load` reads it; `source` names it in errors. Raises ConfigError."""
    document = _document(text, source)
    keys = _secret_keys(environ)
    try:
        overrides = read_overrides(Config, environ, ENVIRONMENT_PREFIX, NOT_KEYS)
    except Invalid as error:
        raise ConfigError(error.spot, error.problem) from None
    try:
        return _structure(apply_overrides(document, overrides), environ, keys)
    except Invalid as error:
        raise _blame(error, source, overrides) from None


def _secret_keys(environ: Mapping[str, str]) -> SecretKeys | None:
    text = environ.get(SECRET_KEYS)
    try:
        return SecretKeys.parse(text) if text else None
    except ValueError as error:
        raise ConfigError(SECRET_KEYS, str(error).removeprefix(SECRET_KEYS).lstrip(": ")) from None


def read(path: pathlib.Path) -> str:
    """The text of a configuration file. Raises ConfigError."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text: byte {error.start}") from None


def _document(text: str, source: str) -> dict[str, Any]:
    try:
        document = parse_json(text)
    except Invalid as error:
        raise ConfigError(source, error.problem) from None
    if not isinstance(document, dict):
        raise ConfigError(source, f"expected an object, found {kind_of(document)}")
    return document


def _blame(error: Invalid, file: str, overrides: tuple[Override, ...]) -> ConfigError:
    """The error against the variable that set the value, else against the file."""
    for override in reversed(overrides):
        if error.path[: len(override.path)] == override.path:
            rest = Invalid(error.problem, error.path[len(override.path) :])
            return ConfigError(override.name, f"{rest.spot}: {rest.problem}" if rest.spot else rest.problem)
    return ConfigError(file, f"{error.spot}: {error.problem}" if error.spot else error.problem)


def _structure(document: dict[str, Any], environ: Mapping[str, str], keys: SecretKeys | None) -> Config:
    plain, converter = strict_converter(), strict_converter()
    converter.register_structure_hook(Secret, lambda value, _: _structure_secret(value, environ))
    converter.register_structure_hook(Grant, _structure_grant)
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
    if "database" in document and "databaseEnabled" not in document:
        raise Invalid("say by databaseEnabled whether it is used", ("database",))
    config = attrs.evolve(converter.structure(document, Config), secret_keys=keys)
    _check(config)
    return attrs.evolve(config, audit=_absolute(config.audit))


def _absolute(audit: str | None) -> str | None:
    return audit if audit in {None, STANDARD_OUTPUT} else str(pathlib.Path(audit or "").absolute())


def _structure_secret(value: object, environ: Mapping[str, str]) -> Secret:
    """A secret as it stands, or from where it stands; no message ever repeats it."""
    match value:
        case str():
            text = value
        case {"env": str(name), **rest} if not rest:
            if name not in environ:
                raise Invalid(f"the variable {quoted(name)} is not set")
            text = environ[name]
        case {"file": str(name), **rest} if not rest:
            text = _secret_file(name)
        case _:
            raise Invalid('expected a string, {"env": "NAME"} or {"file": "PATH"}')
    if len(text) < _SHORTEST_SECRET or not text.isprintable():
        raise Invalid(f"expected at least {_SHORTEST_SECRET} printable characters")
    return Secret(text)


def _secret_file(name: str) -> str:
    try:
        return pathlib.Path(name).read_text("utf-8").rstrip("\r\n")
    except OSError as error:
        raise Invalid(f"cannot read {name}: {error.strerror}") from None
    except ValueError:
        raise Invalid(f"{quoted(name)} is no file of UTF-8 text") from None


def _cache_directory(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME")
    base = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else tempfile.gettempdir())
    return f"{base}/delta-s3-proxy"


def _structure_grant(value: object, _: object) -> Grant:
    try:
        return parse_filters(value)
    except PolicyError as error:
        raise Invalid(error.problem, (error.spot,) if error.spot else ()) from None


@attrs.frozen
class _Place:
    """A table's location written as an object: what it does not give is taken from `storage`."""

    uri: str
    endpoint: str | None
    region: str | None
    profile: str | None
    addressing_style: AddressingStyle
    commit_probe: CommitProbe


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
    probe = given.pop("commit_probe", CommitProbe.ON)
    return attrs.evolve(_location(uri, _store(given, storage)), commit_probe=probe)


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
    for path, alias, _ in config.grants:
        if alias not in config.table_mapping:
            raise Invalid("is no alias of tableMapping", path)
    _check_users(config)
    _check_sources(config)
    if config.port and config.port == config.metrics_port:
        raise Invalid(f"{config.port} is also the port", ("metricsPort",))


def _check_users(config: Config) -> None:
    taken: dict[str, str] = {}
    for name, user in config.users.items():
        with at("users", name):
            _check_name(name)
            if name == ANONYMOUS.id or name.startswith(PRINCIPAL_PREFIX):
                raise Invalid("is a name that the proxy gives itself; choose another one")
            if user.access_key in taken:
                raise Invalid(f"is also the access key of {quoted(taken[user.access_key])}", ("accessKey",))
            taken[user.access_key] = name
            unknown = [group for group in user.groups if group not in config.groups]
            # Groups may also live in the database.
            if unknown and not config.database_enabled:
                raise Invalid(f"{quoted(unknown[0])} is no group of groups", ("groups",))
    for name in config.groups:
        with at("groups", name):
            _check_name(name)


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 255 or not _is_plain_text(name):
        raise Invalid("expected a name of 1 to 255 printable characters")


def _check_sources(config: Config) -> None:
    """Where else principals come from: the database, sessions, the store."""
    for enabled, key in ((config.database_enabled, "databaseEnabled"), (config.sts is not None, "sts")):
        if enabled and config.secret_keys is None:
            raise Invalid(f"needs keys to seal with in the variable {SECRET_KEYS}", (key,))
    if config.database_enabled:
        with at("database"):
            _check_database(config.database)
    if config.allow_auth_mode_header and config.default_auth_mode is AuthMode.FORWARD and not config.verifies:
        # The header would turn a request that the store must accept into one that nobody verifies.
        raise Invalid(
            "needs users, a database or sts beside defaultAuthMode forward", ("allowAuthModeHeader",)
        )


def _check_database(database: Database) -> None:
    if database.stale_seconds < 2 * database.poll_seconds:
        raise Invalid("expected at least twice pollSeconds", ("staleSeconds",))
    from delta_proxy.access.permissions import database_engine  # noqa: PLC0415 - SQLAlchemy is slow to import

    try:
        database_engine(database.uri).dispose()
    except ValueError as error:
        raise Invalid(str(error), ("uri",)) from None
    except ModuleNotFoundError:
        raise Invalid("needs the extra postgres: pip install delta-s3-proxy[postgres]", ("uri",)) from None


def _is_plain_text(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no object key holds.
    return text.isprintable()


def _check_locations(tables: Mapping[str, TableLocation]) -> None:
    """No table may be or hold another: what one alias denies, the other could serve."""
    seen: dict[tuple[str, str, str], str] = {}
    for alias, location in tables.items():
        key = (namespace(location.store), location.bucket, f"{location.prefix}/" if location.prefix else "")
        for (place, bucket, prefix), other in seen.items():
            overlap = prefix.startswith(key[2]) or key[2].startswith(prefix)
            if (place, bucket) == key[:2] and overlap:
                raise Invalid(f"overlaps with {quoted(other)}: {location.uri}", ("tableMapping", alias))
        seen[key] = alias
