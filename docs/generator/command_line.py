"""The shell commands, from the parser that reads them."""

from __future__ import annotations

import argparse

from docs.generator.markdown import code, line, table
from workbench import cli


def _commands() -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Each command's parser and its one-line help."""
    (group,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    said = {action.dest: action.help for action in group._choices_actions}
    return {name: (parser, said.get(name) or "") for name, parser in group.choices.items()}


def names() -> list[str]:
    return [f"workbench {name}" for name in _commands()]


def section() -> str:
    parts = ["## Shell", line(cli.main.__module__ and cli.__doc__.split("\n\n")[1])]
    for name, (parser, said) in _commands().items():
        parts += [f"### `workbench {name}`", f"{said[:1].upper()}{said[1:]}."]
        rows = [_row(parser, action) for action in parser._actions if action.dest != "help"]
        if rows:
            parts.append(table(["argument", ""], rows))
        if parser.epilog:
            parts.append(line(parser.epilog))
    return "\n\n".join(parts)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    called = f"{', '.join(action.option_strings)}{value}" if action.option_strings else (action.metavar or action.dest)
    said = (action.help or "") % {"default": action.default, "prog": parser.prog}
    return [code(called), line(said)]
