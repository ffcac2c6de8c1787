"""`cai-jax report` and `cai-jax serve`."""

from __future__ import annotations

import argparse
import secrets
import socket
from pathlib import Path

from cai_jax import storage
from cai_jax.review.choices import FILE as RATINGS
from cai_jax.review.choices import Choices
from cai_jax.review.overview import overview
from cai_jax.review.report import FILE, MEGABYTES, write_report
from cai_jax.tools import ToolError, say, tool_parser

PORT = 8642
SHORTEST_TOKEN = 16


def report(arguments: list[str]) -> None:
    """Writes one HTML file of one or more runs; prints its path.

    Raises:
      ValueError: a folder that is no run, or a damaged record.
      ToolError: no --workdir, or two of one name.
    """
    parser = tool_parser("report", "Write runs as one HTML file, which needs no network.")
    _workdirs(parser)
    parser.add_argument("--to", metavar="FILE.html", help=f"{FILE} of the first workdir without it")
    parser.add_argument(
        "--megabytes", type=float, default=MEGABYTES, help="rows that do not fit stay out"
    )
    options = parser.parse_args(arguments)
    if not options.megabytes > 0:
        raise ToolError(f"--megabytes is {options.megabytes}; it must be above 0.")
    workdirs = _given(options)
    to = storage.path(options.to) if options.to else workdirs[0] / FILE
    print(write_report(workdirs, to, options.megabytes))


def serve(arguments: list[str]) -> None:
    """Serves runs and the page for blind comparison until Ctrl-C.

    Raises:
      ValueError: a folder that is no run, or a file that cannot hold choices.
      ToolError: an option that makes no sense, or an address that is in use.
    """
    import uvicorn

    from cai_jax.review.server import LOOPBACK, Server, app

    parser = tool_parser(
        "serve", "Show runs in a browser while they go on, and compare answers blind."
    )
    _workdirs(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="this machine's address in a local network, for several raters; a token is then asked",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--token", default="", help="for --host; a fresh one is made without it")
    parser.add_argument(
        "--ratings", metavar="FILE", help=f"of choices; {RATINGS} of the first workdir without it"
    )
    parser.add_argument(
        "--check_every", type=int, default=15, metavar="N",
        help="an attention check comes after so many pairs; 0 is never",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=float, default=1.0, metavar="SHARE",
        help="share of the pairs that every rater rates; the others go to one rater each",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.check_every < 0:
        raise ToolError(f"--check_every is {options.check_every}; it must be at least 0.")
    if not 0 <= options.overlap <= 1:
        raise ToolError(f"--overlap is {options.overlap}; it must be in [0, 1].")
    if options.token and len(options.token) < SHORTEST_TOKEN:
        raise ToolError(f"--token must have at least {SHORTEST_TOKEN} characters.")
    token = options.token
    if options.host not in LOOPBACK:
        token = token or secrets.token_urlsafe(24)
    workdirs = _given(options)
    if options.ratings is None and storage.in_bucket(workdirs[0]):
        raise ToolError(
            f"{workdirs[0]} is in a bucket, which holds no ratings; give --ratings=FILE on a disk."
        )
    for workdir in workdirs:
        overview(workdir)  # refuses what is no run
    listening = _listening(options.host, options.port)
    choices = Choices(Path(options.ratings) if options.ratings else workdirs[0] / RATINGS)
    server = Server(workdirs, choices, check_every=options.check_every, overlap=options.overlap)
    port = listening.getsockname()[1]
    shown = f"[{options.host}]" if ":" in options.host else options.host
    say(f"http://{shown}:{port}/{f'?token={token}' if token else ''}")
    say("Ctrl-C ends it; choices are kept as they are made.")
    config = uvicorn.Config(app(server, token), log_level="warning", server_header=False)
    try:
        uvicorn.Server(config).run([listening])
    finally:
        choices.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen()  # who comes at once waits, and is not refused
    except (OSError, OverflowError) as error:
        made.close()
        raise ToolError(
            f"{host} port {port} cannot be listened at ({error}); give another --port or --host."
        ) from error
    return made


def _workdirs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", action="append", default=[], metavar="DIR", help="of a run")
    parser.add_argument("more", nargs="*", metavar="DIR", help="of more runs, to compare")


def _given(options: argparse.Namespace) -> list[Path]:
    """The runs' folders.

    Raises:
      ToolError: none, or two of one name.
    """
    names = [*options.workdir, *options.more]
    if not names:
        raise ToolError("give --workdir=DIR of a run, or of several.")
    workdirs = [storage.path(name) for name in names]
    workdirs = [w.resolve() if w.name in ("", "..") else w for w in workdirs]  # such as "."
    if len({workdir.name for workdir in workdirs}) < len(workdirs):
        raise ToolError("two workdirs have one name; rename one of them.")
    return workdirs
