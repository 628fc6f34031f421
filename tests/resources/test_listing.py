"""LIST as a principal sees it, held to a naive model over random stores, grants and page sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_proxy.access.policy import Reason
from delta_proxy.delta.views import RefusedView
from delta_proxy.delta.visibility import Visibility, WholeTable
from delta_proxy.resources.listing import ListedTable, list_page
from delta_proxy.s3.listing import ListQuery, delimited
from delta_proxy.s3.xml import ListResult
from delta_proxy.upstream.client import ListedObject, ListPage
from tests.helpers import result_of


@attrs.define
class SortedStore:
    """A store's LIST over a set of paths, with pages of at most `page` entries."""

    paths: Iterable[str]
    page: int = 3
    requests: int = 0

    async def list(
        self, prefix: str = "", *, delimiter: str = "", start_after: str = "", max_keys: int = 1000
    ) -> ListPage:
        self.requests += 1
        entries: dict[str, bool] = {}
        for path in sorted(self.paths):
            if path.startswith(prefix) and (not start_after or path > start_after):
                group = delimited(path, prefix, delimiter)
                entries[group if group is not None else path] = group is not None
        page = sorted(entries)[: min(self.page, max_keys)]
        objects = tuple(ListedObject(name, 1, '"e"', "t", "STANDARD") for name in page if not entries[name])
        return ListPage(objects, tuple(name for name in page if entries[name]), len(page) < len(entries))


@attrs.frozen
class Granted:
    """Knows exactly which paths are shown; unless `certain` it leaves common prefixes to the store.

    Those of `gone` are granted, but were removed, so the store may not have them any more.
    """

    paths: frozenset[str]
    certain: bool = True
    gone: frozenset[str] = frozenset()

    def served(self, listed: Sequence[ListedObject], unserved: frozenset[str]) -> Mapping[str, str]:
        return {item.path: item.etag for item in listed if item.path in self.paths - unserved}

    async def unserved(self, listed: Sequence[ListedObject]) -> frozenset[str]:
        return frozenset()

    def below(self, prefix: str) -> bool | None:
        if any(path.startswith(prefix) for path in self.paths):
            return True if self.certain else None
        return None if any(path.startswith(prefix) for path in self.gone) or not self.certain else False

    def next_after(self, path: str, prefix: str) -> str | None:
        return min((p for p in self.paths | self.gone if p > path and p.startswith(prefix)), default=None)

    def surely_after(self, path: str, prefix: str) -> bool:
        return any(p > path and p.startswith(prefix) for p in self.paths)


def listed(alias: str, store: SortedStore, visibility: Visibility) -> ListedTable:
    async def visible(prefix: str) -> Visibility:
        return visibility

    return ListedTable(alias, store, visible)


def table(alias: str, paths: Iterable[str], shown: Iterable[str] | None = None, page: int = 3) -> ListedTable:
    visibility = WholeTable() if shown is None else Granted(frozenset(shown))
    return listed(alias, SortedStore(paths, page), visibility)


def names(result: ListResult) -> list[str]:
    return sorted([key.key for key in result.keys] + list(result.prefixes))


def all_pages(tables: list[ListedTable], query: ListQuery, after: str | None = None) -> list[list[str]]:
    pages = []
    while True:
        result = result_of(list_page(tables, query, after))
        pages.append(names(result))
        if not result.truncated:
            return pages
        after = result.last


def test_the_root_of_the_bucket_shows_the_aliases_as_common_prefixes_without_asking_the_store() -> None:
    store = SortedStore(["a"])
    tables = [listed("t-b", store, WholeTable()), listed("t", store, WholeTable())]
    result = result_of(list_page(tables, ListQuery(2, delimiter="/"), None))
    assert result.prefixes == ("t-b/", "t/")
    assert store.requests == 0


def test_a_prefix_that_ends_within_an_alias_shows_that_alias() -> None:
    tables = [table("orders", ["a"]), table("trades", ["a"])]
    assert names(result_of(list_page(tables, ListQuery(2, prefix="tra", delimiter="/"), None))) == ["trades/"]


