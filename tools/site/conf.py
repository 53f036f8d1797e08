"""Sphinx's configuration of the site: committed outputs, nothing executed, nothing loaded from elsewhere."""

project = "mnnvl_lab"
author = "the authors of mnnvl_lab"
copyright = ""
html_title = "mnnvl_lab"
language = "en"

extensions = ["myst_nb", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would be loaded from elsewhere, and have no kernel here
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # tables have a plain text beside their own type

html_theme = "sphinx_book_theme"
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "show_navbar_depth": 1,
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_last_updated_fmt = None
copybutton_selector = "div.cell_input pre, div.highlight-sh pre, div.highlight-python pre"
