"""The configuration: what it becomes, and the one line that a mistake gets."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from delta_proxy.access.identity import ANONYMOUS
from delta_proxy.access.keys import Secret, SecretKeys
from delta_proxy.access.policy import EVERYTHING, NOTHING, parse_filters
from delta_proxy.config import AuthMode, Config, ConfigError, Database, GetMode, Limits, LogView, Sts, load
from delta_proxy.s3.cors import CorsMethod, CorsRule
from delta_proxy.s3.user_agents import NEVER_REDIRECT
from delta_proxy.upstream.stores import AddressingStyle, StoreConfig, TableLocation

SMALLEST: dict[str, Any] = {"tableMapping": {"t": "s3://lake/t"}}
HOME = {"HOME": "/home/ada"}

Loader = Callable[..., Config]

PLACE = 'expected "s3://bucket/prefix"'
NAME = 'expected 3 to 63 lower-case letters, digits, "-" and "."'
KEY = "A" * 43 + "="
HOST_AND_PORT = 'expected "http://host:port" or "https://host:port"'


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "config.json"


@pytest.fixture
def configure(file: pathlib.Path) -> Loader:
    """Load the smallest configuration with these keys over it."""

    def configure(extra: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Config:
        file.write_text(json.dumps({**SMALLEST, **(extra or {})}))
        return load(file, {**HOME, **(environ or {})})

    return configure


def mistake(file: pathlib.Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    """The line that a file gets, its directory left out."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {})
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{file.parent}/", "")


def test_rules_for_browsers_are_read(configure: Loader) -> None:
    rule = {
        "allowedOrigins": ["https://*.example", "*"],
        "allowedMethods": ["GET", "HEAD"],
        "allowedHeaders": ["*"],
        "exposeHeaders": ["ETag"],
        "maxAgeSeconds": 0,
    }
    shortest = {"allowedOrigins": ["null"], "allowedMethods": ["PUT"]}
    assert configure({"cors": [rule, shortest]}).cors == (
        CorsRule(("https://*.example", "*"), (CorsMethod.GET, CorsMethod.HEAD), ("*",), ("ETag",), 0),
        CorsRule(("null",), (CorsMethod.PUT,)),
    )
    assert configure().cors == ()


@pytest.mark.parametrize(
    ("change", "spot"),
    [
        ({"allowedOrigins": []}, "allowedOrigins: expected at least one"),
        ({"allowedOrigins": ["https://*.*"]}, "allowedOrigins[0]: expected an origin"),
        ({"allowedOrigins": ["a\r\nb"]}, "allowedOrigins[0]: expected an origin"),
        ({"allowedMethods": []}, "allowedMethods: expected at least one"),
        ({"allowedMethods": ["PATCH"]}, 'allowedMethods[0]: expected "GET" or'),
        ({"allowedHeaders": ["a b"]}, "allowedHeaders[0]: expected the name"),
        ({"allowedHeaders": ["*-*"]}, "allowedHeaders[0]: expected the name"),
        ({"exposeHeaders": ["x-*"]}, "exposeHeaders[0]: expected the name"),
        ({"maxAgeSeconds": -1}, "maxAgeSeconds: expected a number"),
        ({"origins": ["*"]}, 'unknown key "origins"'),
    ],
)
def test_a_rule_for_browsers_that_cannot_be_meant_stops_the_start(
    file: pathlib.Path, change: dict[str, Any], spot: str
) -> None:
    rule = {"allowedOrigins": ["*"], "allowedMethods": ["GET"], **change}
    line = mistake(file, json.dumps({**SMALLEST, "cors": [rule]}))
    assert line.startswith(f"config.json: cors[0]{'' if spot.startswith('unknown') else '.'}")
    assert spot in line


def test_there_are_at_most_as_many_rules_as_s3_takes(file: pathlib.Path) -> None:
    rule = {"allowedOrigins": ["*"], "allowedMethods": ["GET"]}
    assert "at most 100 rules" in mistake(file, json.dumps({**SMALLEST, "cors": [rule] * 101}))


def test_a_table_is_all_it_takes(configure: Loader) -> None:
    config = configure()
    assert config.table_mapping == {"t": TableLocation("lake", "t", StoreConfig())}
    assert config.allowed_partitions == {}
    assert config.deny_by_default is False
    assert config.read_only is True
    assert config.get_mode is GetMode.PRESIGNED_URL
    assert config.proxy_partial is False
    assert config.presign_expiry_seconds == 300
    assert config.never_redirect == NEVER_REDIRECT
    assert config.log_view is LogView.FILTERED
    assert (config.port, config.interface, config.metrics_port) == (18080, "127.0.0.1", None)
    assert (config.bucket, config.domains, config.tls) == ("datalake", (), None)
    assert config.storage == StoreConfig()
    assert config.limits == Limits()
    assert config.cache.metadata_ttl_seconds == 120


