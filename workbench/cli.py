"""The shell commands: `workbench demo`, `workbench lab`, `workbench doctor`.

Exit codes: 0 all went well, 1 an error explained on stderr, 2 a wrong argument, 130 interrupted with Ctrl-C.
Nothing heavy is imported before the command that needs it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from workbench.errors import Interrupted, SettingError, WorkbenchError

CHECKOUT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and answer its exit code. `argv` lacks the program's name; None means `sys.argv`."""
    given = list(sys.argv[1:] if argv is None else argv)
    ours, for_jupyter = _split(given)
    args = _parser().parse_args(ours)
    if for_jupyter and args.command != "lab":
        _parser().error(f"nothing goes after -- in `workbench {args.command}`: {' '.join(for_jupyter)}")
    started = time.time()
    _leave_a_core()
    try:
        if args.command == "demo":
            return _demo(args.out, args.seed, args.steps)
        if args.command == "lab":
            return _lab(args.folder, for_jupyter)
        return _doctor(args.runs, args.online)
    except (KeyboardInterrupt, Interrupted):
        _say_interrupted(Path(args.out) if args.command == "demo" else None, started)
        return 130
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench", description="A Jupyter-first bench for post-training language models."
    )
    parser.add_argument("--version", action="version", version=f"workbench {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser("demo", help="watch the shipped model learn by GRPO, without a notebook")
    demo.add_argument(
        "--out",
        default="runs/demo",
        metavar="FOLDER",
        help="the run's folder (%(default)s); an existing one is never overwritten",
    )
    demo.add_argument("--seed", type=int, default=0, help="of everything drawn at random (%(default)s)")
    demo.add_argument(
        "--steps", type=_positive, metavar="N", help="instead of the demo's own number of steps"
    )
    lab = commands.add_parser(
        "lab",
        help="JupyterLab on the lessons",
        epilog="What stands after -- goes to JupyterLab: workbench lab -- --no-browser --port 8889",
    )
    lab.add_argument("folder", nargs="?", help="of notebooks to open (the lessons)")
    doctor = commands.add_parser("doctor", help="what works on this machine, and what to do about the rest")
    doctor.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="where runs will be kept (%(default)s)"
    )
    doctor.add_argument(
        "--online", action="store_true", help="also ask whether the Hugging Face Hub can be reached"
    )
    return parser


def _leave_a_core() -> None:
    """Leave one core to the rest of the machine, unless OMP_NUM_THREADS says otherwise. Before torch is imported.

    OpenMP's threads spin while they wait for each other: when a browser or a server wants the same core, a step of
    the shipped model was seen to take ten times as long. One core fewer costs it less than half of its speed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what stands after a `--`."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _version() -> str:
    try:
        return metadata.version("workbench")
    except metadata.PackageNotFoundError:
        return "(not installed: run from a checkout)"


def _demo(out: str, seed: int, steps: int | None) -> int:
    from workbench import demo

    demo.run_demo(out=out, seed=seed, steps=steps)
    return 0


def _lab(folder: str | None, for_jupyter: Sequence[str]) -> int:
    """Become JupyterLab, so that its Ctrl-C and its exit code are its own."""
    command = [sys.executable, "-m", "jupyterlab", *for_jupyter, str(_notebooks(folder))]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.insert(3, "--allow-root")
    sys.stdout.flush()
    os.execv(command[0], command)


def _notebooks(folder: str | None) -> Path:
    """The folder to open. The lessons live in a checkout; an installed package does not carry them."""
    if folder is not None:
        if not Path(folder).is_dir():
            raise SettingError(f"There is no folder {folder!r} to open.")
        return Path(folder)
    roots = list(dict.fromkeys([Path.cwd(), CHECKOUT]))
    for root in roots:
        if any((root / "notebooks").glob("*.ipynb")):
            return root / "notebooks"
    raise SettingError(
        f"The lessons are not here: no notebooks/*.ipynb in {' or '.join(map(str, roots))}. They come with a "
        "checkout of the project, not with the installed package: clone it and run `workbench lab` in it. "
        "Any other folder of notebooks opens with `workbench lab FOLDER`."
    )


def _doctor(runs: str, online: bool) -> int:
    from workbench import doctor

    return doctor.main(Path(runs), online=online)


def _say_interrupted(out: Path | None, started: float) -> None:
    print("\nInterrupted.", file=sys.stderr)
    run = out and _written_since(out, started)
    if run:
        code = f"import workbench as wb; wb.resume({str(run)!r}).run()"
        print(f"The run is in {run}, whole up to the last step it finished.", file=sys.stderr)
        print(f'It goes on with:  python -c "{code}"', file=sys.stderr)
    elif out:
        print("No step was finished, so there is nothing to resume: start it again.", file=sys.stderr)


def _written_since(out: Path, started: float) -> Path | None:
    """The run folder `out`, or `out` with a suffix, written to last; None when none was since `started`."""
    found = {}
    for file in out.parent.glob(f"{out.name}*/run.db*"):
        if (file.parent / "run.db").exists():
            found[file.parent] = max(file.stat().st_mtime, found.get(file.parent, 0.0))
    newest = max(found, key=found.get, default=None)
    return newest if newest and found[newest] >= started - 1 else None


if __name__ == "__main__":
    sys.exit(main())
