"""Nothing hidden is told, and each rule of the filter is needed for that."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

import attrs
import pytest

from delta_proxy.delta import checkpoints, commits, last_checkpoint

from .leaks import failures
from .support import REAL, Filter


def test_the_filter_tells_nothing_hidden_and_keeps_what_is_granted(tmp_path: pathlib.Path) -> None:
    assert failures(tmp_path) == []


# A rule, and the text of the module without it.
COMMIT_RULES = {
    "denied adds go": ("_loudness(action) if _shown(scanning, action) else _Fate.DROP", "_loudness(action)"),
    "an add's own values count": (
        "or not scanning.permits(values):\n        return False",
        "or False:\n        pass",
    ),
    "values must be a map": (
        "type(values) is not dict or not scanning.permits(values)",
        "bool(values) and not scanning.permits(values)",
    ),
    "an add's history counts": ("    return history\n", "    return True\n"),
    "an unknown path is no answer": ("if history is None:", "if False:"),
    "denied removes go": ("return _loudness(action) if granted else _Fate.DROP", "return _loudness(action)"),
    "a remove's history counts": ("elif history is False or not", "elif not"),
    "a remove without values needs a known path": (
        "granted = history is True",
        "granted = history is not False",
    ),
    "a remove is judged by the columns before, too": (
        "granted = scanning.permits_before(values) or scanning.permits(values)",
        "granted = scanning.permits(values)",
    ),
    "denied change files go": (
        "        return _Fate.DROP\n    scanning.keeps_cdc = True",
        "        pass\n    scanning.keeps_cdc = True",
    ),
    "commits without granted change files are silenced": (
        "if scanning.has_cdc and not scanning.keeps_cdc:",
        "if False:",
    ),
    "statistics make room": ("if growth > room else 0", "if False else 0"),
    "foreign domains go": (
        '_Fate.KEEP if action.get("domain") in KEPT_DOMAINS else _Fate.DROP',
        "_Fate.KEEP",
    ),
    "clustering stays": ('_Fate.KEEP if action.get("domain") in KEPT_DOMAINS else _Fate.DROP', "_Fate.DROP"),
    "transactions go": ('"txn": _drop', '"txn": _keep'),
    "unknown actions go": ("_NO_ACTION[0]: _drop", "_NO_ACTION[0]: _keep"),
    "sidecars are for manifests": ('    "sidecar": _drop,\n    _NO', '    "sidecar": _keep,\n    _NO'),
    "checkpoint metadata is for manifests": ('"checkpointMetadata": _drop', '"checkpointMetadata": _keep'),
    "tombstones of manifests go": ('        "remove": _drop,', ""),
    "sidecar tags go": ('        "sidecar": _sidecar,', '        "sidecar": _keep,'),
    "checkpoint tags go": (
        '        "checkpointMetadata": _checkpoint_metadata,',
        '        "checkpointMetadata": _keep,',
    ),
    "the commit info is reduced": ('"commitInfo": _commit_info', '"commitInfo": _keep'),
    "the commit info stays": ('"commitInfo": _commit_info', '"commitInfo": _drop'),
    "only types that are known stay": ("if type(value) is _COMMIT_INFO.get(name)", "if True"),
    "the engine is emptied": ('"engineInfo": "", ', ""),
    "a second commit info goes": ("if scanning.seen_commit_info:", "if False:"),
    "one action a line": ("if len(present) > 1:", "if False:"),
    "no key twice": ("if len({key for key, _ in pairs}) != len(pairs):", "if False:"),
    "every line is checked for keys": ("if orjson.dumps(parsed, option=_NEWLINE) != line:", "if False:"),
    "one metaData a file": ("if scanning.seen_metadata:", "if False:"),
    "the metaData of the commit counts": ("    if scanning.columns is None:\n", "    if False:\n"),
    "late metaData counts": ("return not scanning.judged", "return True"),
    "reader features are known": ("    check_protocol(action)\n", ""),
    "the size stays": ("padding = size - newlines - scanning.kept_bytes", "padding = 0"),
    "something always remains": ("yield NOTHING", "yield b' ' * len(NOTHING)"),
}
CHECKPOINT_RULES = {
    "denied adds go": ('keep[adds[judge.shown(batch.column("add"), adds)]] = True', "keep[adds] = True"),
    "an add's history counts": ("granted[granted] = history.to_numpy(zero_copy_only=False)", "pass"),
    "an unknown path is no answer": ("if history.null_count:", "if False:"),
    "its own metaData counts": ("grant.columns if columns is None else columns", "grant.columns or columns"),
    "one metaData": ("if columns is not None:\n                raise", "if False:\n                raise"),
    "one action a row": (".max(initial=0) > 1", ".max(initial=0) > 9"),
    "no key twice": ("if len(named) != len(pairs):", "if False:"),
    "tombstones go": (
        'for name in ("metaData", "protocol", *_KEPT_FIELDS)',
        'for name in ("metaData", "protocol", "remove", *_KEPT_FIELDS)',
    ),
    "transactions go": (
        'for name in ("metaData", "protocol", *_KEPT_FIELDS)',
        'for name in ("metaData", "protocol", "txn", *_KEPT_FIELDS)',
    ),
    "foreign domains go": ("pa.array(sorted(KEPT_DOMAINS), domains.type)", "domains"),
    "tags go": (
        "column.field(place) if field.name in kept else _absent(len(column), field.type)",
        "column.field(place)",
    ),
    "unknown columns go": (
        "        return _absent(batch.num_rows, field.type)\n",
        "        return batch.column(field.name).cast(field.type)\n",
    ),
    "rows without an action of a column hold none": ("mask=pa.array(absent)", ""),
    "dictionaries are made anew": ("return _plain(kind.value_type, exact.value_type)", "return kind"),
    "footer keys go": ("if key in _KEPT_FOOTER_KEYS and", "if"),
    "footer values are short": ("and _SHORT_TEXT.fullmatch(value)", ""),
    "the footer's own schema goes": (
        "store_schema=False,\n            version",
        "store_schema=True,\n            version",
    ),
    "reader features are known": ("            check_protocol(action)\n", "            pass\n"),
    "sidecars stay in their folder": ('sidecar_name(action["path"])', 'action["path"]'),
    "the size stays": ("_pad(target, padding)", "pass"),
}
HINT_RULES = {
    "the size is not known": ('"size": -1', '"size": 424242'),
    "only size and time of a V2 checkpoint stay": (
        '{"path": checkpoint.names[0], **kept}',
        'dict(hint["v2Checkpoint"])',
    ),
    "hidden checkpoints are not named": (
        "complete = complete_checkpoints(present)",
        "complete = complete_checkpoints([*present, hint['v2Checkpoint']['path']])",
    ),
}


def mutants() -> Iterator[object]:
    tables = (
        ("commits", commits, COMMIT_RULES),
        ("checkpoints", checkpoints, CHECKPOINT_RULES),
        ("last_checkpoint", last_checkpoint, HINT_RULES),
    )
    for name, module, rules in tables:
        for rule, (text, without) in rules.items():
            yield pytest.param(name, module, text, without, id=f"{name}: {rule}")


def altered(module: ModuleType, text: str, without: str) -> ModuleType:
    """The module with one piece of its source replaced, under a name of its own."""
    source = pathlib.Path(str(module.__file__)).read_text()
    assert source.count(text) == 1, "the rule is not where the table says"
    mutant = ModuleType(f"{module.__name__}_altered")
    mutant.__package__ = module.__package__
    sys.modules[mutant.__name__] = mutant
    exec(compile(source.replace(text, without), str(module.__file__), "exec"), mutant.__dict__)
    return mutant


@pytest.mark.parametrize(("name", "module", "text", "without"), list(mutants()))
def test_a_filter_without_one_of_its_rules_is_caught(
    tmp_path: pathlib.Path, name: str, module: ModuleType, text: str, without: str
) -> None:
    mutant: Filter = attrs.evolve(REAL, **{name: altered(module, text, without)})
    try:
        assert failures(tmp_path, mutant, of=name) != []
    finally:
        del sys.modules[getattr(mutant, name).__name__]