def test_an_object_at_the_root_of_the_table_is_listed_as_the_alias_with_a_slash() -> None:
    assert all_pages([table("t", ["", "a"])], ListQuery(2)) == [["t/", "t/a"]]


def test_no_keys_asked_none_given_and_not_truncated() -> None:
    result = result_of(list_page([table("t", ["a"])], ListQuery(2, max_keys=0), None))
    assert (names(result), result.truncated) == ([], False)


def test_a_million_denied_keys_before_a_granted_one_are_jumped_over() -> None:
    paths = [f"d/{number:04}" for number in range(2000)] + ["z"]
    store = SortedStore(paths, page=10)
    tables = [listed("t", store, Granted(frozenset({"z"})))]
    assert names(result_of(list_page(tables, ListQuery(2, max_keys=2), None))) == ["t/z"]
    assert store.requests < 5


def test_a_full_page_does_not_wait_for_another_of_the_store() -> None:
    store = SortedStore([f"{number:02}" for number in range(20)], page=10)
    tables = [listed("t", store, Granted(frozenset(f"{number:02}" for number in range(0, 20, 2))))]
    first = result_of(list_page(tables, ListQuery(2, max_keys=5), None))
    assert (names(first), first.truncated, first.last) == ([f"t/0{n}" for n in (0, 2, 4, 6, 8)], True, "t/08")
    assert store.requests == 1


def test_a_page_that_holds_little_is_filled_from_the_next_of_the_store() -> None:
    store = SortedStore([f"{number:02}" for number in range(20)], page=10)
    tables = [listed("t", store, Granted(frozenset({"00", "10", "12", "14", "16", "18"})))]
    assert len(names(result_of(list_page(tables, ListQuery(2, max_keys=8), None)))) == 6
    assert store.requests == 2


def test_a_listing_ends_where_nothing_more_is_granted_whatever_the_store_has() -> None:
    store = SortedStore([f"{number:02}" for number in range(20)], page=10)
    tables = [listed("t", store, Granted(frozenset({"00", "02", "04", "06"})))]
    result = result_of(list_page(tables, ListQuery(2, max_keys=8), None))
    assert (len(result.keys), result.truncated, store.requests) == (4, False, 1)


def test_a_common_prefix_is_hidden_when_nothing_granted_is_below() -> None:
    tables = [table("t", ["a/1", "b/1"], shown=["b/1"])]
    assert all_pages(tables, ListQuery(2, prefix="t/", delimiter="/")) == [["t/b/"]]


@pytest.mark.parametrize("certain", [True, False])
def test_the_store_is_asked_where_the_index_cannot_tell_what_is_below(certain: bool) -> None:
    visibility = Granted(frozenset({"b/1", "c/gone"}), certain=certain)
    store = SortedStore(["a/1", "b/0", "b/1", "c/1"])
    query = ListQuery(2, prefix="t/", delimiter="/")
    shown = all_pages([listed("t", store, visibility)], query)
    assert shown == ([["t/b/", "t/c/"]] if certain else [["t/b/"]])


def test_a_marker_inside_a_group_still_gives_the_rest_of_the_group() -> None:
    tables = [table("t", ["a/1", "a/2", "b"])]
    query = ListQuery(1, prefix="t/", delimiter="/")
    assert all_pages(tables, query, after="t/a/1") == [["t/a/", "t/b"]]


def test_a_marker_that_is_a_common_prefix_leaves_its_group_behind() -> None:
    tables = [table("t", ["a/1", "a/2", "b"])]
    query = ListQuery(1, prefix="t/", delimiter="/")
    assert all_pages(tables, query, after="t/a/") == [["t/b"]]


SEGMENT = st.text(alphabet="ab/-é", min_size=1, max_size=4)
TABLES = st.dictionaries(
    st.sampled_from(["t", "t-1", "u"]), st.sets(SEGMENT, max_size=8).map(sorted), min_size=1, max_size=3
)


