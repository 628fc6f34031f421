"""The documentation names what there is, and all of it."""

from __future__ import annotations

import pathlib
import re

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock

from delta_proxy.config import CacheConfig, Config, Database, Group, Limits, Sts, Tls, User
from delta_proxy.metrics import Metrics
from delta_proxy.structuring import fields_of
from delta_proxy.upstream.stores import StoreConfig

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATING = (ROOT / "docs" / "operating.md").read_text()


@pytest.mark.parametrize("cls", [Config, Tls, CacheConfig, Limits, User, Group, Database, Sts, StoreConfig])
def test_every_key_of_the_configuration_is_documented(cls: type) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [key for key in fields_of(cls) if not re.search(rf"`{key}`|\"{key}\"", text)]
    assert missing == []


def test_the_limits_are_documented_with_their_defaults() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", OPERATING, re.MULTILINE))
    assert told == {key: str(field.default) for key, field in fields_of(Limits).items()}


def test_every_metric_is_documented() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, Clock(), tables=["t"])
    metrics.index_built("t", 1, 1.0)
    made = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()
    }
    told = re.findall(
        r"^\| `((?:delta_s3_proxy|queries|unique|backend|average)\w+)` \|", OPERATING, re.MULTILINE
    )
    assert sorted(told) == sorted(made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_page_and_a_heading(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
