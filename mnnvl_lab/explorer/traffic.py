"""Traffic between ranks: who sends how many bytes to whom in dispatch, and the fullest link."""

from __future__ import annotations

import numpy as np

from mnnvl_lab.explorer.svg import INK, LINE, QUIET, WARN, Panel, drawing, heat_image, rect, text
from mnnvl_lab.notebook import readable_bytes

NUMBERED = 8
"""Up to so many ranks each cell shows its rows."""
SIZE, LEFT, TOP = 260, 46, 40


def traffic_panel(rows_RR: np.ndarray, *, row_bytes: int, expected: bool = False) -> Panel:
    """Rows from source to target, dark where many; the fullest link is framed.

    Args:
        rows_RR: `[source, target]`; the diagonal crosses no link.
        row_bytes: of a row in dispatch.
        expected: whether the rows are expected values rather than drawn choices.
    """
    wire = rows_RR - np.diag(np.diag(rows_RR))
    rank, is_receiver, rows = fullest_link(rows_RR)
    ranks, cell = len(wire), SIZE / len(wire)
    peak = max(float(wire.max()), 1e-9)
    uri = heat_image(0.06 + 0.94 * wire / peak)
    body = [
        text(
            0, 14, "rows per link in dispatch" + (" (expected)" if expected else ""), size=13, more='font-weight="600"'
        ),
        text(LEFT + SIZE / 2, TOP - 8, "to rank", anchor="middle", fill=QUIET, size=11),
        text(LEFT - 10, TOP + SIZE / 2, "from", anchor="end", fill=QUIET, size=11),
        f'<image href="{uri}" x="{LEFT}" y="{TOP}" width="{SIZE}" height="{SIZE}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated"/>',
        rect(LEFT, TOP, SIZE, SIZE, stroke=LINE),
    ]
    if ranks <= NUMBERED:
        body += _numbers(rows_RR, cell, peak)
    frame = (LEFT + rank * cell, TOP, cell, SIZE) if is_receiver else (LEFT, TOP + rank * cell, SIZE, cell)
    body.append(rect(*frame, stroke=WARN, more='stroke-width="2"'))
    words = _words(wire, rank, is_receiver, rows, row_bytes)
    body += [text(0, TOP + SIZE + 20 + 16 * i, line, size=11, fill=INK) for i, line in enumerate(words)]
    return drawing(body, width=LEFT + SIZE + 14, height=TOP + SIZE + 46, alt="; ".join(words))


def fullest_link(rows_RR: np.ndarray) -> tuple[int, bool, float]:
    """The rank of the fullest link, whether it is its way in, and the rows on it."""
    wire = rows_RR - np.diag(np.diag(rows_RR))
    received, sent = wire.sum(axis=0), wire.sum(axis=1)
    is_receiver = bool(received.max() >= sent.max())
    of_rank = received if is_receiver else sent
    return int(of_rank.argmax()), is_receiver, float(of_rank.max())


def _numbers(rows_RR: np.ndarray, cell: float, peak: float) -> list[str]:
    body = []
    for (source, target), rows in np.ndenumerate(rows_RR):
        x, y = LEFT + (target + 0.5) * cell, TOP + (source + 0.5) * cell + 4
        stays = source == target
        fill = QUIET if stays else ("#ffffff" if rows > 0.55 * peak else INK)
        body.append(text(x, y, "-" if stays else f"{rows:,.0f}", anchor="middle", fill=fill, size=10))
    return body


def _words(wire: np.ndarray, rank: int, is_receiver: bool, rows: float, row_bytes: int) -> list[str]:
    if not wire.any():
        return ["nothing crosses a link"]
    of_rank = wire.sum(axis=0) if is_receiver else wire.sum(axis=1)
    verb = "receives" if is_receiver else "sends"
    return [
        f"fullest link: rank {rank} {verb} {rows:,.0f} rows, {readable_bytes(int(rows * row_bytes))}",
        f"{rows / of_rank.mean():.2f} times the mean of all ranks",
    ]
