"""The structure of the code: `make structure` prints its import circles, its long files, and the lines of the store.

An import counts wherever it stands: at the top, inside a function, for type checkers alone. What is imported by a name
put together at run time (readers, objectives, backends, the names of `vbert/__init__.py`) does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("vbert", "tasks", "flows")
LONGEST = 400  # lines of a file

Graph = Mapping[str, set[str]]  # module → those it imports


def imports() -> Graph:
    """Every module of the packages, and which others of them it imports."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}


def circles(graph: Graph) -> list[list[str]]:
    """Of each strongly connected part of more than one module its modules, the largest part first."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    modules = sorted(graph)
    at = {module: k for k, module in enumerate(modules)}
    edges = np.array([(at[a], at[b]) for a in modules for b in graph[a]], np.int64).reshape(-1, 2)
    size = len(modules)
    matrix = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size))
    parts: dict[int, list[str]] = {}
    for module, part in zip(modules, connected_components(matrix, connection="strong")[1].tolist(), strict=True):
        parts.setdefault(part, []).append(module)
    return sorted((part for part in parts.values() if len(part) > 1), key=len, reverse=True)


def one_way_round(graph: Graph, modules: list[str]) -> str:
    """A way round within a circle: `a → b → a`."""
    inside = {module: graph[module].intersection(modules) for module in modules}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        return " → ".join(reversed(error.args[1]))  # it names each before the one that imports it
    return ""


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def long_files(*folders: str) -> dict[str, int]:
    """Python files of more than LONGEST lines, the longest first."""
    found = {str(p.relative_to(ROOT)): lines(p) for folder in folders for p in (ROOT / folder).rglob("*.py")}
    return {name: n for name, n in sorted(found.items(), key=lambda item: -item[1]) if n > LONGEST}


def main() -> None:
    graph = imports()
    parts = circles(graph)
    print(f"import circles: {len(parts)} (of {len(graph)} modules)")
    for part in parts:
        print(f"  {len(part)} modules: {one_way_round(graph, part)}")
    for folders in (PACKAGES, ("tests",)):
        found = long_files(*folders)
        print(f"files above {LONGEST} lines in {', '.join(folders)}: {len(found)}")
        for name, n in found.items():
            print(f"  {n:,} {name}")
    print(f"lines of vbert/artifacts: {sum(map(lines, (ROOT / 'vbert/artifacts').rglob('*.py'))):,}")


if __name__ == "__main__":
    main()
