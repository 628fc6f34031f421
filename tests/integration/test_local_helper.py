"""The local helper between real clients, the proxy, and a store that verifies and gives the bytes."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.client
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import attrs
import boto3
import botocore.config
import botocore.exceptions
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from deltalake import DeltaTable

from delta_proxy import demo
from delta_proxy.access.keys import generate_key
from delta_proxy.demo import PROXY_BUCKET, running
from tests.access.oidc_issuer import AUDIENCE, Issuer, serving
from tests.ports import free_port
from tests.waiting import PATIENCE

from . import servers
from .conftest import TRADES
from .raw import quoted
from .servers import BUCKET, REGION, Link, Proxy, Store
from .test_streaming import settled

MIB = 1024 * 1024
SIZE = 32 * MIB
LARGE = 512 * MIB
KEY = "big/a b/ü=~+&/data"
READER, READER_SECRET = "READERKEY", "reader-secret"


@attrs.frozen
class Helper:
    """A running helper."""

    port: int
    pid: int
    log: pathlib.Path

    @property
    def url(self) -> str:
        """What clients take as their HTTP proxy."""
        return f"http://127.0.0.1:{self.port}"


@attrs.frozen
class Parts:
    """A proxy with one user, the link to its store, and a helper."""

    proxy: Proxy
    link: Link
    helper: Helper


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def helper(folder: pathlib.Path, *options: str, **environment: str) -> Iterator[Helper]:
    """The helper as its program, on a free port."""
    port = free_port()
    log = folder / "helper.log"
    command = [sys.executable, "-m", "delta_proxy.local_helper", "--port", str(port), *options]
    env = servers.clean_environment(PYTHONPATH=str(servers.ROOT), HOME=str(folder), **environment)
    with running(command, log=log, env=env, ready=lambda: listens(port), seconds=PATIENCE) as child:
        yield Helper(port, child.pid, log)


def body() -> bytes:
    """32 MiB in which no two blocks are alike."""
    return b"".join(hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(SIZE // 65536))


@pytest.fixture(scope="module")
def objects(gateway_store: Store) -> Store:
    """Objects of 32 and of 512 MiB; the latter is a hole in the store's directory."""
    assert gateway_store.folder is not None
    client = gateway_store.boto3()
    client.put_object(Bucket=BUCKET, Key=KEY, Body=body())
    client.put_object(Bucket=BUCKET, Key="big/hole", Body=b"")
    os.truncate(gateway_store.folder / BUCKET / "big" / "hole", LARGE)
    return gateway_store


