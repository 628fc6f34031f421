"""Who is asking: real clients with keys of their own, each of which sees its own partitions alone."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import attrs
import boto3
import botocore.config
import botocore.exceptions
import botocore.session
import duckdb
import polars as pl
import pyarrow.fs
import pytest
import s3fs
from deltalake import DeltaTable

from delta_proxy import demo
from delta_proxy.access.keys import SecretKeys, generate_key
from delta_proxy.access.permissions import PermissionStore, database_engine
from delta_proxy.access.policy import Reason
from delta_proxy.access.snapshot import PrincipalKind
from delta_proxy.demo import script
from delta_proxy.resources.refusals import NO_SIGNATURE
from tests.access.oidc_issuer import AUDIENCE, Issuer, serving
from tests.databases import kind, migrated, postgres, postgres_schema, sqlite_schema
from tests.ports import free_port
from tests.waiting import wait_until

from . import servers
from .conftest import TRADES
from .postgres import Postgres
from .raw import exchange, request
from .servers import BUCKET, REGION, Endpoint, Proxy, Store

__all__ = ["kind", "migrated", "postgres", "postgres_schema", "sqlite_schema"]

URI = f"s3://{demo.PROXY_BUCKET}/{TRADES}"
SECRETS = {"alice": "secret-of-alice-0123", "bob": "secret-of-bob-0123456", "carol": "secret-of-carol-01234"}
KEYS = {"alice": "AKALICE", "bob": "AKBOB", "carol": "AKCAROL"}
ROWS = {"alice": {"XLON"}, "bob": {"XETR", "XPAR"}}
USERS: dict[str, Any] = {
    "users": {
        "alice": {
            "accessKey": KEYS["alice"],
            "secretKey": SECRETS["alice"],
            "allowedPartitions": {TRADES: [{"MIC": "XLON"}]},
        },
        "bob": {
            "accessKey": KEYS["bob"],
            "secretKey": {"env": "BOB_SECRET"},
            "groups": ["desk"],
            "allowedPartitions": {TRADES: [{"MIC": "XPAR"}]},
        },
        "carol": {"accessKey": KEYS["carol"], "secretKey": SECRETS["carol"]},
    },
    "groups": {"desk": {"allowedPartitions": {TRADES: [{"MIC": "XETR"}]}}},
}
TABLE = {"tableMapping": {TRADES: f"s3://{BUCKET}/{TRADES}"}}
ERRORS = (botocore.exceptions.ClientError,)


@contextlib.contextmanager
def started(
    store: Store, folder: pathlib.Path, settings: dict[str, Any], **environment: str
) -> Iterator[Proxy]:
    """A proxy with these settings, and with bob's secret in its environment."""
    config = servers.configuration(store, logView="filtered", **TABLE, **settings)
    path, port, metrics_port = servers.write_configuration(config, folder)
    env = {**servers.proxy_environment(store), "BOB_SECRET": SECRETS["bob"], **environment}
    log = folder / "proxy.log"
    with servers.proxy_process(path, metrics_port, folder, env) as child:
        yield Proxy(f"http://localhost:{port}", port=port, metrics_port=metrics_port, pid=child.pid, log=log)