def test_the_cache_lies_in_the_home_of_the_user_unless_told_otherwise(configure: Loader) -> None:
    assert configure().cache.directory == pathlib.Path("/home/ada/.cache/delta-s3-proxy")
    xdg = configure(environ={"XDG_CACHE_HOME": "/var/cache/ada"})
    assert xdg.cache.directory == pathlib.Path("/var/cache/ada/delta-s3-proxy")
    told = configure(
        {"cache": {"directory": "/data", "metadataTtlSeconds": 5, "diskBytes": 7, "memoryBytes": 8}}
    )
    assert told.cache.directory == pathlib.Path("/data")
    assert (told.cache.metadata_ttl_seconds, told.cache.disk_bytes, told.cache.memory_bytes) == (5, 7, 8)


def test_a_home_is_not_needed(file: pathlib.Path) -> None:
    file.write_text(json.dumps(SMALLEST))
    assert load(file, {}).cache.directory.name == "delta-s3-proxy"


def test_a_relative_path_is_made_absolute_at_once(configure: Loader) -> None:
    assert configure({"cache": {"directory": "here"}}).cache.directory == pathlib.Path.cwd() / "here"


def test_every_key_is_read(configure: Loader, tmp_path: pathlib.Path) -> None:
    (tmp_path / "chain.pem").write_text("")
    (tmp_path / "key.pem").write_text("")
    config = configure(
        {
            "allowedPartitions": {"t": [{"MIC": ["XLON", "XETR"]}]},
            "denyByDefault": True,
            "readOnly": True,
            "getMode": "proxy",
            "proxyPartial": True,
            "presignExpirySeconds": 604800,
            "neverRedirect": ["x*"],
            "logView": "passthrough",
            "port": 0,
            "interface": "::1",
            "metricsPort": 18081,
            "bucket": "lake",
            "domains": ["s3.example.com", "localhost"],
            "tls": {"certificate": str(tmp_path / "chain.pem"), "privateKey": str(tmp_path / "key.pem")},
            "limits": {"maxConnections": 5, "threads": 2, "shutdownSeconds": 0},
        }
    )
    assert config.allowed_partitions == {"t": parse_filters([{"MIC": ["XLON", "XETR"]}])}
    assert config.deny_by_default is True
    assert config.get_mode is GetMode.PROXY
    assert config.proxy_partial is True
    assert config.presign_expiry_seconds == 604800
    assert config.never_redirect == ("x*",)
    assert (config.port, config.interface, config.metrics_port) == (0, "::1", 18081)
    assert (config.bucket, config.domains) == ("lake", ("s3.example.com", "localhost"))
    assert config.tls is not None
    assert config.tls.private_key == tmp_path / "key.pem"
    assert config.limits == Limits(max_connections=5, threads=2, shutdown_seconds=0)


