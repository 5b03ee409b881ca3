"""Sphinx settings."""

import tsllm_estimators

project = "tsllm_estimators"
author = "the tsllm_estimators developers"
copyright = "2026, the tsllm_estimators developers"
release = tsllm_estimators.__version__
extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "results", "images"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
nb_execution_mode = "off"
numpydoc_show_class_members = False
autodoc_typehints = "none"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
