"""How Sphinx builds these pages: `make docs`. Warnings are errors there, dead links among them."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

lexers |= {name: TextLexer() for name in ("csv", "jsonl", "mermaid")}

project = "vbert"
author = "the authors of vbert"
copyright = author
release = version = installed("vbert")
language = "en"

extensions = ["myst_parser", "generated"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # `--` begins an option
exclude_patterns = ["build"]

html_theme = "furo"
html_title = "vbert"
html_static_path = ["static"]
html_css_files = ["vbert.css"]
html_js_files = ["accessible.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8ee", "color-brand-content": "#8ab8ee"},
}
