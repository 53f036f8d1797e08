"""A counterexample as a tidy table: what each process did in each step, and what every cell then held."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.model_check.search import Result

COLUMNS = ("step", "process", "action", "cell", "value", "changed", "wrong")


def trace_table(result: Result) -> pd.DataFrame:
    """One row per step of `Result.trace` and cell; steps count from 1, step 0 has the first values.

    Returns:
        Columns `step`, `process` and `action` (empty in step 0), `cell`, `value` after the step, `changed` by the step,
        and `wrong`: the step at which the property does not hold. `attrs` hold the protocol's name and the violation.

    Raises:
        Refused: the search found nothing, so there is no trace.
    """
    if not result.trace:
        raise Refused(f"{result.protocol.name}: no counterexample to show; search a protocol with a mistake")
    table = pd.DataFrame(_rows(result), columns=list(COLUMNS))
    table.attrs.update(protocol=result.protocol.name, violation=result.violation)
    return table


def _rows(result: Result) -> Iterator[tuple]:
    cells = dict(result.protocol.cells)
    for cell, value in cells.items():
        yield 0, "", "", cell, value, False, False
    deadlock = result.violation.startswith("deadlock")
    for step, event in enumerate(result.trace, start=1):
        cells |= event.changes
        wrong = step == len(result.trace) and not deadlock
        for cell, value in cells.items():
            yield step, event.process, event.label, cell, value, cell in event.changes, wrong
