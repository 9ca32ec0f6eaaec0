"""Sphinx settings: Markdown pages, an API reference and an errors page made from the code."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_extensions"))
sys.path.insert(0, str(HERE.parent / "src"))

project = "microtome"
author = "the microtome authors"
project_copyright = "the microtome authors, Apache-2.0"
release = version = importlib.metadata.version("microtome")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_pages",
    "cli_page",
    "errors_page",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Annotations name classes by their short names, of which a few occur in two modules.
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = f"microtome {release}"
html_static_path = ["_static"]
html_css_files = ["microtome.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1b5f7e",
        "color-brand-content": "#1b5f7e",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc0dd",
        "color-brand-content": "#7cc0dd",
    },
}
pygments_style = "friendly"
pygments_dark_style = "native"