@pytest.fixture(scope="module")
def proxy(moto_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with three users, an audit log and a domain for virtual hosts."""
    folder = tmp_path_factory.mktemp("identity")
    settings = {**USERS, "audit": str(folder / "audit.log"), "domains": ["s3.test"]}
    with started(moto_store, folder, settings) as running:
        yield running


def as_user(proxy: Proxy, name: str) -> Proxy:
    """The proxy with a user's keys."""
    return attrs.evolve(proxy, access_key=KEYS[name], secret_key=SECRETS[name])


def code_of(call: Callable[[], object]) -> str:
    """The code of the error that a call of boto3 gets."""
    with pytest.raises(ERRORS) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def mics_in(keys: list[str]) -> set[str]:
    """The MICs in the names of files."""
    return {key.partition("MIC=")[2].partition("/")[0] for key in keys if "MIC=" in key}


def reading(mics: set[str]) -> demo.Reading:
    """What the rows of these MICs come to."""
    parts = [demo.expected(mic) for mic in mics]
    return demo.Reading(sum(each.rows for each in parts), sum(each.quantity for each in parts))


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_deltalake_reads_the_whole_table_and_gets_its_own_rows(proxy: Proxy, name: str) -> None:
    table = DeltaTable(URI, storage_options=as_user(proxy, name).storage_options).to_pyarrow_table()
    assert set(table["MIC"].to_pylist()) == ROWS[name]
    assert table.num_rows == reading(ROWS[name]).rows


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_polars_gets_its_own_rows(proxy: Proxy, name: str) -> None:
    frame = pl.scan_delta(URI, storage_options=as_user(proxy, name).storage_options)
    found = frame.select(pl.len().alias("rows"), pl.col("quantity").sum()).collect().row(0)
    assert demo.Reading(*found) == reading(ROWS[name])


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_duckdb_gets_its_own_rows(proxy: Proxy, name: str) -> None:
    user = as_user(proxy, name)
    with demo.duckdb_connection(demo.Endpoint(user.url, demo.PROXY_BUCKET, REGION)) as connection:
        connection.execute(_duckdb_secret(user))
        found = connection.execute("SELECT count(*), sum(quantity) FROM delta_scan(?)", [URI]).fetchone()
    assert found is not None
    assert demo.Reading(*found) == reading(ROWS[name])


def _duckdb_secret(user: Endpoint) -> str:
    return (
        f"CREATE OR REPLACE SECRET (TYPE s3, KEY_ID '{user.access_key}', SECRET '{user.secret_key}', "
        f"REGION '{REGION}', ENDPOINT '{user.netloc}', URL_STYLE 'path', USE_SSL false)"
    )


def test_duckdb_with_the_wrong_secret_is_refused(proxy: Proxy) -> None:
    wrong = attrs.evolve(as_user(proxy, "alice"), secret_key="guessed")
    with demo.duckdb_connection(demo.Endpoint(wrong.url, demo.PROXY_BUCKET, REGION)) as connection:
        connection.execute(_duckdb_secret(wrong))
        with pytest.raises(duckdb.Error):
            connection.execute("SELECT count(*) FROM delta_scan(?)", [URI]).fetchall()


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_pyarrow_lists_and_reads_its_own_files(proxy: Proxy, name: str) -> None:
    user = as_user(proxy, name)
    files = pyarrow.fs.S3FileSystem(
        access_key=user.access_key,
        secret_key=user.secret_key,
        region=REGION,
        scheme="http",
        endpoint_override=user.netloc,
    )
    root = f"{demo.PROXY_BUCKET}/{TRADES}"
    found = [
        info.path
        for info in files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
        if info.is_file
    ]
    assert mics_in(found) == ROWS[name]
    data = next(path for path in found if "MIC=" in path)
    with files.open_input_file(data) as file:
        assert file.read(4) == b"PAR1"


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_s3fs_lists_its_own_files(proxy: Proxy, name: str) -> None:
    user = as_user(proxy, name)
    files = s3fs.S3FileSystem(
        key=user.access_key,
        secret=user.secret_key,
        client_kwargs={"endpoint_url": user.url, "region_name": REGION},
        skip_instance_cache=True,
    )
    assert mics_in(files.find(f"{demo.PROXY_BUCKET}/{TRADES}")) == ROWS[name]


@pytest.mark.parametrize("name", ["alice", "bob"])
@pytest.mark.parametrize("style", ["path", "virtual"])
def test_boto3_lists_and_gets_its_own_files(proxy: Proxy, name: str, style: str) -> None:
    client = _boto3(proxy, name, style)
    listed = client.list_objects_v2(Bucket=demo.PROXY_BUCKET, Prefix=f"{TRADES}/")
    keys = [item["Key"] for item in listed["Contents"]]
    assert mics_in(keys) == ROWS[name]
    data = next(key for key in keys if "MIC=" in key)
    answer = client.get_object(Bucket=demo.PROXY_BUCKET, Key=data, Range="bytes=0-3")
    assert answer["Body"].read() == b"PAR1"


def _boto3(proxy: Proxy, name: str, style: str) -> Any:
    """A client; in virtual-host style it reaches the host name of the bucket by way of the proxy itself."""
    user = as_user(proxy, name)
    virtual = {"proxies": {"http": proxy.url}} if style == "virtual" else {}
    through = botocore.config.Config(s3={"addressing_style": style}, signature_version="s3v4", **virtual)
    return servers.session().client(
        "s3",
        endpoint_url="http://s3.test" if virtual else proxy.url,
        region_name=REGION,
        aws_access_key_id=user.access_key,
        aws_secret_access_key=user.secret_key,
        config=through,
    )


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_the_aws_cli_lists_its_own_files(proxy: Proxy, name: str, tmp_path: pathlib.Path) -> None:
    program = script("aws")
    if not pathlib.Path(program).exists():
        pytest.skip("the aws-cli is not installed")
    env = servers.clean_environment(
        AWS_ACCESS_KEY_ID=KEYS[name], AWS_SECRET_ACCESS_KEY=SECRETS[name], AWS_DEFAULT_REGION=REGION
    )
    command = [program, "s3", "ls", "--recursive", f"s3://{demo.PROXY_BUCKET}/{TRADES}/"]
    done = servers.run([*command, "--endpoint-url", proxy.url], env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mics_in(done.stdout.splitlines()) == ROWS[name]


def test_a_user_without_a_grant_sees_no_table(proxy: Proxy) -> None:
    client = as_user(proxy, "carol").boto3()
    assert client.list_objects_v2(Bucket=demo.PROXY_BUCKET)["KeyCount"] == 0
    key = f"{TRADES}/_delta_log/00000000000000000000.json"
    assert code_of(lambda: client.get_object(Bucket=demo.PROXY_BUCKET, Key=key)) == "AccessDenied"


def test_the_wrong_secret_and_an_unknown_key_are_told_apart_as_s3_does(proxy: Proxy) -> None:
    wrong = attrs.evolve(as_user(proxy, "alice"), secret_key="guessed").boto3()
    assert code_of(lambda: wrong.list_objects_v2(Bucket=demo.PROXY_BUCKET)) == "SignatureDoesNotMatch"
    unknown = attrs.evolve(proxy, access_key="AKNOBODY").boto3()
    assert code_of(lambda: unknown.list_objects_v2(Bucket=demo.PROXY_BUCKET)) == "InvalidAccessKeyId"


def test_an_old_signature_is_refused(proxy: Proxy) -> None:
    headers = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKALICE/20200101/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=" + "0" * 64,
        "x-amz-date": "20200101T000000Z",
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
    }
    answer = request(proxy, "GET", f"/{demo.PROXY_BUCKET}", headers)
    assert (answer.status, b"<Code>RequestTimeTooSkewed</Code>" in answer.body) == (403, True)


def test_a_presigned_url_holds_for_its_request_and_no_other(proxy: Proxy) -> None:
    client = _boto3(proxy, "alice", "path")
    keys = client.list_objects_v2(Bucket=demo.PROXY_BUCKET, Prefix=f"{TRADES}/")["Contents"]
    key = next(item["Key"] for item in keys if "MIC=" in item["Key"])
    url = client.generate_presigned_url("get_object", {"Bucket": demo.PROXY_BUCKET, "Key": key})
    target = url.removeprefix(proxy.url)
    host = {"Host": proxy.netloc}
    assert request(proxy, "GET", target, host).status in {200, 307}
    for changed in (
        target.replace("XLON", "XETR"),
        target + "&x-id=GetObject",
        target.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601"),
        target.replace("AKALICE", "AKBOB"),
    ):
        assert changed != target
        answer = request(proxy, "GET", changed, host)
        assert (answer.status, b"<Code>SignatureDoesNotMatch</Code>" in answer.body) == (403, True)
    assert request(proxy, "HEAD", target, host).status == 403


def test_who_proves_nothing_learns_nothing(proxy: Proxy) -> None:
    def told(method: str, target: str) -> tuple[int, str]:
        answer = request(proxy, method, target)
        text = answer.body.decode()
        code = text.partition("<Code>")[2].partition("</Code>")[0]
        message = text.partition("<Message>")[2].partition("</Message>")[0]
        return answer.status, f"{code}: {message}"

    log = f"/{demo.PROXY_BUCKET}/{TRADES}/_delta_log/00000000000000000000.json"
    targets = [
        "/",
        f"/{demo.PROXY_BUCKET}",
        f"/{demo.PROXY_BUCKET}?list-type=2&prefix={TRADES}/",
        "/no-such-bucket",
        f"/{demo.PROXY_BUCKET}/{TRADES}",
        f"/{demo.PROXY_BUCKET}/{TRADES}/no-such-key",
        f"/{demo.PROXY_BUCKET}/no-such-table/key",
        log,
    ]
    assert {told("GET", target) for target in targets} == {(403, f"AccessDenied: {NO_SIGNATURE}")}
    assert {request(proxy, "HEAD", target).status for target in targets[3:]} == {403}
    assert {told("PUT", target)[0] for target in targets[4:]} == {403}
    assert told("GET", log + "?acl") == told("GET", f"/{demo.PROXY_BUCKET}/no/such?acl")


def test_two_mechanisms_at_once_are_refused(proxy: Proxy) -> None:
    target = f"/{demo.PROXY_BUCKET}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0"
    answer = request(proxy, "GET", target, {"Authorization": "AWS4-HMAC-SHA256 Credential=x"})
    assert (answer.status, b"<Code>InvalidRequest</Code>" in answer.body) == (400, True)


def test_the_audit_log_has_a_line_a_decision_and_no_secret(proxy: Proxy) -> None:
    path = proxy.log.parent / "audit.log"
    alice = as_user(proxy, "alice").boto3()
    keys = [item["Key"] for item in alice.list_objects_v2(Bucket=demo.PROXY_BUCKET)["Contents"]]
    own = next(key for key in keys if "MIC=XLON" in key)
    alice.get_object(Bucket=demo.PROXY_BUCKET, Key=own)["Body"].read()
    bob = as_user(proxy, "bob").boto3()
    code_of(lambda: bob.get_object(Bucket=demo.PROXY_BUCKET, Key=own))
    code_of(lambda: proxy.boto3().get_object(Bucket=demo.PROXY_BUCKET, Key=own))
    table_path = own.removeprefix(f"{TRADES}/")

    def lines() -> list[dict[str, Any]]:
        # The last piece may be the beginning of a line that is being written.
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]][-3:]

    wait_until(lambda: any(line["reason"] == "InvalidAccessKeyId" for line in lines()[2:]))
    allowed, denied, unknown = lines()
    assert (allowed["principal"], allowed["auth"], allowed["decision"]) == ("alice", "sigv4", "allowed")
    assert (allowed["operation"], allowed["table"], allowed["path"]) == ("GetObject", TRADES, table_path)
    assert [values["MIC"] for values in allowed["partitions"]] == ["XLON"]
    assert allowed["status"] == 200
    assert allowed["bytes"] > 0
    assert (denied["principal"], denied["decision"]) == ("bob", "denied")
    assert denied["reason"] == Reason.NOT_GRANTED.value
    assert (denied["status"], denied["grant"] != allowed["grant"]) == (403, True)
    assert (unknown["principal"], unknown["access_key"]) == ("-", servers.ACCESS_KEY)
    assert {line["source"] for line in (allowed, denied, unknown)} == {"127.0.0.1"}
    for log in (path, proxy.log):
        text = log.read_text()
        assert not any(secret in text for secret in [*SECRETS.values(), "Signature=0"])


