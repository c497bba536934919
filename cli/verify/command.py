"""Command line of `safecb verify`: the checks as lines, a page of HTML, and JSON on request.

Verifies a model in this process, without a server, a store or Redis; writes the page and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.verify.checks import Check, Status
from cli.verify.page import page
from cli.verify.verification import Verification
from core.atomic import replace_file
from core.errors import BadInput, SafeCBError
from core.settings import Settings
from core.storage import naming


def main(arguments: Sequence[str] = ()) -> int:
    """Run the command: 0 where no check failed, else 1."""
    options = _parser().parse_args(arguments)
    try:
        return run(options, Settings.from_environ(os.environ))
    except SafeCBError as error:
        print(f"safecb verify: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Verify, write the page and print the verdict. Raises BadInput for a page that cannot be written, NoStorage."""
    if options.out.is_dir() or not options.out.absolute().parent.is_dir():
        raise BadInput("out", str(options.out), "a file in a folder that exists")
    stream = sys.stderr if options.json else sys.stdout

    def report(check: Check) -> None:
        print(check.line, file=stream, flush=True)

    verification = Verification(options.model or settings.model, settings.device, settings.dtype, report)
    verification.run()
    with naming(options.out):
        replace_file(options.out, page(verification).encode())
    if options.json:
        print(json.dumps(verification.to_dict(), indent=1, allow_nan=False))
    missing = verification.of(Status.NOT_MEASURED)
    words = f"; not measured: {', '.join(missing)}" if missing else ""
    print(f"verdict: {'passed' if verification.passed else 'failed'}{words}; {options.out}", file=stream)
    return 0 if verification.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="safecb verify", description=__doc__)
    parser.add_argument("--model", help="as SAFECB_MODEL, which it is without this option")
    parser.add_argument("--out", type=Path, default=Path("verify.html"), help="the page to write")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
