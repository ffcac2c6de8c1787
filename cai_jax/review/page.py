"""The pages: ours and the two vetted libraries' files, in one file or by links to a server.

Data never becomes code: in one file it stands base64-encoded in blocks that no browser runs, and
the policy lets scripts run by the hashes of those that ship with the package alone.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_HERE = Path(__file__).parent
STYLE = "style.css"
REPORT = ("htm-preact.js", "diff.js", "rows.js", "views.js", "report.js")
RATE = ("htm-preact.js", "rate.js")
RESULTS = ("htm-preact.js", "results.js")


def static() -> dict[str, bytes]:
    """Every file that a page may ask a server for, by name."""
    names = dict.fromkeys((STYLE, *REPORT, *RATE, *RESULTS))
    return {name: (_HERE / "static" / name).read_bytes() for name in names}


def linked(title: str, scripts: Sequence[str]) -> str:
    """A page of the server's, which sends its policy with it."""
    return _template().render(
        title=title, inline=False, policy="", data=[], scripts=[(name, "") for name in scripts]
    )


def inline(title: str, scripts: Sequence[str], data: Sequence[tuple[str, str]]) -> str:
    """A page in one file, which asks nobody for anything.

    Args:
      data: (element id, what `packed` made).
    """
    files = static()
    texts = [(name, files[name].decode()) for name in scripts]
    style = files[STYLE].decode()
    allowed = " ".join(_hash(text) for _, text in texts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _template().render(
        title=title,
        inline=True,
        policy=policy,
        style=Markup(style),
        data=data,
        scripts=[(name, Markup(text)) for name, text in texts],
    )


def packed(value: Any) -> str:
    """A JSON value, zipped, as letters and digits; rows.js unpacks it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
