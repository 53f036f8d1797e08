"""The rank grid: one row per node, and the groups of the rank under the pointer, by style sheet alone."""

from __future__ import annotations

from mnnvl_lab.explorer.svg import FAINT, INK, LINE, QUIET, Panel, drawing, rect, text
from mnnvl_lab.layout import Layout

MOST_RANKS = 144
"""Of a larger layout the first ones are drawn."""
COLUMNS = 18
GROUPS = {"tp": "#0072B2", "dp": "#009E73", "ep": "#D55E00"}
CELL, GAP, LEFT, TOP = 46, 4, 62, 30


def grid_panel(layout: Layout, *, name: str = "grid") -> Panel:
    """Which rank is where, with the TP, DP and EP group of the rank that the pointer or the keyboard is on.

    Args:
        layout: gives the grid.
        name: of the drawing, unique on its page.
    """
    frame = layout.to_frame().head(MOST_RANKS)
    per_row = min(layout.gpus_per_node, COLUMNS, layout.world_size)
    groups = {kind: layout.groups(kind) for kind in GROUPS}
    place = {kind: {rank: i for i, ranks in enumerate(of_kind) for rank in ranks} for kind, of_kind in groups.items()}
    body, rows = [], 0
    for row in frame.itertuples():
        node_row = row.rank // layout.gpus_per_node
        within = row.rank % layout.gpus_per_node
        rows_per_node = -(-layout.gpus_per_node // per_row)
        y = node_row * rows_per_node + within // per_row
        rows = max(rows, y + 1)
        body.append(_cell(row, within % per_row, y, place, layout))
        if within == 0:
            body.append(text(6, TOP + y * (CELL + GAP) + 26, f"node {row.node}", fill=QUIET, size=11))
    height = TOP + rows * (CELL + GAP) + 26
    width = max(LEFT + per_row * (CELL + GAP) + 8, 360)
    body = [_legend(), *body, *_infos(frame["rank"], groups, place, height)]
    cut = f", the first {MOST_RANKS} drawn" if layout.world_size > MOST_RANKS else ""
    alt = f"Rank grid: {layout.arithmetic} x PP {layout.pp} = {layout.world_size} ranks{cut}"
    return drawing(body, width=width, height=height, alt=alt, style=_style(name, frame["rank"], groups), name=name)


def _cell(row, column: int, line: int, place: dict, layout: Layout) -> str:
    x, y = LEFT + column * (CELL + GAP), TOP + line * (CELL + GAP)
    marks = "".join(
        rect(x + 3 + i * 14, y + CELL - 9, 12, 6, fill=color, more=f'class="m {kind}"')
        for i, (kind, color) in enumerate(GROUPS.items())
    )
    classes = " ".join(f"{kind}{place[kind][row.rank]}" for kind in GROUPS)
    coordinates = f"d{row.dp}" + (f"p{row.pp}" if layout.pp > 1 else "") + (f"c{row.pcp}" if layout.pcp > 1 else "")
    words = coordinates + (f"t{row.tp}" if layout.tp > 1 else "")
    label = f"rank {row.rank}, ep_rank {row.ep_rank}"
    return (
        f'<g class="c c{row.rank} {classes}" tabindex="0" aria-label="{label}">'
        + rect(x, y, CELL, CELL, fill="transparent", stroke=LINE, more='rx="5" class="b"')
        + text(x + CELL / 2, y + 19, row.rank, anchor="middle", size=14)
        + text(x + CELL / 2, y + 32, words, anchor="middle", fill=QUIET, size=9)
        + marks
        + "</g>"
    )


def _legend() -> str:
    parts, x = [], LEFT
    for kind, color in GROUPS.items():
        parts.append(rect(x, 8, 12, 8, fill=color) + text(x + 17, 16, f"{kind.upper()} group", fill=QUIET, size=11))
        x += 92
    return "".join(parts)


def _infos(ranks, groups: dict, place: dict, height: float) -> list[str]:
    """One line of words per rank, hidden until the rank is pointed at."""
    lines = [text(6, height - 8, "point at a rank, or press Tab, to see its groups", fill=QUIET, more='class="i hint"')]
    for rank in ranks:
        said = "  ".join(f"{kind.upper()} {_listed(groups[kind][place[kind][rank]])}" for kind in GROUPS)
        lines.append(text(6, height - 8, f"rank {rank}:  {said}", fill=INK, more=f'class="i i{rank}"'))
    return lines


def _style(name: str, ranks, groups: dict) -> str:
    at = f"#{name}"
    rules = [
        f"{at} .m{{opacity:.3}}{at} .i{{display:none}}{at} .hint{{display:block}}",
        f"{at} .c{{outline:none;cursor:default}}{at} .c:focus .b{{stroke-width:3;stroke:{INK}}}",
        f"{at} .c:hover .b{{fill:{FAINT}}}",
    ]
    for kind, of_kind in groups.items():
        for i in range(len(of_kind)):
            one = f".{kind}{i}"
            rules.append(f"{at}:has({one}:hover) {one} .m.{kind},{at}:has({one}:focus) {one} .m.{kind}{{opacity:1}}")
    for rank in ranks:
        rules.append(f"{at}:has(.c{rank}:hover) .i{rank}{{display:block}}")
        rules.append(f"{at}:not(:has(.c:hover)):has(.c{rank}:focus) .i{rank}{{display:block}}")
    rules.append(f"{at}:has(.c:hover) .hint,{at}:has(.c:focus) .hint{{display:none}}")
    return "".join(rules)


def _listed(ranks: tuple[int, ...]) -> str:
    """`0-7` for neighbours, else the ranks, of many the first."""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks[:10])) + (",…" if len(ranks) > 10 else "")