def test_with_tls_the_proxy_listens_everywhere(configure: Loader, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.pem").write_text("")
    tls = {"certificate": str(tmp_path / "x.pem"), "privateKey": str(tmp_path / "x.pem")}
    assert configure({"tls": tls}).interface == ""
    assert configure({"tls": tls, "interface": "127.0.0.1"}).interface == "127.0.0.1"


def test_the_metrics_listen_on_loopback_wherever_clients_connect(configure: Loader) -> None:
    assert configure({"interface": "0.0.0.0", "metricsPort": 18081}).metrics_interface == "127.0.0.1"
    assert configure({"metricsPort": 18081, "metricsInterface": ""}).metrics_interface == ""


def test_a_table_takes_from_storage_what_it_does_not_say(configure: Loader) -> None:
    storage = {
        "endpoint": "http://minio:9000/",
        "region": "eu-west-1",
        "profile": "p",
        "addressingStyle": "path",
    }
    config = configure(
        {
            "storage": storage,
            "tableMapping": {
                "a": "s3://lake/a",
                "b": {"uri": "s3://lake/b"},
                "c": {"uri": "s3://lake/c", "region": "us-east-1", "addressingStyle": "virtual"},
                "d": {"uri": "s3://lake/d", "endpoint": None, "profile": None},
            },
        }
    )
    default = StoreConfig("http://minio:9000", "eu-west-1", "p", AddressingStyle.PATH)
    assert config.storage == default
    assert config.table_mapping["a"] == TableLocation("lake", "a", default)
    assert config.table_mapping["b"] == TableLocation("lake", "b", default)
    assert config.table_mapping["c"].store == StoreConfig(
        "http://minio:9000", "us-east-1", "p", AddressingStyle.VIRTUAL
    )
    assert config.table_mapping["d"].store == StoreConfig(None, "eu-west-1", None, AddressingStyle.PATH)


def test_the_policy_is_made_of_the_grants(configure: Loader) -> None:
    extra = {
        "tableMapping": {"t": "s3://lake/t", "u": "s3://lake/u"},
        "allowedPartitions": {"t": [{"MIC": "x"}]},
    }
    policy = configure(extra).policy
    assert policy.grant(ANONYMOUS, "t") == parse_filters([{"MIC": "x"}])
    assert policy.grant(ANONYMOUS, "u") == EVERYTHING
    assert policy.grant(ANONYMOUS, "v") == NOTHING
    assert configure({**extra, "denyByDefault": True}).policy.grant(ANONYMOUS, "u") == NOTHING


def test_fractions_of_a_policy_keep_all_their_digits(file: pathlib.Path) -> None:
    number = "12345678901234567890.123456789"
    document = {**SMALLEST, "allowedPartitions": {"t": [{"n": "NUMBER"}]}}
    file.write_text(json.dumps(document).replace('"NUMBER"', number))
    assert (
        load(file, {}).allowed_partitions["t"].fingerprint
        != parse_filters([{"n": float(number)}]).fingerprint
    )


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"getmode": "proxy"}, 'unknown key "getmode"; did you mean "getMode"?'),
        ({"storage": {"endpont": "x"}}, 'storage: unknown key "endpont"; did you mean "endpoint"?'),
        ({"workers": 0}, "workers: expected a number from 1 to 64, found 0"),
        ({"zzz\n": 2}, 'unknown key "zzz\\n"'),
        ({"port": "18080"}, "port: expected a whole number, found a string"),
        ({"port": True}, "port: expected a whole number, found true"),
        ({"port": 80.5}, "port: expected a whole number, found a number"),
        ({"port": None}, "port: expected a whole number, found null"),
        ({"port": 65536}, "port: expected a number from 0 to 65535, found 65536"),
        ({"metricsPort": -1}, "metricsPort: expected a number from 0 to 65535, found -1"),
        ({"metricsPort": 18080}, "metricsPort: 18080 is also the port"),
        ({"denyByDefault": "true"}, "denyByDefault: expected true or false, found a string"),
        ({"denyByDefault": 1}, "denyByDefault: expected true or false, found a number"),
        (
            {"tableMapping": {"t": {"uri": "s3://lake/t", "commitProbe": "no"}}},
            'tableMapping.t.commitProbe: expected "on" or "off", found "no"',
        ),
        ({"logView": "raw"}, 'logView: expected "filtered" or "passthrough", found "raw"'),
        ({"getMode": "stream"}, 'getMode: expected "presignedUrl" or "proxy", found "stream"'),
        ({"presignExpirySeconds": 0}, "presignExpirySeconds: expected a number from 1 to 604800, found 0"),
        (
            {"presignExpirySeconds": 604801},
            "presignExpirySeconds: expected a number from 1 to 604800, found 604801",
        ),
        ({"neverRedirect": "x"}, "neverRedirect: expected a list, found a string"),
        ({"neverRedirect": ["x", 1]}, "neverRedirect[1]: expected a string, found a number"),
        ({"bucket": "My"}, f'bucket: "My" is not a bucket name; {NAME}'),
        (
            {"domains": ["a:80"]},
            'domains[0]: expected a host name in lower case without a port, found "a:80"',
        ),
        ({"metricsInterface": "lo"}, 'metricsInterface: expected an IP address, or "" for all, found "lo"'),
        ({"interface": "localhost"}, 'interface: expected an IP address, or "" for all, found "localhost"'),
        ({"tls": {"certificate": "/nowhere"}}, 'tls: missing key "privateKey"'),
        (
            {"tls": {"certificate": "/nowhere", "privatKey": "/nowhere"}},
            'tls: unknown key "privatKey"; did you mean "privateKey"?',
        ),
        (
            {"tls": {"certificate": "/nowhere", "privateKey": "/nowhere"}},
            "tls.certificate: cannot read /nowhere: No such file or directory",
        ),
        ({"tls": {"certificate": "", "privateKey": "x"}}, 'tls.certificate: expected a path, found ""'),
        ({"cache": 3}, "cache: expected an object, found a number"),
        (
            {"cache": {"metadataTtlSeconds": -1}},
            "cache.metadataTtlSeconds: expected a number from 0 to 86400, found -1",
        ),
        ({"limits": {"threads": 0}}, "limits.threads: expected a number from 1 to 256, found 0"),
        ({"limits": []}, "limits: expected an object, found a list"),
        ({"storage": {"endpoint": "minio:9000"}}, f'storage.endpoint: {HOST_AND_PORT}, found "minio:9000"'),
        ({"storage": {"region": ""}}, 'storage.region: expected the name of a region, found ""'),
        (
            {"storage": {"profile": ""}},
            "storage.profile: expected the name of a profile, found an empty string",
        ),
        (
            {"storage": {"addressingStyle": "dns"}},
            'storage.addressingStyle: expected "path" or "virtual" or "auto", found "dns"',
        ),
        (
            {"storage": {"endpoint": "http://127.0.0.1:9000", "addressingStyle": "virtual"}},
            "storage.endpoint: virtual addressing needs a host name, not an IP address",
        ),
        ({"tableMapping": {}}, "tableMapping: expected at least one table"),
        ({"tableMapping": []}, "tableMapping: expected an object, found a list"),
        (
            {"tableMapping": {"t": "lake/t"}},
            'tableMapping.t: "lake/t" is not an S3 URI; expected "s3://bucket/prefix"',
        ),
        ({"tableMapping": {"t": 3}}, f'tableMapping.t: {PLACE} or an object with "uri", found a number'),
        ({"tableMapping": {"t": {"region": "x"}}}, 'tableMapping.t: missing key "uri"'),
        (
            {"tableMapping": {"t": {"uri": "s3://lake", "url": "x"}}},
            'tableMapping.t: unknown key "url"; did you mean "uri"?',
        ),
        (
            {"tableMapping": {"t": {"uri": "s3:lake"}}},
            f'tableMapping.t.uri: "s3:lake" is not an S3 URI; {PLACE}',
        ),
        (
            {"tableMapping": {"t": "s3://lake/t", "u": "s3://lake/t/"}},
            'tableMapping.u: overlaps with "t": s3://lake/t',
        ),
        (
            {
                "tableMapping": {
                    "t": {"uri": "s3://lake/t", "endpoint": "http://Store.test:80"},
                    "u": {"uri": "s3://lake/t", "endpoint": "http://store.test"},
                }
            },
            'tableMapping.u: overlaps with "t": s3://lake/t',
        ),
        (
            {
                "tableMapping": {
                    "t": {"uri": "s3://lake/t", "endpoint": "http://store.test"},
                    "u": {"uri": "s3://lake/t", "endpoint": "https://store.test"},
                }
            },
            'tableMapping.u: overlaps with "t": s3://lake/t',
        ),
        (
            {
                "tableMapping": {
                    "t": {"uri": "s3://lake/t", "region": "eu-west-1"},
                    "u": {"uri": "s3://lake/t", "endpoint": "https://s3.eu-west-1.amazonaws.com"},
                }
            },
            'tableMapping.u: overlaps with "t": s3://lake/t',
        ),
        (
            {"tableMapping": {"t": "s3://lake/t/x", "u": "s3://lake/t"}},
            'tableMapping.u: overlaps with "t": s3://lake/t',
        ),
        (
            {"tableMapping": {"t": "s3://lake/", "u": "s3://lake/t"}},
            'tableMapping.u: overlaps with "t": s3://lake/t',
        ),
        ({"allowedPartitions": {"u": []}}, "allowedPartitions.u: is no alias of tableMapping"),
        ({"allowedPartitions": {"t": {}}}, "allowedPartitions.t: expected a list of partition maps"),
        (
            {"allowedPartitions": {"t": [{"date": {"from": "2024-01-01"}}]}},
            'allowedPartitions.t[0].date: unknown operator "from"; expected one of glob, gte, gt, lte, lt',
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(file: pathlib.Path, extra: Any, line: str) -> None:
    assert mistake(file, json.dumps({**SMALLEST, **extra})) == f"config.json: {line}"


@pytest.mark.parametrize("alias", ["", ".", "..", "_delta_log", "a/b", "/", "a\nb", "\ud800"])
def test_some_words_cannot_be_an_alias(file: pathlib.Path, alias: str) -> None:
    line = mistake(file, json.dumps({"tableMapping": {alias: "s3://lake/t"}}))
    assert line.startswith("config.json: tableMapping: ")
    assert line.endswith("cannot be the alias of a table")


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://h",
        "http://",
        "http://h/path",
        "http://h?x",
        "http://h#x",
        "http://u:p@h",
        "http://h:99999",
        "http://h:x",
        "",
        "http://[::1",
    ],
)
def test_an_endpoint_is_scheme_host_and_port(file: pathlib.Path, endpoint: str) -> None:
    line = mistake(file, json.dumps({**SMALLEST, "storage": {"endpoint": endpoint}}))
    assert line.startswith(
        'config.json: storage.endpoint: expected "http://host:port" or "https://host:port"'
    )


