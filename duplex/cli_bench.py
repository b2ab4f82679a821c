"""``duplex bench NAME …``: every figure the project quotes is printed by one of these."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from duplex.errors import DuplexError


def add_parser(subparsers: Any) -> None:
    """Add ``bench`` to the ``duplex`` command (``subparsers``: what ``ArgumentParser.add_subparsers`` returns)."""
    found = benchmarks()
    width = max((len(name) for name in found), default=0)
    listing = "\n".join(f"  {name:<{width}}  {line}" for name, line in found.items())
    parser = subparsers.add_parser(
        "bench",
        help="measure: latency, interruptions, CPU and memory",
        description="Runs a benchmark; each has its own --help.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of those below; without it they are listed")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the benchmark")
    parser.set_defaults(run=run, listing=listing)


def run(args: argparse.Namespace) -> int:
    if args.name is None:
        print(f"Run one of these with: duplex bench NAME\n\n{args.listing}")
        return 0
    if args.name not in benchmarks():
        raise DuplexError(f"There is no benchmark {args.name!r}. There are: {', '.join(benchmarks()) or 'none'}.")
    return int(importlib.import_module(f"duplex.benchmarks.{args.name}").main(args.arguments))


def benchmarks() -> dict[str, str]:
    """Name → first line of its docstring, for each module or package of ``duplex.benchmarks`` with a ``main``.

    The files are read, not imported: some of them need more than is installed.
    """
    spec = importlib.util.find_spec("duplex.benchmarks")
    found: dict[str, str] = {}
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in (*Path(place).glob("*.py"), *Path(place).glob("*/__init__.py")):
            tree = ast.parse(path.read_text("utf-8"))
            if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
                name = path.parent.name if path.name == "__init__.py" else path.stem
                found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))
