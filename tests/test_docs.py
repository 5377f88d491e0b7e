"""The pages of docs/: generated from the source and up to date, whole, linked, and their code runs."""

import ast
import dataclasses
import re

import pytest

import workbench as wb
from docs.generator import command_line, markdown, pages, reference, settings_tables, source, trl_settings
from docs.generator.source import ROOT
from workbench import settings
from workbench.published import entries

PAGES = sorted(pages.DOCS.glob("*.md"))
LINKED = [ROOT / "README.md", *PAGES]


def told(path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


@pytest.fixture(scope="module")
def page() -> str:
    return reference.page()


# -- up to date, and linked


def test_pages_are_what_the_source_says():
    stale = [told(path) for path in pages.stale()]
    assert not stale, f"{', '.join(stale)}: out of date. Run `make docs`."


@pytest.mark.parametrize("name", [*pages.WHOLE, "index.md", "losses.md", "from_trl.md"])
def test_a_generated_page_says_so_in_its_first_line(name):
    first = (pages.DOCS / name).read_text(encoding="utf-8").splitlines()[0]
    assert "enerated by `make docs`" in first and first.startswith("<!--")


def test_every_block_that_can_be_generated_stands_in_a_page():
    found = [name for path in PAGES for _, name, _ in pages.BLOCK.findall(path.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(pages.BLOCKS)


@pytest.mark.parametrize("path", LINKED, ids=told)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in markdown.anchors(target.read_text(encoding="utf-8")).values(), link


def test_the_index_names_every_page_and_lesson():
    index = (pages.DOCS / "index.md").read_text(encoding="utf-8")
    for path in PAGES:
        assert path.name == "index.md" or f"({path.name})" in index, path.name
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(../notebooks/{path.name})" in index, path.name
    assert "(docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_page_on_the_source_names_every_module():
    text = (pages.DOCS / "source.md").read_text(encoding="utf-8")
    package = ROOT / "workbench"
    folders = [path.parent for path in package.glob("*/__init__.py")]
    assert len(folders) > 8
    for path in [*package.glob("*.py"), *package.glob("methods/*.py"), *package.glob("views/*.py")]:
        assert f"`{path.name}`" in text or path.name == "__init__.py", path
    for folder in folders:
        assert f"`{folder.name}/" in text, folder
    named = [name for name in re.findall(r"`(\w+(?:\.py|/))`", text) if name != "docs/generator/"]
    places = (package, package / "methods", package / "views")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_page_on_the_source_places_every_method_of_the_catalogue():
    text = (pages.DOCS / "source.md").read_text(encoding="utf-8")
    section = re.search(r"^## The catalogue\n(.*?)^## ", text, re.S | re.M)[1]
    assert [name for name in entries() if f"`{name}`" not in section] == []


@pytest.mark.parametrize("path", PAGES, ids=told)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(path):
    block: list[str] = []
    for row in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if row.startswith("|"):
            block.append(row)
            continue
        cells = {len(re.split(r"(?<!\\)\|", line)) for line in block}
        assert len(cells) <= 1, block[0]
        block = []


# -- the reference


def test_every_public_name_has_an_entry(page):
    headings = markdown.anchors(page)
    for name in wb._NAMES:
        assert f"wb.{name}" in headings, name


@pytest.mark.parametrize(
    "module, name, called",
    [("workbench.policy", "Policy", "policy"), ("workbench.run", "Run", "run"), ("workbench.data", "Rows", "rows")],
)
def test_every_public_method_stands_there(page, module, name, called):
    entry = page[page.index(f"### `wb.{name}`") :]
    owner = source.find(module, name)
    assert len(source.public(owner)) > 10
    for method, member in source.public(owner).items():
        if member.is_function and source.docstring(member):
            assert f"#### `{called}.{method}`" in entry or f"| `{method}(" in entry, method


def test_every_ready_made_reward_has_an_entry(page):
    headings = markdown.anchors(page)
    for name in wb.rewards.__all__:
        assert f"wb.rewards.{name}" in headings or re.search(rf"\| `{name}\b", page), name
    assert {"wb.rewards.number", "wb.rewards.soft_overlong"} <= headings.keys()


@pytest.mark.parametrize("method", list(settings.METHODS))
def test_every_setting_stands_in_a_table_with_its_meaning(method):
    shown = f"{settings_tables.common()}\n{settings_tables.own(method)}"
    for field in dataclasses.fields(settings.METHODS[method]):
        row = re.search(rf"^\| `{field.name}` \|.*\| (.*) \|$", shown, re.M)
        assert row, field.name
        assert len(row[1]) > 5, f"{method}: {field.name} has no docstring"


def test_a_method_shows_its_own_default_where_it_differs():
    assert "| `lr` | `2e-5` |" in settings_tables.own("sft")
    assert "| `lr` |" in settings_tables.common() and "`weight_decay`" not in settings_tables.own("sft")


def test_rules_are_shown_beside_the_types():
    common, own = settings_tables.common(), settings_tables.own("sft")
    assert "`float` ≥ 0 < 1" in common
    assert '`"keep_start"`, `"keep_end"` *fixed*' in own
    assert "`int \\| None` ≥ 2 *fixed*" in own


def test_shell_commands_and_their_arguments(page):
    assert command_line.names() == ["workbench demo", "workbench lab", "workbench doctor"]
    assert "| `--out FOLDER` | the run's folder (runs/demo)" in page


def test_a_name_without_a_place_stops_the_generator(monkeypatch):
    monkeypatch.setitem(wb._NAMES, "novelty", "workbench.run:Run")
    with pytest.raises(SystemExit, match="novelty"):
        reference.page()


# -- Markdown


@pytest.mark.parametrize(
    "heading, anchor",
    [
        ("`wb.rows`", "wbrows"),
        ("SFTConfig and `wb.sft`", "sftconfig-and-wbsft"),
        ("What is not here", "what-is-not-here"),
        ("Where is ...?", "where-is-"),
        ("`wb.rewards.exact_match`", "wbrewardsexact_match"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor):
    assert markdown.slug(heading) == anchor


def test_headings_that_would_share_an_anchor_are_numbered():
    text = "# A\n\n## `wb.rows`\n\n```\n# not a heading\n```\n\n## `wb.Rows`\n\n[x](#=wb.Rows=)"
    assert markdown.anchors(text) == {"A": "a", "wb.rows": "wbrows", "wb.Rows": "wbrows-1"}
    assert markdown.with_anchors(text).endswith("[x](#wbrows-1)")


def test_docstrings_become_markdown():
    made = markdown.doc(
        "First, `a_b` and fn(**columns) -> list[x].\n\n"
        "name   what it\n       is\nother  else\n\n"
        "    wb.load(1)\n\n"
        "See arXiv\n2402.03300, <think> and 1 | 2."
    )
    assert made == (
        "First, `a_b` and fn(\\*\\*columns) -> list\\[x\\].\n\n"
        "- `name`: what it is\n- `other`: else\n\n"
        "```python\nwb.load(1)\n```\n\n"
        "See [arXiv\n2402.03300](https://arxiv.org/abs/2402.03300), \\<think> and 1 | 2."
    )


def test_cells_keep_to_their_column():
    assert markdown.table(["a", "b"], [["`x | y`", "two\nlines"]]).splitlines()[2] == "| `x \\| y` | two lines |"


# -- coming from TRL


def test_what_is_read_from_trls_files_is_what_its_configs_have(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl
    from trl.experimental import cpo, orpo

    for name in trl_settings.TRAINERS:
        config = getattr({"CPO": cpo, "ORPO": orpo}.get(name, trl), f"{name}Config")
        real = {field.name: field.default for field in dataclasses.fields(config)}
        read = trl_settings.common() | trl_settings.of_config(name)
        assert read.keys() == real.keys(), name
        for field, default in read.items():
            plain = isinstance(real[field], (bool, int, float, str, type(None)))
            if plain and default is not trl_settings.NO_VALUE:
                assert default == real[field] or str(default) == str(real[field]), (name, field)


def test_every_setting_and_argument_of_trl_is_named():
    text = (pages.DOCS / "from_trl.md").read_text(encoding="utf-8")
    names = {*trl_settings.common(), *trl_settings.arguments()}
    names |= {name for trainer in trl_settings.TRAINERS for name in trl_settings.of_config(trainer)}
    assert len(names) > 200
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_a_setting_of_trl_without_an_answer_stops_the_generator():
    with pytest.raises(SystemExit, match="brand_new"):
        trl_settings._section({"brand_new": 1}, {})


def test_defaults_are_shown_where_they_differ_only():
    table = trl_settings._section({"seed": 42, "beta": 0.1, "max_steps": -1}, {"seed": 0, "beta": 0.1, "steps": 100})
    assert "| `seed` | `seed` | `42` → `0` |" in table
    assert "| `max_steps` | `steps` | `-1` → `100` |" in table
    assert "Same name, same default: `beta`." in table


# -- the code in written pages


def snippets(path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.S | re.M)


def test_code_in_written_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran, space = 0, {}
    for path in PAGES:
        if path.name in pages.WHOLE:
            continue
        for code in snippets(path):
            ast.parse(code)
            if not re.search(r"^from trl", code, re.M):
                exec(compile(code, told(path), "exec"), space)
                ran += 1
    assert ran >= 3
    assert space["run"].step == 1 and len(space["run"].rollouts()) == 8
    assert (tmp_path / "adapter").is_dir() and "trl" not in space


def test_the_package_needs_neither_trl_nor_griffe():
    for path in (ROOT / "workbench").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (trl|griffe|docs)\b", path.read_text(encoding="utf-8"), re.M), path
