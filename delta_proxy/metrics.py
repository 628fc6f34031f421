"""What the proxy counts, for Prometheus.

Beside figures in Prometheus' own conventions (base units, `delta_s3_proxy_` prefix, bounded labels) stand the
five that users of the original know under their old names. Cost matters: label children are bound once and
kept.

With several workers the counters and histograms of each lie in files that the parent adds up
(prometheus-client's multiprocess mode); what depends on the time of asking each worker tells as `Moment`, and
the parent joins these.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
WINDOW_SECONDS = 60
MOST_USERS = 100_000
MOST_LABEL_VALUES = 64
OTHER = "other"
NONE = "none"
_PREFIX = "delta_s3_proxy_"
_SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
_CLASSES = ("other", "1xx", "2xx", "3xx", "4xx", "5xx")


class Clock(Protocol):
    """Where the time comes from: a Twisted reactor or its test clock."""

    def seconds(self) -> float:
        """Seconds since some fixed moment."""
        ...


class MinuteAverage:
    """Mean of the values of the last minute, in 60 one-second buckets."""

    __slots__ = ("_counts", "_seconds", "_sums")

    def __init__(self) -> None:
        self._seconds = [-1] * WINDOW_SECONDS
        self._counts = [0] * WINDOW_SECONDS
        self._sums = [0.0] * WINDOW_SECONDS

    def add(self, now: int, value: float) -> None:
        """Count a value at a second."""
        slot = now % WINDOW_SECONDS
        if self._seconds[slot] != now:
            self._seconds[slot] = now
            self._counts[slot] = 0
            self._sums[slot] = 0.0
        self._counts[slot] += 1
        self._sums[slot] += value

    def totals(self, now: int) -> tuple[float, int]:
        """The sum and the number of the values of the minute that ends at a second."""
        live = [slot for slot, second in enumerate(self._seconds) if now - WINDOW_SECONDS < second <= now]
        return sum(self._sums[slot] for slot in live), sum(self._counts[slot] for slot in live)


def _mean(totals: tuple[float, int]) -> float:
    total, count = totals
    return total / count if count else 0.0


class MinuteUsers:
    """Distinct users of the last minute.

    Holds at most `most`; a user beyond that is not counted until others leave.
    """

    __slots__ = ("_last", "_most")

    def __init__(self, most: int = MOST_USERS) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()
        self._most = most

    def seen(self, now: int, user: str) -> None:
        """Note that a user was here at a second."""
        last = self._last
        if last.get(user) == now:
            return
        if user not in last and len(last) >= self._most:
            self._forget(now)
            if len(last) >= self._most:
                return
        last[user] = now
        last.move_to_end(user)

    def count(self, now: int) -> int:
        """How many there were in the minute that ends at a second."""
        self._forget(now)
        return len(self._last)

    def names(self, now: int) -> tuple[str, ...]:
        """Who they were."""
        self._forget(now)
        return tuple(self._last)

    def _forget(self, now: int) -> None:
        while self._last and next(iter(self._last.values())) <= now - WINDOW_SECONDS:
            self._last.popitem(last=False)


class _Values:
    """The values a label may take: the first ones that come, then all others under one name."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int) -> None:
        self._known: set[str] = set()
        self._most = most

    def of(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


class _Table:
    """The index of one table: files, the moment it was last right, seconds its build took."""

    __slots__ = ("at", "build_seconds", "files")

    def __init__(self, files: int, at: float) -> None:
        self.files = files
        self.at = at
        self.build_seconds = 0.0


@attrs.frozen
class IndexFigures:
    """The index of one table: paths, seconds since it was last right, seconds of its last build."""

    files: int
    age: float
    build_seconds: float


@attrs.frozen
class Moment:
    """The figures of one process that depend on the time of asking.

    `users` of the last minute; `sizes` of answers and `replies`, seconds the store took, as sum and number.
    """

    users: tuple[str, ...] = ()
    sizes: tuple[float, int] = (0.0, 0)
    replies: tuple[float, int] = (0.0, 0)
    in_flight: int = 0
    connections: int = 0
    indexes: Mapping[str, IndexFigures] = attrs.field(factory=dict)


def joined(moments: Iterable[Moment]) -> Moment:
    """The figures of several processes as of one: a user counts once, an index is as old as the oldest."""
    parts = list(moments)
    indexes: dict[str, IndexFigures] = {}
    for name, index in (item for part in parts for item in part.indexes.items()):
        known = indexes.get(name, index)
        indexes[name] = IndexFigures(
            max(known.files, index.files),
            max(known.age, index.age),
            max(known.build_seconds, index.build_seconds),
        )
    return Moment(
        tuple(dict.fromkeys(user for part in parts for user in part.users)),
        _added(part.sizes for part in parts),
        _added(part.replies for part in parts),
        sum(part.in_flight for part in parts),
        sum(part.connections for part in parts),
        indexes,
    )


def _added(totals: Iterable[tuple[float, int]]) -> tuple[float, int]:
    pairs = list(totals)
    return sum(total for total, _ in pairs), sum(count for _, count in pairs)


class _Joined(Collector):
    """The figures of a moment."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._moment)


def render_workers(directory: Path, moments: Iterable[Moment]) -> bytes:
    """All figures of the workers in Prometheus' text format. Blocks: it reads their files in `directory`."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    registry.register(_Joined(joined(moments)))
    return generate_latest(registry)


class Metrics(Collector):
    """All figures of one process, in an own registry.

    `tables` are the aliases of the configuration; figures of any other alias are kept under "other".
    """

    def __init__(self, registry: CollectorRegistry, clock: Clock, *, tables: Iterable[str] = ()) -> None:
        self._registry = registry
        self._clock = clock
        self._users = MinuteUsers()
        self._sizes = MinuteAverage()
        self._replies = MinuteAverage()
        self._indexes: dict[str, _Table] = {}
        self._tables = frozenset(tables)
        self._operations = _Values(MOST_LABEL_VALUES)
        self._decisions = _Values(MOST_LABEL_VALUES)
        self._outcomes = _Values(MOST_LABEL_VALUES)
        self._kinds = _Values(MOST_LABEL_VALUES)
        self._bound: dict[tuple[str, str, int, str], Counter] = {}
        self._bound_durations: dict[str, Histogram] = {}
        self._bound_upstream: dict[tuple[str, str], Histogram] = {}
        self._in_flight: Callable[[], int] = int
        self._connections: Callable[[], int] = int
        self._declare(registry)
        registry.register(self)

    def _declare(self, registry: CollectorRegistry) -> None:
        self._served = Counter("queries_served", "Requests answered", registry=registry)
        self._proxied = Counter(
            "queries_proxied", "Requests whose bytes were streamed through the proxy", registry=registry
        )
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Requests answered",
            ("operation", "status", "decision", "table"),
            registry=registry,
        )
        self._durations = Histogram(
            f"{_PREFIX}request_duration_seconds",
            "Time from the end of a request's head to the end of its answer",
            ("operation",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._upstream = Histogram(
            f"{_PREFIX}upstream_duration_seconds",
            "Time from a request to the store to the head of its answer",
            ("operation", "outcome"),
            buckets=_SECONDS,
            registry=registry,
        )
        bodies = Counter(f"{_PREFIX}body_bytes", "Bytes of bodies", ("direction",), registry=registry)
        self._sent, self._received = bodies.labels("sent"), bodies.labels("received")
        self._redirects = Counter(
            f"{_PREFIX}redirects", "Answers that sent the client to the store", registry=registry
        )
        self._cache = Counter(
            f"{_PREFIX}cache_requests", "Questions to a cache", ("cache", "result"), registry=registry
        )
        self._builds = Counter(
            f"{_PREFIX}index_builds", "Builds of a table's index", ("table",), registry=registry
        )
        self._advances = Counter(
            f"{_PREFIX}index_advances", "Refreshes of a table's index", ("table",), registry=registry
        )

    def set_tables(self, tables: Iterable[str]) -> None:
        """Take over the aliases of a reloaded configuration; figures of the index of others are dropped."""
        self._tables = frozenset(tables)
        self._indexes = {table: state for table, state in self._indexes.items() if table in self._tables}
        self._bound.clear()

    def watch(self, *, in_flight: Callable[[], int], connections: Callable[[], int]) -> None:
        """Read requests in flight and open connections from these when the figures are rendered."""
        self._in_flight, self._connections = in_flight, connections

    def request_finished(  # noqa: PLR0917 - the order is the callers' contract
        self,
        operation: str,
        status: int,
        decision: str,
        table: str,
        seconds: float,
        bytes_sent: int,
        user: str,
        proxied: bool,
    ) -> None:
        """Count one answer: `seconds` it took, bytes of its body, and the principal's id, "" when unknown."""
        second = int(self._clock.seconds())
        self._served.inc()
        if proxied:
            self._proxied.inc()
        if user:
            self._users.seen(second, user)
        self._sizes.add(second, bytes_sent)
        if bytes_sent:
            self._sent.inc(bytes_sent)
        key = (operation, decision, status // 100, table)
        counter = self._bound.get(key)
        if counter is None:
            counter = self._bind(*key)
        counter.inc()
        durations = self._bound_durations.get(operation)
        if durations is None:
            durations = self._bind_duration(operation)
        durations.observe(seconds)

    def upstream_finished(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one answer of the store: seconds until its head, and a short word for how it ended."""
        self._replies.add(int(self._clock.seconds()), seconds)
        key = (operation, outcome)
        histogram = self._bound_upstream.get(key)
        if histogram is None:
            histogram = self._upstream.labels(
                self._operations.of(operation or NONE), self._outcomes.of(outcome or NONE)
            )
            if len(self._bound_upstream) < MOST_LABEL_VALUES**2:
                self._bound_upstream[key] = histogram
        histogram.observe(seconds)

    def bytes_received(self, count: int) -> None:
        """Count bytes of a request body."""
        self._received.inc(count)

    def redirected(self) -> None:
        """Count an answer that sent the client to the store."""
        self._redirects.inc()

    def cache_hit(self, kind: str) -> None:
        """Count a question that the named cache answered."""
        self._cache.labels(self._kinds.of(kind), "hit").inc()

    def cache_miss(self, kind: str) -> None:
        """Count a question that the named cache could not answer."""
        self._cache.labels(self._kinds.of(kind), "miss").inc()

    def index_built(self, table: str, files: int, seconds: float) -> None:
        """The index of a table was built: it holds `files` paths and took `seconds`."""
        name = self._table(table)
        state = self._indexes[name] = _Table(files, self._clock.seconds())
        state.build_seconds = seconds
        self._builds.labels(name).inc()

    def index_advanced(self, table: str, files: int) -> None:
        """The index of a table was found or made right by looking at the log: it holds `files` paths."""
        name = self._table(table)
        state = self._indexes.setdefault(name, _Table(files, self._clock.seconds()))
        state.files, state.at = files, self._clock.seconds()
        self._advances.labels(name).inc()

    def render(self) -> bytes:
        """All figures in Prometheus' text format; its content type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def moment(self) -> Moment:
        """The figures that depend on the time of asking."""
        now = self._clock.seconds()
        second = int(now)
        return Moment(
            self._users.names(second),
            self._sizes.totals(second),
            self._replies.totals(second),
            self._in_flight(),
            self._connections(),
            {
                table: IndexFigures(state.files, max(0.0, now - state.at), state.build_seconds)
                for table, state in self._indexes.items()
            },
        )

    def collect(self) -> Iterator[Metric]:
        """The same, as Prometheus takes them."""
        yield from _families(self.moment())

    def _bind(self, operation: str, decision: str, hundreds: int, table: str) -> Counter:
        status = _CLASSES[hundreds] if 0 < hundreds < len(_CLASSES) else OTHER
        counter = self._requests.labels(
            self._operations.of(operation or NONE),
            status,
            self._decisions.of(decision or NONE),
            self._table(table),
        )
        # A key that a client made up must not fill the memory: only what the labels can tell apart is kept.
        if (not table or table in self._tables) and len(self._bound) < MOST_LABEL_VALUES**2:
            self._bound[operation, decision, hundreds, table] = counter
        return counter

    def _bind_duration(self, operation: str) -> Histogram:
        histogram = self._durations.labels(self._operations.of(operation or NONE))
        if len(self._bound_durations) < MOST_LABEL_VALUES:
            self._bound_durations[operation] = histogram
        return histogram

    def _table(self, alias: str) -> str:
        return alias if alias in self._tables else OTHER if alias else NONE


def _families(moment: Moment) -> Iterator[Metric]:
    yield _gauge("unique_users_last_minute", "Distinct users of the last minute", len(moment.users))
    yield _gauge(
        "backend_reply_latency_seconds_avg",
        "Mean reply time of the store, last minute",
        _mean(moment.replies),
    )
    yield _gauge(
        "average_message_size_bytes", "Mean size of an answer's body, last minute", _mean(moment.sizes)
    )
    yield _gauge(f"{_PREFIX}requests_in_flight", "Requests not yet answered", moment.in_flight)
    yield _gauge(f"{_PREFIX}connections", "Open client connections", moment.connections)
    files = GaugeMetricFamily(f"{_PREFIX}index_files", "Paths in the index of a table", labels=("table",))
    age = GaugeMetricFamily(
        f"{_PREFIX}index_age_seconds", "Time since the index was last right", labels=("table",)
    )
    build = GaugeMetricFamily(
        f"{_PREFIX}index_build_seconds", "Time of the last build of the index", labels=("table",)
    )
    for table, index in sorted(moment.indexes.items()):
        files.add_metric((table,), index.files)
        age.add_metric((table,), index.age)
        build.add_metric((table,), index.build_seconds)
    yield from (files, age, build)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
