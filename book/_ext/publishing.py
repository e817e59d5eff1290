"""The book as a site: the pages on modules, descriptions of pictures, an address with its buttons."""

import os
import re

from docutils import nodes
from sphinx.errors import ConfigError
from sphinx.util import logging

from rflw.records import REPOSITORY

LOGGER = logging.getLogger(__name__)
GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
MODULE = "\n### {0}\n\n```{{eval-rst}}\n.. automodule:: {0}\n```\n"


def modules(package: str) -> list[str]:
    """The modules of a package by its files, without its commands."""
    files = sorted((REPOSITORY / package).rglob("*.py"))
    names = [".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in files]
    return [name for name in names if not name.endswith(("__", ".cli"))]


def add_modules(app, page: str, text: list[str]) -> None:
    """Adds all modules to the page on the programming interface, under each package's heading."""
    for package in ("rflw", "rflw_study") if page == "book/api" else ():
        heading = f"## Modules of {package}\n"
        text[0] = text[0].replace(heading, heading + "".join(map(MODULE.format, modules(package))))


def described(app, doctree) -> None:
    """A picture without a description is an error of the build."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            uri = image.get("uri", "")
            LOGGER.error("picture without alternative text: %s", uri, location=image)


def plain_bibliography(app, page, template, context, doctree) -> None:
    """Docutils marks the bibliography as a list without items, which screen readers stumble over."""
    if "body" in context:
        listed = '<div role="list" class="citation-list">'
        context["body"] = context["body"].replace(listed, '<div class="citation-list">')


def address(app, config) -> None:
    """With RFLW_REPOSITORY=https://github.com/OWNER/NAME: buttons, a sitemap and social cards.

    The book is then at OWNER.github.io/NAME, or at RFLW_URL. Without, it names no other host.
    """
    repository = os.environ.get("RFLW_REPOSITORY", "")
    config.notfound_urls_prefix = "/"
    if not repository:
        return
    match = GITHUB.fullmatch(repository)
    if not match:
        expected = "expected https://github.com/OWNER/NAME"
        raise ConfigError(f"RFLW_REPOSITORY is {repository!r}: {expected}")
    owner, name = match.groups()
    config.html_theme_options |= {
        "repository_url": f"https://github.com/{owner}/{name}",
        "repository_branch": "main",
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        },
    }
    for button in ("repository", "edit_page", "issues", "source"):
        config.html_theme_options[f"use_{button}_button"] = True
    config.html_baseurl = os.environ.get("RFLW_URL") or f"https://{owner.lower()}.github.io/{name}/"
    config.notfound_urls_prefix = "/" + config.html_baseurl.split("/", 3)[3]
    config.sitemap_url_scheme = "{link}"
    config.sitemap_excludes = ["404.html", "search.html"]
    config.ogp_site_url = config.html_baseurl
    config.ogp_social_cards = {"image_mini": "book/_static/icon.png", "line_color": "#0b63a5"}
    config.ogp_site_name = str(config.html_title or config.project)


def setup(app) -> dict:
    if os.environ.get("RFLW_REPOSITORY"):
        app.setup_extension("sphinx_sitemap")
        app.setup_extension("sphinxext.opengraph")
    app.connect("source-read", add_modules)
    app.connect("doctree-read", described)
    app.connect("config-inited", address, priority=100)
    app.connect("html-page-context", plain_bibliography)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
