"""A layered drawing of a directed graph: columns by depth, few crossings, straight runs (Sugiyama et al. 1981)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 134.0, 86.0  # of a node
GAP_X, GAP_Y = 26.0, 16.0
LANE = 14.0  # height that an edge takes in a column it passes
SWEEPS = 12  # more change nothing on graphs of this size

Lane = tuple[str, str, int]  # the place of the edge (from, to) in a column that it passes
Item = str | Lane


@dataclass(frozen=True)
class GraphLayout:
    """Upper left corners of the nodes, paths of the edges (SVG path data), and the size of the whole."""

    places: dict[str, tuple[float, float]]
    paths: dict[tuple[str, str], str]
    width: float
    height: float


def essential(inputs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Transitive reduction: leaves out inputs that another input depends on. Keys come after their inputs."""
    behind: dict[str, set[str]] = {}
    for key, sources in inputs.items():
        behind[key] = set(sources).union(*(behind[one] for one in sources))
    return {
        key: [one for one in sources if not any(one in behind[other] for other in sources if other != one)]
        for key, sources in inputs.items()
    }


def layered_layout(inputs: Mapping[str, Sequence[str]]) -> GraphLayout:
    """Draw the graph whose nodes are the keys of `inputs`, each after its inputs; ties keep the order of the keys."""
    depth = _depths(inputs)
    columns: list[list[Item]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for key in inputs:
        columns[depth[key]].append(key)
    ways: dict[tuple[str, str], list[Item]] = {}
    for key, sources in inputs.items():
        for one in sources:
            lanes: list[Lane] = [(one, key, at) for at in range(depth[one] + 1, depth[key])]
            for lane in lanes:
                columns[lane[2]].append(lane)
            ways[one, key] = [one, *lanes, key]
    centres = _centres(columns, _neighbours(columns, ways))
    x = {item: at * (WIDTH + GAP_X) for at, column in enumerate(columns) for item in column}
    places = {key: (x[key], round(centres[key] - HEIGHT / 2, 1)) for key in inputs}
    paths = {edge: _path(way, x, centres) for edge, way in ways.items()}
    height = max((y + HEIGHT for _, y in places.values()), default=0.0)
    lowest = max((centres[item] + LANE / 2 for column in columns for item in column), default=0.0)
    return GraphLayout(places, paths, max(0.0, len(columns) * (WIDTH + GAP_X) - GAP_X), max(height, lowest))


def _depths(inputs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The column of each node: as late as its followers allow; nodes without followers are in the last column."""
    depth: dict[str, int] = {}
    for key, sources in inputs.items():
        depth[key] = max((depth[one] + 1 for one in sources), default=0)
    last = max(depth.values(), default=0)
    followers: dict[str, list[str]] = {key: [] for key in inputs}
    for key, sources in inputs.items():
        for one in sources:
            followers[one].append(key)
    for key in reversed(list(inputs)):
        depth[key] = min((depth[other] - 1 for other in followers[key]), default=last)
    return depth


def _neighbours(
    columns: Sequence[Sequence[Item]], ways: Mapping[tuple[str, str], Sequence[Item]]
) -> dict[Item, list[Item]]:
    neighbours: dict[Item, list[Item]] = {item: [] for column in columns for item in column}
    for way in ways.values():
        for one, other in pairwise(way):
            neighbours[one].append(other)
            neighbours[other].append(one)
    return neighbours


def _centres(columns: Sequence[list[Item]], neighbours: Mapping[Item, Sequence[Item]]) -> dict[Item, float]:
    """Heights of the items' centres from the top; each column is ordered by its neighbours' mean height."""
    centre: dict[Item, float] = {}
    for column in columns:
        _stack(column, dict.fromkeys(column, 0.0), centre)
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            wanted = {
                item: sum(centre[n] for n in neighbours[item]) / len(neighbours[item])
                if neighbours[item]
                else centre[item]
                for item in column
            }
            if sweep < SWEEPS // 2:
                column.sort(key=lambda item, wanted=wanted: wanted[item])  # type: ignore[misc]  # stable
            _stack(column, wanted, centre)
    top = min((centre[item] - _size(item) / 2 for item in centre), default=0.0)
    return {item: value - top for item, value in centre.items()}


def _size(item: Item) -> float:
    return HEIGHT if isinstance(item, str) else LANE


def _stack(column: Sequence[Item], wanted: Mapping[Item, float], centre: dict[Item, float]) -> None:
    """Centres as near to the wanted ones as order and gaps allow (least squares, by pool adjacent violators)."""
    offsets, at = [], 0.0
    for before, item in pairwise([None, *column]):
        if before is not None and item is not None:
            at += (_size(before) + _size(item)) / 2 + GAP_Y
        offsets.append(at)
    pools: list[tuple[float, int]] = []
    for item, offset in zip(column, offsets, strict=True):
        mean, count = wanted[item] - offset, 1
        while pools and pools[-1][0] > mean:
            other, many = pools.pop()
            mean, count = (mean * count + other * many) / (count + many), count + many
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    for item, mean, offset in zip(column, means, offsets, strict=True):
        centre[item] = mean + offset


def _path(way: Sequence[Item], x: Mapping[Item, float], centre: Mapping[Item, float]) -> str:
    """From the right side of the first item to the left side of the last, level through the lanes between."""
    px, py = x[way[0]] + WIDTH, centre[way[0]]
    path = f"M{px:.1f} {py:.1f}"
    for item in way[1:]:
        nx, ny = x[item], centre[item]
        middle = (px + nx) / 2
        path += f"C{middle:.1f} {py:.1f} {middle:.1f} {ny:.1f} {nx:.1f} {ny:.1f}"
        if not isinstance(item, str):
            nx += WIDTH
            path += f"H{nx:.1f}"
        px, py = nx, ny
    return path