@pytest.fixture(scope="module")
def parts(objects: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """A proxy that checks signatures and redirects, and a helper that signs for nobody."""
    folder = tmp_path_factory.mktemp("helper")
    with servers.link(objects) as link, started(link.endpoint, folder) as proxy, helper(folder) as one:
        yield Parts(proxy, link, one)


@contextlib.contextmanager
def started(store: servers.Endpoint, folder: pathlib.Path, **settings: Any) -> Iterator[Proxy]:
    """A proxy with one user before a store."""
    config = servers.configuration(
        store,
        tableMapping={"big": f"s3://{BUCKET}/big", TRADES: f"s3://{BUCKET}/{TRADES}"},
        users={"reader": {"accessKey": READER, "secretKey": READER_SECRET}},
        **settings,
    )
    with servers.proxy(store, config, folder) as proxy:
        yield attrs.evolve(proxy, access_key=READER, secret_key=READER_SECRET)


@contextlib.contextmanager
def identifying(store: Store, config: dict[str, Any], folder: pathlib.Path) -> Iterator[Proxy]:
    """A proxy that gives out sessions, whose tokens it seals with a key of its own."""
    path, port, metrics_port = servers.write_configuration(config, folder)
    env = {**servers.proxy_environment(store), "PROXY_SECRET_KEYS": generate_key()}
    with servers.proxy_process(path, metrics_port, folder, env) as child:
        yield Proxy(f"http://localhost:{port}", port=port, metrics_port=metrics_port, pid=child.pid)


@pytest.fixture
def fresh(parts: Parts, tmp_path: pathlib.Path) -> Iterator[Parts]:
    """The parts, with a helper that keeps no connection to the store yet."""
    with helper(tmp_path) as one:
        yield attrs.evolve(parts, helper=one)
    parts.link.cut_after = []


def client(proxy: Proxy, helper: Helper, *, token: str | None = None, **settings: Any) -> Any:
    """boto3 with the helper as its HTTP proxy."""
    defaults: dict[str, Any] = {
        "s3": {"addressing_style": "path"},
        "retries": {"total_max_attempts": 1},
        "proxies": {"http": helper.url},
    }
    config = botocore.config.Config(**(defaults | settings))
    return servers.session().client(
        "s3",
        endpoint_url=proxy.url,
        region_name=REGION,
        aws_access_key_id=proxy.access_key,
        aws_secret_access_key=proxy.secret_key,
        aws_session_token=token,
        config=config,
    )


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run curl, without a configuration of its own."""
    return subprocess.run(
        ["curl", "-q", "-sS", "--noproxy", "", "--max-time", f"{PATIENCE:g}", *arguments],
        capture_output=True,
        check=False,
        env=servers.clean_environment(),
    )


def presigned(parts: Parts) -> str:
    """A URL of the proxy that needs no other credentials."""
    url = client(parts.proxy, parts.helper, signature_version="s3v4").generate_presigned_url(
        "get_object", Params={"Bucket": PROXY_BUCKET, "Key": KEY}
    )
    return str(url)


def figures(proxy: Proxy) -> tuple[float, float]:
    """The proxy's counters: body bytes sent, and redirects."""
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    sent = re.search(r'^delta_s3_proxy_body_bytes_total\{direction="sent"\} (\S+)$', text, re.MULTILINE)
    redirects = re.search(r"^delta_s3_proxy_redirects_total (\S+)$", text, re.MULTILINE)
    assert sent is not None
    assert redirects is not None
    return float(sent[1]), float(redirects[1])


def test_boto3_reads_through_the_helper_bytes_that_do_not_come_through_the_proxy(parts: Parts) -> None:
    sent, redirects = figures(parts.proxy)
    answer = client(parts.proxy, parts.helper).get_object(Bucket=PROXY_BUCKET, Key=KEY)
    assert answer["Body"].read() == body()
    after, redirected = figures(parts.proxy)
    assert (redirected - redirects, after - sent < 1000) == (1, True)


def test_without_the_helper_boto3_gets_the_same_bytes_from_the_proxy(parts: Parts) -> None:
    sent, redirects = figures(parts.proxy)
    answer = parts.proxy.boto3().get_object(Bucket=PROXY_BUCKET, Key=KEY)
    assert answer["Body"].read() == body()
    after, redirected = figures(parts.proxy)
    assert (redirected - redirects, after - sent >= SIZE) == (0, True)


def test_boto3_downloads_in_parallel_ranges(parts: Parts, tmp_path: pathlib.Path) -> None:
    client(parts.proxy, parts.helper).download_file(PROXY_BUCKET, KEY, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == body()


def test_the_environment_is_enough_for_boto3(parts: Parts) -> None:
    program = (
        "import boto3, sys; "
        "print(len(boto3.client('s3').get_object(Bucket=sys.argv[1], Key=sys.argv[2])['Body'].read()))"
    )
    environment = servers.clean_environment(
        HTTP_PROXY=parts.helper.url,
        AWS_ENDPOINT_URL_S3=parts.proxy.url,
        AWS_ACCESS_KEY_ID=READER,
        AWS_SECRET_ACCESS_KEY=READER_SECRET,
        AWS_REGION=REGION,
    )
    _, redirects = figures(parts.proxy)
    environment.pop("NO_PROXY", None)
    environment.pop("no_proxy", None)
    command = [sys.executable, "-c", program, PROXY_BUCKET, KEY]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert int(output) == SIZE
    assert figures(parts.proxy)[1] == redirects + 1


def test_errors_and_heads_and_listings_of_the_proxy_are_its_own(parts: Parts) -> None:
    s3 = client(parts.proxy, parts.helper)
    assert s3.head_object(Bucket=PROXY_BUCKET, Key=KEY)["ContentLength"] == SIZE
    assert KEY in {each["Key"] for each in s3.list_objects_v2(Bucket=PROXY_BUCKET, Prefix="big/")["Contents"]}
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket=PROXY_BUCKET, Key="big/none")
    stranger = attrs.evolve(parts.proxy, secret_key="wrong")
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        client(stranger, parts.helper).get_object(Bucket=PROXY_BUCKET, Key=KEY)


def test_conditions_and_ranges_are_the_stores_to_answer(parts: Parts) -> None:
    s3 = client(parts.proxy, parts.helper)
    etag = s3.head_object(Bucket=PROXY_BUCKET, Key=KEY)["ETag"]
    ranged = s3.get_object(Bucket=PROXY_BUCKET, Key=KEY, Range="bytes=1000-1999", IfMatch=etag)
    assert ranged["Body"].read() == body()[1000:2000]
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        s3.get_object(Bucket=PROXY_BUCKET, Key=KEY, IfMatch='"another"')
    with pytest.raises(botocore.exceptions.ClientError, match="304"):
        s3.get_object(Bucket=PROXY_BUCKET, Key=KEY, IfNoneMatch=etag)


def test_deltalake_reads_a_table_whose_files_come_from_the_store(parts: Parts) -> None:
    options = parts.proxy.storage_options | {"proxy_url": parts.helper.url}
    _, redirects = figures(parts.proxy)
    table = DeltaTable(f"s3://{PROXY_BUCKET}/{TRADES}", storage_options=options)
    rows = table.to_pyarrow_table(filters=[("MIC", "=", "XLON")])
    assert rows.num_rows == demo.expected("XLON").rows
    assert figures(parts.proxy)[1] > redirects


def test_a_slow_reader_stops_the_store_and_costs_the_helper_little_memory(parts: Parts) -> None:
    def resident() -> int:
        lines = pathlib.Path(f"/proc/{parts.helper.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    reader = client(parts.proxy, parts.helper).get_object(Bucket=PROXY_BUCKET, Key="big/hole")["Body"]
    before, passed = resident(), parts.link.passed
    received = len(reader.read(MIB))
    stalled_at, most = settled(lambda: parts.link.passed) - passed, resident()
    while piece := reader.read(4 * MIB):
        received += len(piece)
        most = max(most, resident())
    assert received == LARGE
    assert stalled_at < 64 * MIB
    assert most - before < 24 * MIB


def test_a_body_that_the_store_cuts_is_resumed_without_the_client_noticing(fresh: Parts) -> None:
    fresh.link.cut_after = [5 * MIB, 7 * MIB]
    answer = client(fresh.proxy, fresh.helper).get_object(Bucket=PROXY_BUCKET, Key=KEY)
    assert hashlib.sha256(answer["Body"].read()).digest() == hashlib.sha256(body()).digest()
    assert fresh.link.cut_after == []


def test_a_body_that_cannot_be_resumed_is_an_error_for_boto3_and_curl(fresh: Parts) -> None:
    fresh.link.cut_after = [2 * MIB] + [200] * 50
    answer = client(fresh.proxy, fresh.helper).get_object(Bucket=PROXY_BUCKET, Key=KEY)
    with pytest.raises((botocore.exceptions.BotoCoreError, OSError)):
        answer["Body"].read()
    fresh.link.cut_after = [2 * MIB] + [200] * 50
    result = curl("--proxy", fresh.helper.url, presigned(fresh))
    assert result.returncode in {18, 56}
    assert len(result.stdout) < SIZE


def test_a_store_that_is_gone_is_503(tmp_path: pathlib.Path) -> None:
    nowhere = servers.Endpoint(f"http://127.0.0.1:{free_port()}")
    with started(nowhere, tmp_path) as proxy, helper(tmp_path) as one:
        with pytest.raises(botocore.exceptions.ClientError, match="ServiceUnavailable"):
            client(proxy, one).get_object(Bucket=PROXY_BUCKET, Key=KEY)
        assert figures(proxy)[1] == 1


def test_a_presigned_url_of_the_proxy_is_followed_for_curl_without_dash_l(parts: Parts) -> None:
    assert curl("--proxy", parts.helper.url, "-f", presigned(parts)).stdout == body()


def test_curl_reaches_the_proxy_through_a_tunnel(parts: Parts) -> None:
    result = curl("--proxy", parts.helper.url, "--proxytunnel", f"{parts.proxy.url}{quoted(KEY)}")
    assert b"<Code>AccessDenied</Code>" in result.stdout


def test_boto3_uploads_through_the_helper_with_its_signature_valid(objects: Store, parts: Parts) -> None:
    direct = Proxy(objects.url, access_key=objects.access_key, secret_key=objects.secret_key)
    s3 = client(direct, parts.helper)
    s3.put_object(Bucket=BUCKET, Key="up/ü one", Body=body())
    assert objects.boto3().get_object(Bucket=BUCKET, Key="up/ü one")["Body"].read() == body()
    s3.delete_object(Bucket=BUCKET, Key="up/ü one")
    assert "Contents" not in objects.boto3().list_objects_v2(Bucket=BUCKET, Prefix="up/")


def test_a_tool_without_credentials_reads_when_the_helper_signs(parts: Parts, tmp_path: pathlib.Path) -> None:
    url = f"{parts.proxy.url}{quoted(KEY)}"
    assert b"<Code>AccessDenied</Code>" in curl("--proxy", parts.helper.url, url).stdout
    options = ("--sign", "--endpoint", parts.proxy.url)
    credentials = {"AWS_ACCESS_KEY_ID": READER, "AWS_SECRET_ACCESS_KEY": READER_SECRET}
    with helper(tmp_path, *options, **credentials) as signing:
        assert curl("--proxy", signing.url, "-f", url).stdout == body()
        listing = curl("--proxy", signing.url, f"{parts.proxy.url}/{PROXY_BUCKET}?list-type=2&prefix=big/")
        assert b"<ListBucketResult" in listing.stdout
        foreign = curl("--proxy", signing.url, "-H", "Origin: http://elsewhere.example", url)
        assert b"<Code>AccessDenied</Code>" in foreign.stdout
        assert READER_SECRET not in signing.log.read_text()


def test_a_session_reads_through_the_helper_bytes_that_come_from_the_store(
    objects: Store, tmp_path: pathlib.Path
) -> None:
    with serving(Issuer()) as issuer:
        settings = {
            "sts": {"issuer": issuer.url, "audience": AUDIENCE},
            "tableMapping": {"big": f"s3://{BUCKET}/big"},
        }
        config = servers.configuration(objects, **settings)
        with identifying(objects, config, tmp_path) as proxy, helper(tmp_path) as one:
            sts = boto3.session.Session("x", "x", region_name=REGION).client("sts", endpoint_url=proxy.url)
            given = sts.assume_role_with_web_identity(
                RoleArn="arn:aws:iam::123456789012:role/reader",
                RoleSessionName="test",
                WebIdentityToken=issuer.token(issuer.claims(time.time())),
            )["Credentials"]
            session = attrs.evolve(
                proxy, access_key=given["AccessKeyId"], secret_key=given["SecretAccessKey"]
            )
            token = given["SessionToken"]
            answer = client(session, one, token=token).get_object(Bucket=PROXY_BUCKET, Key=KEY)
            assert answer["Body"].read() == body()
            assert figures(proxy)[1] == 1
            followed = client(session, one, token=token, user_agent="polars/0.55.1", proxies=None)
            assert followed.get_object(Bucket=PROXY_BUCKET, Key=KEY)["Body"].read() == body()
            assert figures(proxy)[1] == 1


@pytest.fixture
def certificate(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = tmp_path / "server.pem", tmp_path / "server.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, private


def test_https_is_read_with_an_authority_that_the_client_trusts(
    objects: Store, tmp_path: pathlib.Path, certificate: tuple[pathlib.Path, pathlib.Path]
) -> None:
    pem, private = certificate
    tls = {"certificate": str(pem), "privateKey": str(private)}
    with started(objects, tmp_path, tls=tls, interface="127.0.0.1") as plain:
        endpoint = plain.url.replace("http://", "https://")
        options = ("--sign", "--mitm", "--endpoint", endpoint, "--ca-directory", str(tmp_path / "ca"))
        credentials = {"AWS_ACCESS_KEY_ID": READER, "AWS_SECRET_ACCESS_KEY": READER_SECRET}
        with helper(tmp_path, *options, SSL_CERT_FILE=str(pem), **credentials) as one:
            trusted = str(tmp_path / "ca" / "ca.pem")
            url = f"{endpoint}{quoted(KEY)}"
            sent, redirects = figures(plain)
            result = curl("--proxy", one.url, "--cacert", trusted, "-f", url, url)
            assert result.stdout == body() * 2
            after, redirected = figures(plain)
            assert (redirected - redirects, after - sent < 1000) == (2, True)
            assert curl("--proxy", one.url, "--cacert", str(pem), url).returncode == 60
    assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600


def test_an_https_endpoint_that_was_not_named_is_tunnelled(
    objects: Store, tmp_path: pathlib.Path, certificate: tuple[pathlib.Path, pathlib.Path], parts: Parts
) -> None:
    pem, private = certificate
    tls = {"certificate": str(pem), "privateKey": str(private)}
    with started(objects, tmp_path, tls=tls, interface="127.0.0.1") as plain:
        url = plain.url.replace("http://", "https://") + quoted(KEY)
        result = curl("--proxy", parts.helper.url, "--cacert", str(pem), url)
        assert b"<Code>AccessDenied</Code>" in result.stdout


def test_a_wrong_certificate_of_the_proxy_is_503(
    objects: Store, tmp_path: pathlib.Path, certificate: tuple[pathlib.Path, pathlib.Path]
) -> None:
    pem, private = certificate
    tls = {"certificate": str(pem), "privateKey": str(private)}
    with started(objects, tmp_path, tls=tls, interface="127.0.0.1") as plain:
        endpoint = plain.url.replace("http://", "https://")
        options = ("--mitm", "--endpoint", endpoint, "--ca-directory", str(tmp_path / "ca"))
        with helper(tmp_path, *options) as one:
            result = curl(
                "--proxy", one.url, "--cacert", str(tmp_path / "ca" / "ca.pem"), f"{endpoint}{quoted(KEY)}"
            )
            assert b"<Code>ServiceUnavailable</Code>" in result.stdout


def test_it_is_loopback_that_listens(parts: Parts) -> None:
    rows = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {row.split()[1] for row in rows if row.split()[3] == "0A"}
    assert {each for each in listening if each.endswith(f":{parts.helper.port:04X}")} == {
        f"0100007F:{parts.helper.port:04X}"
    }


def test_it_ends_at_once_when_asked(tmp_path: pathlib.Path) -> None:
    with helper(tmp_path) as one:
        connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=PATIENCE)
        connection.request("GET", "/not-for-a-proxy")
        assert connection.getresponse().status == 400
        servers.stop(one.pid)
        os.waitpid(one.pid, 0)
        connection.close()
