"""Settings of Sphinx: `sphinx-build -W -b html docs outputs/site` makes pages of these files and of the docstrings."""

project = "mmfusion"
html_theme = "furo"
html_title = "mmfusion"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Docstrings are written as Markdown is: `code`.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# Those of Lightning and transformers refer to their own pages.
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "undoc-members": False, "inherited-members": False}
