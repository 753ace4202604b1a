# For type checkers alone: the names that `__init__.py` looks up at their first use.
from flows.models import VisualBert as VisualBert
from flows.python import Finished as Finished
from flows.python import run as run
from flows.recipe import Recipe as Recipe
from flows.recipe import resolve as resolve
from vbert.artifacts.store.store import Store as Store
from vbert.data.examples import Examples as Examples
from vbert.data.images import Images as Images
from vbert.data.overlaps import Overlaps as Overlaps
from vbert.data.raw import RawFiles as RawFiles
from vbert.errors import BuildError as BuildError
from vbert.errors import UserError as UserError
from vbert.metrics.evaluation import Evaluation as Evaluation
from vbert.objectives.trained import Model as Model
from vbert.regions.shards import Shards as Shards
from vbert.report.page import Report as Report

__version__: str
