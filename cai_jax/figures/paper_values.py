"""What the paper's figures show, read off by eye (paper_values.json): facts to draw beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("paper_values.json")


def of(figure: str) -> dict[str, Any]:
    """The values of one figure, such as "fig4_hhh_accuracy_by_parameters".

    A note about how a table is laid out ("columns", "snapshots") is left out.
    """
    found = json.loads(FILE.read_text("utf-8"))[figure]
    return {name: value for name, value in found.items() if name not in ("columns", "snapshots")}