def test_the_audit_log_goes_on_in_a_new_file_after_a_rotation(proxy: Proxy) -> None:
    path = proxy.log.parent / "audit.log"
    path.rename(path.with_suffix(".1"))
    os.kill(proxy.pid, signal.SIGUSR1)
    client = as_user(proxy, "alice").boto3()

    def written() -> bool:
        client.head_bucket(Bucket=demo.PROXY_BUCKET)
        return path.exists() and "HeadBucket" in path.read_text()

    wait_until(written)
    path.with_suffix(".1").unlink()


def test_a_reload_puts_other_grants_in_force_and_refuses_a_bad_file(
    moto_store: Store, tmp_path: pathlib.Path
) -> None:
    with started(moto_store, tmp_path, USERS) as proxy:
        config = tmp_path / "config.json"
        client = as_user(proxy, "carol").boto3()

        def change(edit: Callable[[dict[str, Any]], None], says: str) -> None:
            document = json.loads(config.read_text())
            edit(document)
            config.write_text(json.dumps(document))
            reload(says)

        def reload(says: str) -> None:
            before = proxy.log.read_text().count(says)
            os.kill(proxy.pid, signal.SIGHUP)
            wait_until(lambda: proxy.log.read_text().count(says) > before)

        def seen() -> set[str]:
            listed = client.list_objects_v2(Bucket=demo.PROXY_BUCKET)
            return mics_in([item["Key"] for item in listed.get("Contents", [])])

        def grant(document: dict[str, Any], mic: str, column: str = "MIC") -> None:
            document["users"]["carol"]["allowedPartitions"] = {TRADES: [{column: mic}]}

        assert seen() == set()
        change(lambda document: grant(document, "XMIL"), "was reloaded")
        assert seen() == {"XMIL"}
        change(lambda document: grant(document, "x", "ISIN"), "was not reloaded")
        assert seen() == {"XMIL"}
        good = config.read_text().replace('"ISIN"', '"MIC"').replace('"x"', '"XMIL"')
        change(lambda document: document.pop("users"), "was not reloaded")
        assert seen() == {"XMIL"}
        config.write_text("{")
        reload("was not reloaded")
        assert seen() == {"XMIL"}
        config.write_text(good)
        change(lambda document: document.update(port=free_port()), "needs a restart: port")
        assert seen() == {"XMIL"}