def test_tables_side_by_side_do_not_overlap(configure: Loader) -> None:
    tables: dict[str, Any] = {
        "a": "s3://lake/t",
        "b": "s3://lake/t2",
        "c": "s3://other/t",
        "d": {"uri": "s3://lake/t", "endpoint": "http://elsewhere:9000"},
        "e": {"uri": "s3://lake/t", "endpoint": "http://elsewhere:9001"},
        "f": {"uri": "s3://lake/t", "region": "cn-north-1"},
    }
    assert len(configure({"tableMapping": tables}).table_mapping) == len(tables)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{,", "not JSON: Expecting property name enclosed in double quotes at line 1 column 2"),
        ('{\n  "port": 1 2\n}', "not JSON: Expecting ',' delimiter at line 2 column 13"),
        ("", "not JSON: Expecting value at line 1 column 1"),
        ("[]", "expected an object, found a list"),
        ("{}", 'missing key "tableMapping"'),
        ('{"port": NaN}', "not JSON: NaN is no JSON number"),
        ('{"port": 1, "port": 2}', 'duplicate key "port"'),
        ('{"allowedPartitions": {"t": [{"a": 1, "a": 2}]}}', 'duplicate key "a"'),
        ("[" * 100_000, "not usable: nested too deeply"),
        ("9" * 5000, "not usable: a number has too many digits"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(file: pathlib.Path, text: str, line: str) -> None:
    assert mistake(file, text) == f"config.json: {line}"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: cannot be read: No such file or directory"):
        load(tmp_path / "nowhere.json", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    (tmp_path / "latin").write_bytes(b'{"port": "\xe9"}')
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 10"):
        load(tmp_path / "latin", {})


def test_a_byte_order_mark_is_no_mistake(file: pathlib.Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(SMALLEST).encode())
    assert load(file, {}).port == 18080


def test_a_long_value_does_not_make_a_long_line(file: pathlib.Path) -> None:
    assert len(mistake(file, json.dumps({**SMALLEST, "getMode": "x" * 100_000}))) < 700


@pytest.mark.parametrize(
    ("environ", "read", "expected"),
    [
        ({"PROXY_PORT": "1"}, lambda config: config.port, 1),
        ({"PROXY_METRICS_PORT": "1"}, lambda config: config.metrics_port, 1),
        ({"PROXY_METRICSPORT": "1"}, lambda config: config.metrics_port, 1),
        ({"PROXY_METRICS_PORT": "1", "PROXY_METRICSPORT": "1"}, lambda config: config.metrics_port, 1),
        ({"PROXY_METRICS_PORT": "null"}, lambda config: config.metrics_port, None),
        ({"PROXY_GET_MODE": "proxy"}, lambda config: config.get_mode, GetMode.PROXY),
        ({"PROXY_GETMODE": "proxy"}, lambda config: config.get_mode, GetMode.PROXY),
        ({"PROXY_DENY_BY_DEFAULT": "true"}, lambda config: config.deny_by_default, True),
        ({"PROXY_INTERFACE": ""}, lambda config: config.interface, ""),
        ({"PROXY_BUCKET": "123"}, lambda config: config.bucket, "123"),
        ({"PROXY_DOMAINS": '["a.b"]'}, lambda config: config.domains, ("a.b",)),
        ({"PROXY_STORAGE__ENDPOINT": "http://e:1"}, lambda config: config.storage.endpoint, "http://e:1"),
        (
            {"PROXY_STORAGE__ENDPOINT": "http://e:1"},
            lambda config: config.table_mapping["t"].store.endpoint,
            "http://e:1",
        ),
        (
            {"PROXY_STORAGE__ADDRESSING_STYLE": "path"},
            lambda config: config.storage.addressing_style,
            AddressingStyle.PATH,
        ),
        (
            {"PROXY_STORAGE": '{"region": "r"}', "PROXY_STORAGE__PROFILE": "p"},
            lambda config: config.storage,
            StoreConfig(None, "r", "p"),
        ),
        ({"PROXY_CACHE__METADATA_TTL_SECONDS": "7"}, lambda config: config.cache.metadata_ttl_seconds, 7),
        ({"PROXY_CACHE__DIRECTORY": "/c"}, lambda config: config.cache.directory, pathlib.Path("/c")),
        ({"PROXY_TABLE_MAPPING": '{"u": "s3://lake/u"}'}, lambda config: list(config.table_mapping), ["u"]),
        ({"PROXY_ALLOWED_PARTITIONS": '{"t": []}'}, lambda config: config.allowed_partitions, {"t": NOTHING}),
        ({"PROXY_SECRET_KEYS": KEY}, lambda config: config.secret_keys, SecretKeys.parse(KEY)),
        ({"NO_PROXY": "*", "HTTP_PROXY": "x"}, lambda config: config.port, 18080),
    ],
)
def test_the_environment_sets_every_key(
    configure: Loader, environ: dict[str, str], read: Callable[[Config], object], expected: object
) -> None:
    assert read(configure(environ=environ)) == expected


def test_the_environment_wins_over_the_file_key_by_key(configure: Loader) -> None:
    extra = {"port": 1, "storage": {"endpoint": "http://file:1", "region": "file"}}
    config = configure(extra, {"PROXY_PORT": "2", "PROXY_STORAGE__REGION": "environment"})
    assert config.port == 2
    assert config.storage == StoreConfig("http://file:1", "environment")


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"PROXY_PROT": "1"}, 'PROXY_PROT: unknown key "PROT"; did you mean "port"?'),
        ({"PROXY_": "1"}, 'PROXY_: unknown key ""'),
        ({"PROXY_STORAGE__REGIO": "1"}, 'PROXY_STORAGE__REGIO: unknown key "REGIO"; did you mean "region"?'),
        ({"PROXY_PORT__X": "1"}, "PROXY_PORT__X: port has no keys of its own; set it whole"),
        (
            {"PROXY_TABLE_MAPPING__T": "x"},
            "PROXY_TABLE_MAPPING__T: tableMapping has no keys of its own; set it whole",
        ),
        ({"PROXY_PORT": "abc"}, "PROXY_PORT: expected a whole number, found a string"),
        ({"PROXY_PORT": ""}, "PROXY_PORT: expected a whole number, found a string"),
        ({"PROXY_PORT": "70000"}, "PROXY_PORT: expected a number from 0 to 65535, found 70000"),
        (
            {"PROXY_METRICS_PORT": "1", "PROXY_METRICSPORT": "2"},
            "PROXY_METRICS_PORT: contradicts PROXY_METRICSPORT",
        ),
        ({"PROXY_DOMAINS": "[a"}, "PROXY_DOMAINS: not JSON: Expecting value at line 1 column 2"),
        ({"PROXY_DOMAINS": "a.b"}, "PROXY_DOMAINS: expected a list, found a string"),
        ({"PROXY_DOMAINS": '["a.b", 1]'}, "PROXY_DOMAINS: [1]: expected a string, found a number"),
        (
            {"PROXY_ALLOWED_PARTITIONS": '{"t": [{"a": 1, "a": 2}]}'},
            'PROXY_ALLOWED_PARTITIONS: duplicate key "a"',
        ),
        (
            {"PROXY_ALLOWED_PARTITIONS": '{"u": []}'},
            "PROXY_ALLOWED_PARTITIONS: u: is no alias of tableMapping",
        ),
        ({"PROXY_TLS__CERTIFICATE": "x"}, 'config.json: tls: missing key "privateKey"'),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    file: pathlib.Path, environ: dict[str, str], line: str
) -> None:
    assert mistake(file, json.dumps(SMALLEST), environ) == line


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "tableMapping",
    "allowedPartitions",
    "port",
    "getMode",
    "storage",
    "limits",
    "tls",
    "cache",
    "domains",
    "interface",
    "bucket",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_whatever_the_file_holds_it_loads_or_gets_its_line(file: pathlib.Path, extra: dict[str, Any]) -> None:
    file.write_text(json.dumps({**SMALLEST, **extra}))
    line = ""
    try:
        load(file, {})
    except ConfigError as error:
        line = str(error)
    assert line.isprintable()


