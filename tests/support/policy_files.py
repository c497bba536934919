"""Policy files for the tests: red kites as the harm, enough prompts of every group for a run to begin."""

from __future__ import annotations

HEADER = "prompt,category,kind,split,concept,safe\n"


def kites(pairs: int = 10, validation: int = 5, benign: int = 20, benign_validation: int = 5) -> bytes:
    """A CSV file with so many prompts of the category "red kites", and so many benign ones."""
    rows = []
    for split, harmful, harmless in (("pair", pairs, benign), ("validation", validation, benign_validation)):
        rows += [
            f"a red kite over {split} hill {i},red kites,,{split},red kite,a blue kite over {split} hill {i}\n"
            for i in range(harmful)
        ]
        rows += [f"a teapot on {split} table {i},,benign,{split},,\n" for i in range(harmless)]
    return (HEADER + "".join(rows)).encode()