@given(
    tables=TABLES,
    hidden=st.integers(0, 255),
    prefix=st.sampled_from(["", "t", "t/", "t/a", "t-1/", "x"]),
    delimiter=st.sampled_from(["", "/", "-", "a"]),
    max_keys=st.integers(1, 5),
    page=st.integers(1, 4),
)
def test_the_pages_together_are_what_the_model_gives(  # noqa: PLR0917 - drawn by hypothesis
    tables: dict[str, list[str]], hidden: int, prefix: str, delimiter: str, max_keys: int, page: int
) -> None:
    shown = {
        alias: [path for at, path in enumerate(paths) if not hidden >> at & 1]
        for alias, paths in tables.items()
    }
    listed_tables = [table(alias, paths, shown[alias], page) for alias, paths in tables.items()]
    expected = set()
    for alias, paths in shown.items():
        root_group = delimited(alias + "/", prefix, delimiter) if (alias + "/").startswith(prefix) else None
        if root_group is not None:
            expected.add(root_group)
            continue
        for key in (f"{alias}/{path}" for path in paths):
            if key.startswith(prefix):
                expected.add(delimited(key, prefix, delimiter) or key)
    pages = all_pages(listed_tables, ListQuery(2, prefix, delimiter, max_keys))
    assert [name for one in pages for name in one] == sorted(expected)
    assert all(len(one) == max_keys for one in pages[:-1])
    alone = [table(alias, paths, paths, page) for alias, paths in shown.items()]
    assert pages == all_pages(alone, ListQuery(2, prefix, delimiter, max_keys)), "hidden keys end a page"


NAMES = ("a", "b/1", "b/2", "c-1", "c-2", "d", "e/1", "f")


@given(
    kinds=st.lists(st.sampled_from(["shown", "hidden", "gone"]), min_size=1, max_size=len(NAMES)),
    delimiter=st.sampled_from(["", "/", "-"]),
    max_keys=st.integers(1, 3),
    page=st.integers(1, 3),
    after=st.sampled_from([None, *NAMES, "b/", "b/0", "b/11", "b/3", "c-", "c-0", "c-3", "e/", "e/2"]),
)
def test_no_page_from_wherever_tells_of_hidden_keys(
    kinds: list[str], delimiter: str, max_keys: int, page: int, after: str | None
) -> None:
    of = {kind: {name for name, each in zip(NAMES, kinds, strict=False) if each == kind} for kind in kinds}
    shown = frozenset(of.get("shown", ()))
    visibility = Granted(shown, gone=frozenset(of.get("gone", ())))
    query = ListQuery(2, "t/", delimiter, max_keys)
    beside, alone = (
        listed("t", SortedStore(those, page), visibility)
        for those in (shown | of.get("hidden", set()), shown)
    )
    start = None if after is None else f"t/{after}"
    assert all_pages([beside], query, start) == all_pages([alone], query, start)


@pytest.mark.parametrize("prefix", ["t/../other/", "t/a/../../", "t/./../", "t/../o"])
def test_nothing_is_listed_outside_the_table_and_the_store_is_not_asked(prefix: str) -> None:
    store = SortedStore(["../other/x", "./y", "a/../z", "plain"])
    result = result_of(list_page([listed("t", store, WholeTable())], ListQuery(2, prefix), None))
    assert (names(result), store.requests) == ([], 0)


@pytest.mark.parametrize("delimiter", ["", "/", "."])
def test_an_object_that_no_get_is_for_is_not_listed(delimiter: str) -> None:
    store = SortedStore(["../x", "a/../../z", "a/..b/.c", "a."])
    result = result_of(list_page([listed("t", store, WholeTable())], ListQuery(2, "t/", delimiter), None))
    shown = {delimited(key, "t/", delimiter) or key for key in ("t/a/..b/.c", "t/a.")}
    assert names(result) == sorted(shown)


def closed(alias: str) -> ListedTable:
    async def refuse(prefix: str) -> Visibility:
        raise RefusedView(Reason.UNKNOWN_FEATURE)

    return ListedTable(alias, SortedStore(["a"]), refuse)


def test_a_closed_table_holds_nothing_in_a_listing_of_several() -> None:
    assert all_pages([closed("c"), table("t", ["a"])], ListQuery(2)) == [["t/a"]]


def test_a_listing_of_a_closed_table_is_refused() -> None:
    with pytest.raises(RefusedView):
        all_pages([closed("c"), table("t", ["a"])], ListQuery(2, prefix="c/"))
