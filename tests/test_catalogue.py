"""The catalogue: its records, the callables and the help they make, its status; every example runs."""

from __future__ import annotations

import ast
import inspect
import os
import pydoc
import re
import statistics
from importlib import import_module

import pytest

import workbench as wb
from tests.catalogued import ENTRIES
from workbench import methods
from workbench.errors import SettingError
from workbench.published import FAMILIES, _of, examples, status
from workbench.published.entry import KINDS
from workbench.run import Run

WRITES = os.environ.get("WORKBENCH_WRITE_STATUS")
"""set by `make status`: what passes is written down"""


@pytest.fixture(scope="module")
def policy():
    return wb.load("tiny").attach(wb.LoRA(r=8))


@pytest.mark.parametrize("name", ENTRIES)
def test_its_example_works(name, policy, tmp_path):
    entry = ENTRIES[name]
    made = examples.run(entry, examples.namespace(tmp_path, policy.reset()))
    if entry.trains:
        assert isinstance(made, Run)
        if made.step == 0:
            list(made)
        assert made.step >= 1 and made.metrics["loss"].notna().any()
    else:
        assert made is not None
    if WRITES:
        status.record(status.recorded() | {name: status.digest(entry)})
    assert status.of(entry) == status.WORKS, f"{name} changed since the status was written: run make status"


def test_records_are_whole_and_their_names_are_one():
    named = [entry.name for family in FAMILIES for entry in _of(family)]
    assert len(named) == len(set(named))
    for entry in ENTRIES.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.name) and entry.kind in KINDS
        assert entry.id is None or re.fullmatch(r"S\d{3}", entry.id)
        assert (entry.neutral is None) == (entry.base is None), entry.name
        assert entry.paper.authors and entry.paper.title and entry.summary.endswith(".")
    assert not set(status.recorded()) - set(ENTRIES), "status.json knows methods that are gone"


@pytest.mark.parametrize("name", ENTRIES)
def test_help_reads_like_a_card(name):
    entry, called = ENTRIES[name], wb.method(name)
    text = pydoc.plain(pydoc.render_doc(called))
    assert called.__name__ == name and "Paper:" in text and "Example:" in text
    assert len(text) > 600, "that is no card"
    if entry.trains:
        signature = inspect.signature(called)
        assert signature.return_annotation is Run and list(signature.parameters)[0] == "policy"
        own = [name for name in (entry.neutral or {}) if name not in ("batch_size",)]
        for setting in own:
            assert setting in text, f"{setting} stands nowhere in the help of {name}"


def test_numbers_find_methods_too_and_others_are_told():
    numbered = next(entry for entry in ENTRIES.values() if entry.id)
    assert wb.method(numbered.id).__name__ == wb.method(numbered.name).__name__
    with pytest.raises(SettingError, match="Did you mean"):
        wb.method(next(iter(ENTRIES)) + "x")


def test_the_catalogue_is_a_frame():
    frame = wb.catalogue()
    assert len(frame) == len(ENTRIES) and set(frame["status"]) == {"works"}
    assert {"id", "name", "paper", "year", "kind", "call", "status"} <= set(frame.columns)


def _code_lines(module) -> int:
    """Lines of a module without blank ones, comments and docstrings."""
    source = inspect.getsource(module)
    told = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(text.strip()) and not text.strip().startswith("#") and n not in told for n, text in lines)


def _modules() -> dict[str, object]:
    """The modules of training methods, by name."""
    own = {name for name, entry in ENTRIES.items() if entry.trains and entry.call not in ("sft", "dpo", "grpo")}
    return {name: import_module(methods.names()[ENTRIES[name].call].partition(":")[0]) for name in sorted(own)}


def test_a_median_method_is_sixty_lines():
    sizes = {name: _code_lines(module) for name, module in _modules().items()}
    assert statistics.median(sizes.values()) <= 60, dict(sorted(sizes.items(), key=lambda item: -item[1]))


def test_no_method_imports_another_method():
    modules = {module.__name__: name for name, module in _modules().items()}
    for module in _modules().values():
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not (targets & set(modules)) - {module.__name__}, (module.__name__, node.module)
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, (module.__name__, private)