def test_the_example_in_the_repository_is_the_demos() -> None:
    config = load(pathlib.Path(__file__).parent.parent / "etc" / "config.json", {})
    assert set(config.table_mapping) == {"trades_plus"}
    assert config.allowed_partitions == {"trades_plus": parse_filters([{"MIC": ["XLON", "XETR"]}])}
    assert config.get_mode is GetMode.PRESIGNED_URL
    assert (config.port, config.metrics_port) == (18080, 18081)
    assert config.storage.endpoint == "http://127.0.0.1:19000"
    assert config.storage.addressing_style is AddressingStyle.PATH


ALICE = {"accessKey": "AKALICE", "secretKey": "secret-of-alice"}
ISSUER = {"issuer": "https://id.example.com", "audience": "proxy"}


def test_a_user_has_keys_groups_and_grants(configure: Loader) -> None:
    config = configure(
        {
            "users": {
                "alice": {
                    **ALICE,
                    "groups": ["desk"],
                    "allowedPartitions": {"t": [{"MIC": "XLON"}]},
                    "readOnly": True,
                }
            },
            "groups": {"desk": {"allowedPartitions": {"t": []}}},
        }
    )
    alice = config.users["alice"]
    assert (alice.access_key, alice.secret_key) == ("AKALICE", Secret("secret-of-alice"))
    assert (alice.groups, alice.read_only) == (("desk",), True)
    assert alice.allowed_partitions == {"t": parse_filters([{"MIC": "XLON"}])}
    assert config.groups["desk"].allowed_partitions == {"t": NOTHING}
    assert config.verifies