def test_a_grant_revoked_in_the_database_is_out_of_force_within_five_seconds(
    moto_store: Store, tmp_path: pathlib.Path, migrated: str
) -> None:
    key = generate_key()
    engine = database_engine(migrated)
    store = PermissionStore(engine, SecretKeys.parse(key).fernet())
    dora = store.add_user("dora")
    store.grant(PrincipalKind.USER, "dora", TRADES, [{"MIC": "XLON"}], granted_by="test")
    settings = {"databaseEnabled": True, "database": {"uri": migrated}, **USERS}
    with started(moto_store, tmp_path, settings, PROXY_SECRET_KEYS=key) as proxy:
        user = attrs.evolve(proxy, access_key=dora.access_key, secret_key=dora.secret.value).boto3()
        assert mics_in(_keys(user)) == {"XLON"}
        assert mics_in(_keys(as_user(proxy, "alice").boto3())) == {"XLON"}
        store.revoke_all(PrincipalKind.USER, "dora")
        wait_until(lambda: _keys(user) == [])
        store.set_disabled("dora", True)
        wait_until(lambda: _refused(user) == "InvalidAccessKeyId")
        # It is degraded for as long as a poll is late.
        wait_until(lambda: _checks(proxy)["database"] is True)
    engine.dispose()


@pytest.mark.slow
def test_while_the_database_is_down_the_last_grants_stay_for_a_time_and_then_nothing_is_granted(
    moto_store: Store, tmp_path: pathlib.Path, postgres: Postgres
) -> None:
    database = {"uri": postgres.new_database(), "staleSeconds": 30, "pollSeconds": 1}
    settings = {"databaseEnabled": True, "database": database, **USERS}
    with started(moto_store, tmp_path, settings, PROXY_SECRET_KEYS=generate_key()) as proxy:
        user = as_user(proxy, "alice").boto3()
        ready = f"http://127.0.0.1:{proxy.metrics_port}/health/ready"
        postgres.stop()
        try:
            assert mics_in(_keys(user)) == {"XLON"}
            wait_until(lambda: _refused(user) == "ServiceUnavailable")
            assert not demo.answers(ready)
        finally:
            postgres.start()
        wait_until(lambda: _refused(user) is None)
        wait_until(lambda: demo.answers(ready))


