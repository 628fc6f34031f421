"""Random logs and random grants through the whole proxy: what deltalake reads is what the grant leaves."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from urllib.parse import unquote

import deltalake
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from delta_proxy.access.partitions import PartitionTuple
from tests.memory import MemoryProxy

from .tables import grant
from .view.support import Model
from .view.test_property import STEPS, VALUES, Step, write_log


def check(steps: Sequence[Step], granted: set[str | None], column: str) -> None:
    """Every version of the served table holds the files whose every value the grant allows."""
    # To a grant, as to Delta, the empty string is null.
    wanted = {value or None for value in granted}

    def permits(values: PartitionTuple) -> bool:
        return (dict(values.values)[column] or None) in wanted

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        log = folder / "table" / "_delta_log"
        write_log(log, steps)
        model = Model.of(log)
        made = MemoryProxy(folder / "cache", {"t": grant({column: sorted(wanted, key=json.dumps)})})
        made.upload(folder / "table", "t")
        view = made.copy("t", folder / "view")
        for version in model.live:
            table = deltalake.DeltaTable(view, version=version)
            read = {unquote(path) for path in table.get_add_actions().column("path").to_pylist()}
            assert read == model.visible(permits, version)


# The quick run leaves the other part out.
@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_deltalake_reads_through_the_proxy_what_the_grant_leaves_of_a_table(
    part: int, cases: Callable[[int], int]
) -> None:
    @seed(part)
    @settings(max_examples=cases(15), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        steps=st.lists(STEPS, min_size=1, max_size=6),
        granted=st.sets(st.sampled_from(VALUES)),
        column=st.sampled_from(("p", "q")),
    )
    def holds(steps: list[Step], granted: set[str | None], column: str) -> None:
        check(steps, granted, column)

    holds()
