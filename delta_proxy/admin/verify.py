"""`verify`: whether somebody reads through the running proxy just what is granted of the table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import attrs
import botocore.session
import click
import deltalake

from delta_proxy.access.partitions import PartitionTuple
from delta_proxy.access.policy import Allowed, Grant, decide
from delta_proxy.admin.desk import Desk, desk_command
from delta_proxy.admin.output import Steps
from delta_proxy.admin.people import Keys, find_person
from delta_proxy.admin.readings import Files, Place, Rows, files_of, reason
from delta_proxy.config import AuthMode, Config, LogView
from delta_proxy.upstream.origin import DEFAULT_REGION
from delta_proxy.upstream.stores import AddressingStyle, TableLocation

_SHOWN: Final = 20
# deltalake's own ten take minutes where nobody answers.
_RETRIES: Final = "3"
_EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::", "127.0.0.1", "::1"})  # noqa: S104 - names, not bound


@click.command()
@click.option(
    "--user", "name", help="A user's name, or oidc:SUBJECT; not needed where everyone is anonymous."
)
@click.option("--group", "groups", multiple=True, help="A group of the OIDC subject; may be repeated.")
@click.option("--table", "alias", required=True, help="The alias of the table.")
@click.option("--endpoint", help="Where the proxy answers, if not at its port of this machine.")
@click.option("--versions", type=click.IntRange(1), help="Look at this many of the newest versions only.")
@desk_command
def verify(
    desk: Desk,
    *,
    name: str | None,
    groups: tuple[str, ...],
    alias: str,
    endpoint: str | None,
    versions: int | None,
) -> None:
    """Read a table through the running proxy as a user, and directly, and compare.

    Compared are the files of every version that can be read, and the rows of every granted partition of the
    newest. Where both are the same the exit status is 0, else 1.
    """
    config, now = desk.config, desk.now()
    if alias not in config.table_mapping:
        raise click.ClickException(f"no table {alias} in tableMapping")
    if config.default_auth_mode is AuthMode.FORWARD:
        raise click.ClickException(
            "defaultAuthMode is forward: only the store knows what its users sign with"
        )
    person = find_person(config, desk.snapshot(), name, groups, now)
    if person.keys is None:
        raise click.ClickException(f"{person.principal.id} is disabled and can read nothing")
    grant = config.policy.grant(person.principal, alias)
    if config.log_view is not LogView.FILTERED and not grant.is_everything:
        raise click.ClickException("logView is passthrough: the log names files that are not granted")
    pair = Pair(
        direct_place(config.table_mapping[alias]),
        proxied_place(config, alias, person.keys, endpoint),
        grant,
        now,
        admitted=config.policy.admits(person.principal, alias),
    )
    with desk.output.progress("versions", 0) as steps:
        report = pair.compare(steps, versions)
    _print(desk, person.principal.id, alias, report)
    if report.differences:
        raise click.exceptions.Exit(1)


@attrs.define
class Report:
    """What was compared, and what was not the same."""

    versions: int = 0
    oldest: int | None = None
    newest: int | None = None
    files: int = 0
    partitions: int = 0
    rows: int = 0
    differences: list[str] = attrs.field(factory=list)


@attrs.frozen
class Pair:
    """The table directly and through the proxy, and what is granted of it at `now`."""

    direct: Place
    proxied: Place
    grant: Grant
    now: datetime
    admitted: bool = True

    def compare(self, steps: Steps, limit: int | None) -> Report:
        """Everything, newest first. ClickException when the table cannot be read directly."""
        report = Report()
        try:
            newest = self.direct.open()
        except Exception as error:  # noqa: BLE001 - deltalake raises many kinds
            raise click.ClickException(f"the table cannot be read directly: {reason(error)}") from None
        if not self.admitted:
            self._closed(report)
            return report
        report.newest = newest.version()
        count = report.newest + 1 if limit is None else min(limit, report.newest + 1)
        steps.more(count)
        for version in range(report.newest, report.newest - count, -1):
            steps.next(f"version {version}")
            if not self._version(report, version):
                break
            steps.done()
        self._rows(report, newest, steps)
        return report

    def _closed(self, report: Report) -> None:
        try:
            self.proxied.open()
        except Exception:  # noqa: BLE001 - which is what is wanted
            return
        report.differences.append("the table is closed to this user, but the proxy opens it")

    def _version(self, report: Report, version: int) -> bool:
        """Compare one version; False when it cannot be read directly: what is older is gone too."""
        direct, proxied = _opened(self.direct, version), _opened(self.proxied, version)
        if isinstance(direct, str):
            if not isinstance(proxied, str):
                report.differences.append(f"version {version} is readable through the proxy only")
            return False
        report.versions += 1
        report.oldest = version
        if isinstance(proxied, str):
            report.differences.append(f"version {version} cannot be read through the proxy: {proxied}")
            return True
        granted, seen = self.granted(files_of(direct)), files_of(proxied)
        report.files += len(seen)
        report.differences += _compared(version, granted, seen)
        return True

    def granted(self, files: Files) -> Files:
        """The files that the grant allows."""
        return {
            path: values
            for path, values in files.items()
            if self.grant.is_everything or isinstance(decide(self.grant, values, self.now), Allowed)
        }

    def _rows(self, report: Report, newest: deltalake.DeltaTable, steps: Steps) -> None:
        """Compare the rows of the newest version, partition by partition."""
        through = _opened(self.proxied, newest.version())
        if isinstance(through, str):
            return
        partitions = list(dict.fromkeys(self.granted(files_of(newest)).values()))
        steps.more(len(partitions))
        directly, proxied = Rows.of(newest), Rows.of(through)
        for partition in partitions:
            steps.next(_named(partition))
            self._partition(report, partition, directly, proxied)
            steps.done()
        report.partitions = len(partitions)
        if (total := proxied.total()) != report.rows:
            report.differences.append(f"the proxy shows {total} rows, of which {report.rows} are granted")

    def _partition(self, report: Report, partition: PartitionTuple, directly: Rows, proxied: Rows) -> None:
        expected = directly.within(partition)
        try:
            found = proxied.within(partition)
        except Exception as error:  # noqa: BLE001 - a refusal of one file must not hide the others
            report.differences.append(
                f"{_named(partition)}: cannot be read through the proxy: {reason(error)}"
            )
            return
        report.rows += found
        if found != expected:
            report.differences.append(
                f"{_named(partition)}: {found} rows through the proxy, {expected} directly"
            )


def direct_place(location: TableLocation) -> Place:
    """The table in its store, with the credentials of botocore's chain. Raises ClickException."""
    session = botocore.session.Session(profile=location.store.profile)
    found = session.get_credentials()
    if found is None:
        raise click.ClickException("no credentials for the store: botocore's chain has none")
    keys = found.get_frozen_credentials()
    region = location.store.region or session.get_config_variable("region") or DEFAULT_REGION
    style = location.store.addressing_style
    virtual = style is AddressingStyle.VIRTUAL or (
        style is AddressingStyle.AUTO and location.store.endpoint is None
    )
    options = _options(Keys(keys.access_key, keys.secret_key, keys.token), region, location.store.endpoint)
    return Place(location.uri, options | {"aws_virtual_hosted_style_request": str(virtual).lower()})


