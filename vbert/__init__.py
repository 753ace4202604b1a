"""VisualBERT from raw image–text data sets: the Python interface. `help(vbert.Shards)` and the like give examples.

>>> import vbert
>>> done = vbert.run("demo", changes={"seed": 0}, how="local")
>>> done.report.name
'report.html'
>>> shards = done.artifact("regions[easy_vqa]", vbert.Shards)
>>> shards["test/100"].features.dtype
dtype('float16')
"""

from importlib import import_module
from typing import Any

# The module of each name, imported at the name's first use: `import vbert` is instant, and no module of vbert depends
# on flows (arrows run flows → tasks → vbert). Type checkers read `__init__.pyi`.
_PLACES = {
    "BuildError": "vbert.errors",
    "Evaluation": "vbert.metrics.evaluation",
    "Examples": "vbert.data.examples",
    "Finished": "flows.python",
    "Images": "vbert.data.images",
    "Overlaps": "vbert.data.overlaps",
    "Model": "vbert.objectives.trained",
    "RawFiles": "vbert.data.raw",
    "Recipe": "flows.recipe",
    "Report": "vbert.report.page",
    "Shards": "vbert.regions.shards",
    "Store": "vbert.artifacts.store.store",
    "UserError": "vbert.errors",
    "VisualBert": "flows.models",
    "resolve": "flows.recipe",
    "run": "flows.python",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("vbert")
    elif name in _PLACES:
        found = getattr(import_module(_PLACES[name]), name)
    else:
        from vbert.inference.elsewhere import instead

        raise AttributeError(f"vbert has no {name!r}; {instead(name, list(_PLACES))}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
