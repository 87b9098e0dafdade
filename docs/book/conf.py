"""The site as Sphinx makes it; `pipeline/book.py` lays its sources out around this file."""
import re
from pathlib import Path

from docutils import nodes

# The address of a public repository.  With one, the pages offer Binder, Colab and the source; without, none.
REPOSITORY = ""

project = "Five Roads from Noise to Data"
copyright = "its authors, under the MIT licence"
extensions = ["myst_nb"]
exclude_patterns = ["extra", "_static"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables of claims.show() among them
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = {"http": None, "https": None, "cell": "../notebooks/{{path}}.html#{{fragment}}"}
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # a notebook's # then ###; Python with an ellipsis

mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}, "chtml": {"mtextInheritFont": True}}
html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_extra_path = ["extra"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"type": "module"})]
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 1,
    "toc_title": "On this page",
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navbar_persistent": [],
    "footer_content_items": ["copyright.html"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if REPOSITORY:
    html_theme_options |= {"repository_url": REPOSITORY, "repository_branch": "main",
                           "use_repository_button": True,
                           "launch_buttons": {"binderhub_url": "https://mybinder.org",
                                              "colab_url": "https://colab.research.google.com"}}


def cells(app, doctree):
    """Every code cell gets an anchor, for the ledger links to what measured; a page its live figure on top."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            cell["ids"].append(f"cell-{cell['cell_index']:02d}")
    page = app.env.docname
    number = {"index": "0", "bugs": "bugs"}.get(page, page.removeprefix("notebooks/0")[:1])
    alone = Path(app.srcdir) / "extra" / "live" / f"{number}.html"
    if page.startswith(("index", "bugs", "notebooks/0")) and alone.exists():
        app.env.note_dependency(str(alone))
        box = re.search(r'<div class="live".*</div>', alone.read_text(encoding="utf-8"))[0]
        live = "../" * page.count("/") + "live"
        box = box.replace('src="', f'src="{live}/') + f'\n<script type="module" src="{live}/{number}.js"></script>'
        doctree.next_node(nodes.section).insert(2, nodes.raw("", box, format="html"))


def setup(app):
    app.connect("doctree-read", cells)
