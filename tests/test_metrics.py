from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock

from delta_proxy.metrics import MOST_LABEL_VALUES, Metrics, MinuteUsers


def metrics(clock: Clock | None = None) -> Metrics:
    return Metrics(CollectorRegistry(), Clock() if clock is None else clock, tables=["trades", "quotes"])


def answer(
    figures: Metrics,
    *,
    operation: str = "GetObject",
    status: int = 200,
    decision: str = "allowed",
    table: str = "trades",
    seconds: float = 0.25,
    size: int = 100,
    user: str = "ann",
    proxied: bool = False,
) -> None:
    figures.request_finished(operation, status, decision, table, seconds, size, user, proxied)


def value(figures: Metrics, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(figures.render().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def label_values(figures: Metrics, name: str, label: str) -> set[str]:
    return {
        sample.labels[label]
        for family in text_string_to_metric_families(figures.render().decode())
        for sample in family.samples
        if sample.name == name
    }


def test_the_five_figures_of_the_original_are_there_before_the_first_request() -> None:
    figures = metrics()
    for name in (
        "queries_served_total",
        "queries_proxied_total",
        "unique_users_last_minute",
        "backend_reply_latency_seconds_avg",
        "average_message_size_bytes",
    ):
        assert value(figures, name) == 0.0


def test_every_answer_is_served_and_a_streamed_one_is_proxied() -> None:
    figures = metrics()
    answer(figures)
    answer(figures, proxied=True)
    assert value(figures, "queries_served_total") == 2
    assert value(figures, "queries_proxied_total") == 1


def test_a_user_counts_once_and_for_one_minute_after_the_last_request() -> None:
    clock = Clock()
    figures = metrics(clock)
    answer(figures, user="ann")
    clock.advance(30)
    answer(figures, user="ann")
    answer(figures, user="bob")
    assert value(figures, "unique_users_last_minute") == 2
    clock.advance(59)
    assert value(figures, "unique_users_last_minute") == 2
    clock.advance(1)
    assert value(figures, "unique_users_last_minute") == 0


def test_a_request_without_a_known_user_counts_no_user() -> None:
    figures = metrics()
    answer(figures, user="")
    assert value(figures, "unique_users_last_minute") == 0


def test_users_beyond_the_cap_are_counted_only_when_others_have_left() -> None:
    users = MinuteUsers(most=2)
    for name in ("ann", "bob", "eve"):
        users.seen(0, name)
    assert users.count(0) == 2
    users.seen(60, "eve")
    assert users.count(60) == 1


def test_averages_cover_the_last_minute_only() -> None:
    clock = Clock()
    figures = metrics(clock)
    answer(figures, size=100)
    figures.upstream_finished("GetObject", "ok", 0.4)
    clock.advance(30)
    answer(figures, size=300)
    figures.upstream_finished("GetObject", "ok", 0.2)
    assert value(figures, "average_message_size_bytes") == 200
    assert round(value(figures, "backend_reply_latency_seconds_avg") or 0, 6) == 0.3
    clock.advance(30)
    assert value(figures, "average_message_size_bytes") == 300
    clock.advance(3600)
    assert value(figures, "average_message_size_bytes") == 0
    assert value(figures, "backend_reply_latency_seconds_avg") == 0


def test_answers_are_counted_by_operation_status_class_decision_and_table() -> None:
    figures = metrics()
    answer(figures, status=206)
    answer(figures, status=403, decision="not_granted")
    name = "delta_s3_proxy_requests_total"
    assert value(figures, name, operation="GetObject", status="2xx", decision="allowed", table="trades") == 1
    assert (
        value(figures, name, operation="GetObject", status="4xx", decision="not_granted", table="trades") == 1
    )


def test_durations_are_histograms_by_operation() -> None:
    figures = metrics()
    answer(figures, seconds=0.2)
    figures.upstream_finished("GetObject", "ok", 0.2)
    assert value(figures, "delta_s3_proxy_request_duration_seconds_count", operation="GetObject") == 1
    bucket = "delta_s3_proxy_upstream_duration_seconds_bucket"
    assert value(figures, bucket, operation="GetObject", outcome="ok", le="0.25") == 1
    assert value(figures, bucket, operation="GetObject", outcome="ok", le="0.1") == 0


def test_an_alias_that_is_not_configured_never_becomes_a_label() -> None:
    figures = metrics()
    for number in range(1000):
        answer(figures, table=f"guess{number}")
        figures.index_built(f"guess{number}", 1, 1.0)
    answer(figures, table="")
    assert label_values(figures, "delta_s3_proxy_requests_total", "table") == {"other", "none"}
    assert label_values(figures, "delta_s3_proxy_index_files", "table") == {"other"}


def test_the_values_of_every_other_label_are_bounded() -> None:
    figures = metrics()
    for number in range(500):
        answer(figures, operation=f"op{number}", decision=f"why{number}", status=number)
        figures.upstream_finished(f"op{number}", f"end{number}", 1.0)
        figures.cache_hit(f"kind{number}")
    for label in ("operation", "decision"):
        assert len(label_values(figures, "delta_s3_proxy_requests_total", label)) <= MOST_LABEL_VALUES + 1
    assert len(label_values(figures, "delta_s3_proxy_requests_total", "status")) <= 6
    outcomes = label_values(figures, "delta_s3_proxy_upstream_duration_seconds_count", "outcome")
    assert len(outcomes) <= MOST_LABEL_VALUES + 1
    caches = label_values(figures, "delta_s3_proxy_cache_requests_total", "cache")
    assert len(caches) <= MOST_LABEL_VALUES + 1


def test_tables_of_a_reloaded_configuration_become_labels_and_removed_ones_leave_the_index_figures() -> None:
    figures = metrics()
    figures.index_built("trades", 5, 1.0)
    figures.set_tables(["orders"])
    answer(figures, table="orders")
    assert "orders" in label_values(figures, "delta_s3_proxy_requests_total", "table")
    assert label_values(figures, "delta_s3_proxy_index_files", "table") == set()


def test_bytes_are_counted_by_direction() -> None:
    figures = metrics()
    answer(figures, size=7)
    figures.bytes_received(11)
    assert value(figures, "delta_s3_proxy_body_bytes_total", direction="sent") == 7
    assert value(figures, "delta_s3_proxy_body_bytes_total", direction="received") == 11


def test_the_index_shows_its_files_its_age_and_the_time_of_its_last_build() -> None:
    clock = Clock()
    figures = metrics(clock)
    figures.index_built("trades", 1000, 2.5)
    clock.advance(40)
    assert value(figures, "delta_s3_proxy_index_files", table="trades") == 1000
    assert value(figures, "delta_s3_proxy_index_age_seconds", table="trades") == 40
    assert value(figures, "delta_s3_proxy_index_build_seconds", table="trades") == 2.5
    figures.index_advanced("trades", 1001)
    assert value(figures, "delta_s3_proxy_index_files", table="trades") == 1001
    assert value(figures, "delta_s3_proxy_index_age_seconds", table="trades") == 0
    assert value(figures, "delta_s3_proxy_index_build_seconds", table="trades") == 2.5


def test_caches_count_hits_and_misses_and_redirects_are_counted() -> None:
    figures = metrics()
    figures.cache_hit("metadata")
    figures.cache_miss("metadata")
    figures.cache_miss("metadata")
    figures.redirected()
    assert value(figures, "delta_s3_proxy_cache_requests_total", cache="metadata", result="hit") == 1
    assert value(figures, "delta_s3_proxy_cache_requests_total", cache="metadata", result="miss") == 2
    assert value(figures, "delta_s3_proxy_redirects_total") == 1


def test_requests_in_flight_and_connections_are_read_when_asked() -> None:
    figures = metrics()
    open_now = [3]
    figures.watch(in_flight=lambda: open_now[0], connections=lambda: 9)
    assert value(figures, "delta_s3_proxy_requests_in_flight") == 3
    open_now[0] = 1
    assert value(figures, "delta_s3_proxy_requests_in_flight") == 1
    assert value(figures, "delta_s3_proxy_connections") == 9


def test_counting_an_answer_binds_its_labels_only_once() -> None:
    figures = metrics()
    answer(figures)
    bound = dict(figures._bound)
    for _ in range(100):
        answer(figures)
    assert figures._bound == bound
    assert len(bound) == 1