def _checks(proxy: Proxy) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.metrics_port}/health/ready") as answer:
        found: dict[str, Any] = json.loads(answer.read())["checks"]
    return found


def _refused(client: Any) -> str | None:
    """The code that a listing gets; None when it is answered."""
    try:
        _keys(client)
    except botocore.exceptions.ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def _keys(client: Any) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=demo.PROXY_BUCKET).get("Contents", [])]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An OpenID Connect issuer."""
    with serving(Issuer()) as running:
        yield running


@pytest.fixture(scope="module")
def with_sessions(
    moto_store: Store, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A proxy that gives session credentials for the issuer's tokens."""
    folder = tmp_path_factory.mktemp("sts")
    sts = {"issuer": issuer.url, "audience": AUDIENCE}
    settings = {"sts": sts, **USERS, "audit": str(folder / "audit")}
    with started(moto_store, folder, settings, PROXY_SECRET_KEYS=generate_key()) as running:
        yield running


def test_boto3_gets_a_session_for_a_web_identity_and_reads_with_it(
    with_sessions: Proxy, tmp_path: pathlib.Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, token = with_sessions, tmp_path / "token"
    token.write_text(issuer.token(issuer.claims(time.time())))
    for name, value in {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/reader",
        "AWS_ROLE_SESSION_NAME": "test",
        "AWS_ENDPOINT_URL_STS": proxy.url,
        "AWS_ENDPOINT_URL_S3": proxy.url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    session = boto3.session.Session()
    assert mics_in(_keys(session.client("s3"))) == {"XETR"}
    caller = session.client("sts").get_caller_identity()
    assert caller["Arn"].endswith("assumed-role/delta-s3-proxy/oidc:4711")
    frozen = session.get_credentials().get_frozen_credentials()
    options = {
        **attrs.evolve(proxy, access_key=frozen.access_key, secret_key=frozen.secret_key).storage_options,
        "aws_session_token": frozen.token,
    }
    rows = DeltaTable(URI, storage_options=options).to_pyarrow_table()
    assert set(rows["MIC"].to_pylist()) == {"XETR"}
    stolen = boto3.session.Session(frozen.access_key, "x" * 40, frozen.token).client("s3")
    assert code_of(lambda: _keys(stolen)) == "SignatureDoesNotMatch"
    without = boto3.session.Session(frozen.access_key, frozen.secret_key).client("s3")
    assert code_of(lambda: _keys(without)) == "InvalidAccessKeyId"
    audit = proxy.log.parent / "audit"
    wait_until(lambda: '"reason":"InvalidAccessKeyId"' in audit.read_text())
    text = audit.read_text()
    assert '"operation":"AssumeRoleWithWebIdentity"' in text
    assert '"auth":"session"' in text
    assert not any(secret in text for secret in (frozen.secret_key, frozen.token, token.read_text()))


def test_a_token_of_another_audience_and_any_other_action_are_refused(
    with_sessions: Proxy, issuer: Issuer
) -> None:
    proxy = with_sessions
    sts = boto3.session.Session(KEYS["alice"], SECRETS["alice"], region_name=REGION).client(
        "sts", endpoint_url=proxy.url
    )
    assert sts.get_caller_identity()["Arn"] == "arn:aws:iam::000000000000:user/alice"
    asked = {"RoleArn": "arn:aws:iam::123456789012:role/reader", "RoleSessionName": "test"}
    other = issuer.token(issuer.claims(time.time(), aud="other"))
    assert (
        code_of(lambda: sts.assume_role_with_web_identity(WebIdentityToken=other, **asked))
        == "InvalidIdentityToken"
    )
    good = issuer.token(issuer.claims(time.time()))
    longer = {**asked, "WebIdentityToken": good, "DurationSeconds": 7200}
    assert code_of(lambda: sts.assume_role_with_web_identity(**longer)) == "ValidationError"
    assert code_of(sts.get_session_token) == "InvalidAction"
    stranger = boto3.session.Session("AKNOBODY", "x" * 20, region_name=REGION).client(
        "sts", endpoint_url=proxy.url
    )
    assert code_of(stranger.get_caller_identity) == "InvalidClientTokenId"


@pytest.fixture(scope="module")
def forwarding(gateway_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in forward mode before a store that verifies."""
    with forwarding_to(gateway_store, tmp_path_factory) as running:
        yield running


@contextlib.contextmanager
def forwarding_to(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy in forward mode; the store's own access key is a user's who may see two MICs."""
    users = {
        "trader": {
            "accessKey": servers.ACCESS_KEY,
            "secretKey": "not-the-stores",
            "allowedPartitions": {TRADES: [{"MIC": ["XLON", "XETR"]}]},
        }
    }
    folder = tmp_path_factory.mktemp("forward")
    settings = {"users": users, "defaultAuthMode": "forward", "audit": str(folder / "audit.log")}
    with started(store, folder, settings) as running:
        yield running


def through(proxy: Proxy, store: Store, secret: str | None = None, **config: Any) -> Any:
    """A client that signs for the store and has the proxy as its HTTP proxy."""
    settings = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}, **config}
    return servers.session().client(
        "s3",
        endpoint_url=store.url,
        region_name=REGION,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=secret or store.secret_key,
        config=botocore.config.Config(proxies={"http": proxy.url}, **settings),
    )


def store_keys(store: Store) -> list[str]:
    """Every key of the table, from the store itself."""
    pages = store.boto3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{TRADES}/")
    return [item["Key"] for page in pages for item in page["Contents"]]


def test_forward_mode_lists_and_serves_what_the_policy_leaves(
    forwarding: Proxy, gateway_store: Store
) -> None:
    check_what_is_forwarded(forwarding, gateway_store)


@pytest.mark.slow
def test_forward_mode_lists_and_serves_the_same_before_another_store(
    moto_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with forwarding_to(moto_store, tmp_path_factory) as proxy:
        # One page: moto fails at a list token that is not its own, where S3 refuses it.
        check_what_is_forwarded(proxy, moto_store, page_size=1000)
        check_the_log_that_is_forwarded(proxy, moto_store)


def check_what_is_forwarded(forwarding: Proxy, store: Store, page_size: int = 2) -> None:
    """Keys, objects and refusals, held to what the store itself says."""
    client = through(forwarding, store)
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=f"{TRADES}/", PaginationConfig={"PageSize": page_size}
    )
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    everything = store_keys(store)
    assert mics_in(keys) == {"XLON", "XETR"}
    assert [key for key in keys if "MIC=" in key] == [
        key for key in everything if "XLON" in key or "XETR" in key
    ]
    assert len(keys) == len(set(keys))
    own = next(key for key in keys if "MIC=XLON" in key)
    direct = store.boto3().get_object(Bucket=BUCKET, Key=own)
    forwarded = client.get_object(Bucket=BUCKET, Key=own)
    assert forwarded["ETag"] == direct["ETag"]
    assert forwarded["Body"].read() == direct["Body"].read()
    other = next(key for key in everything if "MIC=XPAR" in key)
    assert code_of(lambda: client.get_object(Bucket=BUCKET, Key=other)) == "AccessDenied"
    assert code_of(lambda: client.get_object(Bucket=BUCKET, Key=f"{TRADES}/none")) == "NoSuchKey"
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == [BUCKET]


def test_forward_mode_shows_the_log_as_the_grant_sees_it(forwarding: Proxy, gateway_store: Store) -> None:
    check_the_log_that_is_forwarded(forwarding, gateway_store)


def check_the_log_that_is_forwarded(forwarding: Proxy, store: Store) -> None:
    """Commits name what is granted and nothing else."""
    client = through(forwarding, store)
    commits = [key for key in store_keys(store) if key.endswith(".json") and "_delta_log" in key]
    text = b"".join(client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in commits)
    assert b"XLON" in text
    assert b"XPAR" not in text


def test_forward_mode_gives_nothing_before_the_store_accepted(
    forwarding: Proxy, gateway_store: Store
) -> None:
    wrong = through(forwarding, gateway_store, secret="guessed-secret")
    own = next(key for key in store_keys(gateway_store) if "MIC=XLON" in key)
    log = f"{TRADES}/_delta_log/00000000000000000000.json"
    for key in (own, log, f"{TRADES}/none", "outside/of/every/table"):
        assert code_of(partial(wrong.get_object, Bucket=BUCKET, Key=key)) == "SignatureDoesNotMatch"
    assert code_of(lambda: wrong.list_objects_v2(Bucket=BUCKET)) == "SignatureDoesNotMatch"
    assert code_of(lambda: wrong.list_objects_v2(Bucket="no-such-bucket")) in {
        "SignatureDoesNotMatch",
        "NoSuchBucket",
    }


def test_forward_mode_takes_only_signed_requests_for_its_stores(
    forwarding: Proxy, gateway_store: Store
) -> None:
    unsigned = exchange(
        forwarding,
        f"GET {gateway_store.url}/{BUCKET} HTTP/1.1\r\nHost: {gateway_store.netloc}\r\n\r\n".encode(),
    )
    assert b"<Code>AccessDenied</Code>" in unsigned
    elsewhere = exchange(forwarding, b"GET http://example.test/ HTTP/1.1\r\nHost: example.test\r\n\r\n")
    assert b"<Code>InvalidRequest</Code>" in elsewhere
    origin_form = request(forwarding, "GET", f"/{BUCKET}")
    assert b"<Code>InvalidRequest</Code>" in origin_form.body
    client = through(forwarding, gateway_store)
    assert (
        code_of(lambda: client.put_object(Bucket=BUCKET, Key=f"{TRADES}/x", Body=b"x")) == "MethodNotAllowed"
    )


def test_deltalake_reads_through_forward_mode(forwarding: Proxy, gateway_store: Store) -> None:
    options = {**gateway_store.storage_options, "proxy_url": forwarding.url}
    rows = DeltaTable(f"s3://{BUCKET}/{TRADES}", storage_options=options).to_pyarrow_table()
    assert set(rows["MIC"].to_pylist()) == {"XLON", "XETR"}


def test_the_header_chooses_the_mode_where_that_is_allowed(
    gateway_store: Store, tmp_path: pathlib.Path
) -> None:
    with started(gateway_store, tmp_path, {**USERS, "allowAuthModeHeader": True}) as proxy:
        client = through(proxy, gateway_store)
        client.meta.events.register(
            "before-send.s3",
            lambda request, **_: request.headers.__setitem__("x-proxy-auth-mode", "forward"),
        )
        # The store's key is nobody's here, so it has only what everyone has: nothing of this table.
        assert code_of(lambda: client.list_objects_v2(Bucket=BUCKET)) == "AccessDenied"
        log = f"{TRADES}/_delta_log/00000000000000000000.json"
        assert code_of(lambda: client.get_object(Bucket=BUCKET, Key=log)) == "AccessDenied"
        assert mics_in(_keys(as_user(proxy, "alice").boto3())) == {"XLON"}
        odd = request(proxy, "GET", "/", {"x-proxy-auth-mode": "none"})
        assert b"<Code>InvalidArgument</Code>" in odd.body


def test_a_client_that_is_refused_by_readiness_knows_why(moto_store: Store, tmp_path: pathlib.Path) -> None:
    settings = {
        "databaseEnabled": True,
        "database": {"uri": f"sqlite:{tmp_path / 'no' / 'such' / 'folder.db'}"},
    }
    config = servers.configuration(moto_store, **TABLE, **settings)
    path, port, metrics_port = servers.write_configuration(config, tmp_path)
    env = {**servers.proxy_environment(moto_store), "PROXY_SECRET_KEYS": generate_key()}
    with servers.proxy_process(path, metrics_port, tmp_path, env, check="live"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/health/ready")
        assert json.loads(caught.value.read())["checks"]["database"].startswith("closed")
        client = Endpoint(f"http://localhost:{port}").boto3()
        assert code_of(lambda: client.list_objects_v2(Bucket=demo.PROXY_BUCKET)) == "ServiceUnavailable"
