"""The proxy with one rule removed: its modules from altered source, beside the real ones."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType

from .memory import Parts

# In the order of their imports: whoever uses an altered module must be loaded anew after it.
_CHAIN = (
    "delta_proxy.delta.view_names",
    "delta_proxy.delta.masks",
    "delta_proxy.delta.view_history",
    "delta_proxy.delta.ahead",
    "delta_proxy.delta.views",
    "delta_proxy.delta.visibility",
    "delta_proxy.delta.gate",
    "delta_proxy.resources.services",
    "delta_proxy.resources.base",
    "delta_proxy.resources.listing",
    "delta_proxy.resources.bucket",
    "delta_proxy.resources.object",
    "delta_proxy.resources.root",
)


# Read when the tests are: a checkout that changes while they run must not mix with what is loaded.
_SOURCES = {name: inspect.getsource(importlib.import_module(name)) for name in _CHAIN}


def parts(module: str, *changes: tuple[str, str]) -> Parts:
    """The parts of a proxy whose module `delta_proxy.<module>` has each text replaced."""
    name = f"delta_proxy.{module}"
    start = _CHAIN.index(name)
    kept = {each: sys.modules[each] for each in map(_loaded, _CHAIN[start:])}
    made: dict[str, ModuleType] = {}
    try:
        for each in _CHAIN[start:]:
            made[each] = sys.modules[each] = _executed(each, changes if each == name else ())
    finally:
        sys.modules.update(kept)
        for each, original in kept.items():
            setattr(sys.modules[each.rpartition(".")[0]], each.rpartition(".")[2], original)
    found = {each: made.get(each) or importlib.import_module(each) for each in _CHAIN}
    return Parts(
        log_views=found["delta_proxy.delta.views"].LogViews,
        gate=found["delta_proxy.delta.gate"].Gate,
        masks=found["delta_proxy.delta.masks"].GrantMasks,
        root=found["delta_proxy.resources.root"].RootResource,
    )


def _loaded(name: str) -> str:
    importlib.import_module(name)
    return name


def _executed(name: str, changes: tuple[tuple[str, str], ...]) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    module = importlib.util.module_from_spec(spec)
    source = _SOURCES[name]
    for old, new in changes:
        assert source.count(old) == 1, f"{name} has the rule {source.count(old)} times: {old}"
        source = source.replace(old, new)
    sys.modules[name] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module