def test_a_secret_comes_from_a_variable_or_a_file(configure: Loader, tmp_path: pathlib.Path) -> None:
    (tmp_path / "secret").write_text("secret-in-a-file\n")
    users = {
        "a": {"accessKey": "AKA", "secretKey": {"env": "A_SECRET"}},
        "b": {"accessKey": "AKB", "secretKey": {"file": str(tmp_path / "secret")}},
    }
    config = configure({"users": users}, {"A_SECRET": "secret-in-a-variable"})
    assert config.users["a"].secret_key == Secret("secret-in-a-variable")
    assert config.users["b"].secret_key == Secret("secret-in-a-file")


def test_a_secret_shows_in_no_repr(configure: Loader) -> None:
    config = configure(
        {
            "users": {"alice": ALICE},
            "databaseEnabled": True,
            "database": {"uri": "postgresql://u:hidden@h/d"},
        },
        {"PROXY_SECRET_KEYS": KEY},
    )
    assert "secret-of-alice" not in repr(config)
    assert "hidden" not in repr(config)
    assert KEY not in repr(config)


def test_database_sts_and_the_rest_of_identity_are_read(configure: Loader) -> None:
    config = configure(
        {
            "databaseEnabled": True,
            "database": {"uri": "sqlite:x.db", "staleSeconds": 30, "pollSeconds": 1},
            "sts": {
                **ISSUER,
                "jwksUri": "https://id.example.com/k",
                "sessionSeconds": 900,
                "groupsClaim": "g",
            },
            "audit": "audit.log",
            "defaultAuthMode": "forward",
            "allowAuthModeHeader": True,
        },
        {"PROXY_SECRET_KEYS": KEY},
    )
    assert config.database == Database("sqlite:x.db", 30, 1)
    assert config.sts == Sts("https://id.example.com", "proxy", "https://id.example.com/k", 900, "g")
    assert config.audit == str(pathlib.Path.cwd() / "audit.log")
    assert config.default_auth_mode is AuthMode.FORWARD
    assert config.allow_auth_mode_header is True
    assert configure({"audit": "-"}).audit == "-"


