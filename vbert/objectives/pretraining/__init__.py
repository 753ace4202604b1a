"""Pre-training: masked words and image–text matching over one or several data sets."""

from vbert.artifacts.steps.settings import Plugin

# The version is raised by hand when pre-training starts to make something else.
OBJECTIVE = Plugin(name="mlm_itm", version=1)