def proxied_place(config: Config, alias: str, keys: Keys, endpoint: str | None) -> Place:
    """The table through the proxy that runs with this configuration."""
    host = "localhost" if config.interface in _EVERYWHERE else config.interface
    scheme = "http" if config.tls is None else "https"
    url = endpoint or f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"
    options = _options(keys, config.storage.region or DEFAULT_REGION, url)
    return Place(f"s3://{config.bucket}/{alias}", options)


def _options(keys: Keys, region: str, endpoint: str | None) -> dict[str, str]:
    options = {
        "aws_access_key_id": keys.access_key,
        "aws_secret_access_key": keys.secret_key,
        "aws_region": region,
        "max_retries": _RETRIES,
    }
    if keys.session_token:
        options["aws_session_token"] = keys.session_token
    if endpoint is not None:
        options |= {"aws_endpoint_url": endpoint, "aws_allow_http": "true"}
    return options


def _opened(place: Place, version: int) -> deltalake.DeltaTable | str:
    """The table at a version, or why it cannot be read."""
    try:
        return place.open(version)
    except Exception as error:  # noqa: BLE001 - deltalake raises many kinds
        return reason(error)


def _compared(version: int, granted: Files, seen: Files) -> Iterator[str]:
    for path in sorted(granted.keys() - seen.keys()):
        yield f"version {version}: {path} is granted, but not seen through the proxy"
    for path in sorted(seen.keys() - granted.keys()):
        yield f"version {version}: {path} is seen through the proxy, but not granted"
    for path in sorted(seen.keys() & granted.keys()):
        if seen[path] != granted[path]:
            yield f"version {version}: {path} has other partition values through the proxy"


def _named(partition: PartitionTuple) -> str:
    return "/".join(f"{name}={value}" for name, value in partition.values) or "the table"


def _print(desk: Desk, name: str, alias: str, report: Report) -> None:
    if desk.output.as_json:
        record = {"principal": name, "table": alias, "same": not report.differences}
        desk.output.document(record | attrs.asdict(report))
        return
    for difference in report.differences[:_SHOWN]:
        click.echo(f"different: {difference}")
    if len(report.differences) > _SHOWN:
        click.echo(f"and {len(report.differences) - _SHOWN} more (--json shows all)")
    if report.newest is None:
        seen = "the table is closed to this user"
    else:
        seen = (
            f"{report.versions} versions ({report.oldest} to {report.newest}), {report.files} files, "
            f"{report.partitions} partitions, {report.rows} rows of the newest"
        )
    click.echo(f"{name} on {alias}: {seen}: {'DIFFERENT' if report.differences else 'the same'}")