@pytest.mark.parametrize(
    "extra",
    [
        {"users": {"alice": ALICE}},
        {"databaseEnabled": True},
        {"sts": ISSUER},
    ],
)
def test_whoever_is_verified_may_come_from_everywhere(configure: Loader, extra: dict[str, Any]) -> None:
    config = configure(extra, {"PROXY_SECRET_KEYS": KEY})
    assert config.verifies
    assert config.interface == ""


def test_a_table_that_a_user_or_group_is_granted_is_closed_to_others(configure: Loader) -> None:
    holders: tuple[dict[str, Any], ...] = (
        {"users": {"alice": {**ALICE, "allowedPartitions": {"t": [{}]}}}},
        {"groups": {"desk": {"allowedPartitions": {"t": [{}]}}}},
    )
    for holder in holders:
        assert configure(holder).policy.grant(ANONYMOUS, "t") == NOTHING


def test_with_a_database_a_table_without_grants_is_closed(configure: Loader) -> None:
    assert configure().policy.grant(ANONYMOUS, "t") == EVERYTHING
    with_database = configure({"databaseEnabled": True}, {"PROXY_SECRET_KEYS": KEY})
    assert with_database.policy.grant(ANONYMOUS, "t") == NOTHING


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (
            {"users": {"a": ALICE, "b": ALICE}},
            'config.json: users.b.accessKey: is also the access key of "a"',
        ),
        (
            {"users": {"a": {**ALICE, "groups": ["x"]}}},
            'config.json: users.a.groups: "x" is no group of groups',
        ),
        (
            {"users": {"a": {**ALICE, "secretKey": "short"}}},
            "config.json: users.a.secretKey: expected at least 8 printable characters",
        ),
        (
            {"users": {"a": {**ALICE, "secretKey": {"env": "NOT_SET"}}}},
            'config.json: users.a.secretKey: the variable "NOT_SET" is not set',
        ),
        (
            {"users": {"a": {**ALICE, "secretKey": {"file": "/no/such"}}}},
            "config.json: users.a.secretKey: cannot read /no/such: No such file or directory",
        ),
        (
            {"users": {"a": {**ALICE, "secretKey": {"env": "A", "file": "B"}}}},
            'config.json: users.a.secretKey: expected a string, {"env": "NAME"} or {"file": "PATH"}',
        ),
        (
            {"users": {"a": {**ALICE, "accessKey": "ASIAALICE"}}},
            'config.json: users.a.accessKey: "ASIA" begins the access keys of sessions; choose another one',
        ),
        (
            {"users": {"a": {**ALICE, "accessKey": "a/b,c"}}},
            "config.json: users.a.accessKey: expected 3 to 128 letters, digits and ._+=@-",
        ),
        (
            {"users": {"anonymous": ALICE}},
            "config.json: users.anonymous: is a name that the proxy gives itself; choose another one",
        ),
        (
            {"users": {"oidc:x": ALICE}},
            "config.json: users.oidc:x: is a name that the proxy gives itself; choose another one",
        ),
        (
            {"users": {"": ALICE}},
            "config.json: users.: expected a name of 1 to 255 printable characters",
        ),
        (
            {"users": {"a": {**ALICE, "allowedPartitions": {"u": []}}}},
            "config.json: users.a.allowedPartitions.u: is no alias of tableMapping",
        ),
        (
            {"groups": {"g": {"allowedPartitions": {"t": [{"MIC": {"like": 1}}]}}}},
            "config.json: groups.g.allowedPartitions.t[0].MIC: "
            'unknown operator "like"; expected one of glob, gte, gt, lte, lt',
        ),
        (
            {"sts": ISSUER},
            "config.json: sts: needs keys to seal with in the variable PROXY_SECRET_KEYS",
        ),
        (
            {"databaseEnabled": True},
            "config.json: databaseEnabled: needs keys to seal with in the variable PROXY_SECRET_KEYS",
        ),
        (
            {"database": {"uri": "sqlite:x.db"}},
            "config.json: database: say by databaseEnabled whether it is used",
        ),
        (
            {"sts": {**ISSUER, "issuer": "http://id.example.com"}},
            "config.json: sts.issuer: keys are taken over https only (http on loopback)",
        ),
        (
            {"sts": {**ISSUER, "sessionSeconds": 60}},
            "config.json: sts.sessionSeconds: expected a number from 900 to 43200, found 60",
        ),
        (
            {"defaultAuthMode": "forward", "allowAuthModeHeader": True},
            "config.json: allowAuthModeHeader: needs users, a database or sts beside defaultAuthMode forward",
        ),
        (
            {"defaultAuthMode": "none"},
            'config.json: defaultAuthMode: expected "iam" or "forward", found "none"',
        ),
    ],
)
def test_a_contradiction_about_identity_is_one_line(
    file: pathlib.Path, extra: dict[str, Any], line: str
) -> None:
    assert mistake(file, json.dumps({**SMALLEST, **extra})) == line


@pytest.mark.parametrize(
    ("database", "line"),
    [
        (
            {"uri": "mysql://h/d"},
            "database.uri: the permissions database must be sqlite or postgresql+psycopg",
        ),
        ({"uri": "sqlite:///:memory:"}, "database.uri: the sqlite database must be a file"),
        ({"staleSeconds": 3}, "database.staleSeconds: expected at least twice pollSeconds"),
        ({"pollSeconds": 6}, "database.pollSeconds: expected a number from 1 to 5, found 6"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(
    file: pathlib.Path, database: dict[str, Any], line: str
) -> None:
    text = json.dumps({**SMALLEST, "databaseEnabled": True, "database": database})
    assert mistake(file, text, {"PROXY_SECRET_KEYS": KEY}) == f"config.json: {line}"


def test_a_bad_secret_key_is_never_repeated(file: pathlib.Path) -> None:
    line = mistake(file, json.dumps(SMALLEST), {"PROXY_SECRET_KEYS": "not-a-key"})
    assert line == "PROXY_SECRET_KEYS: key 1 is not 32 bytes in URL-safe base64"
