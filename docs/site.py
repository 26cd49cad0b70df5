"""What turns the Markdown of this repository into its site: hooks that mkdocs calls.

The files are written to be read where they lie. For the site, pages outside of docs/ are brought in, links follow them, links to code
become plain text, pictures are copied, and formulas become MathML, which browsers show without any script.
"""
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "logs/README.md": "logs.md"}

_FENCE = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that lie outside of docs/."""
    for path, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for picture in sorted((ROOT / "asset").glob("*.png")):
        files.append(File.generated(config, f"asset/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the links of a page those of the site; what is in fences stays as it is."""
    source = next((path for path, name in PAGES.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(lambda link: _on_site(link, source), part) for part in parts[::2]]
    return "".join(parts)


def _on_site(link: re.Match[str], source: str) -> str:
    mark, text, target, anchor = link.groups(default="")
    text = _LINK.sub(lambda inner: _on_site(inner, source), text)
    if re.match(r"[a-z]+:", target) or not target:
        return f"{mark}[{text}]({target}{anchor})"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in PAGES:
        return f"{mark}[{text}]({PAGES[path]}{anchor})"
    if path.startswith("docs/") and path.endswith(".md"):
        return f"{mark}[{text}]({posixpath.relpath(path, 'docs')}{anchor})"
    return f"{mark}[{text}]({path})" if path.startswith("asset/") and path.endswith(".png") else text


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas of a page by MathML. Raises ValueError where a command of one is not known."""
    return _FORMULA.sub(lambda formula: _mathml(formula, page.file.src_uri), html)


def _mathml(formula: re.Match[str], name: str) -> str:
    tex = formula[2].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    found = convert(tex, display="block" if formula[1] == "div" else "inline").replace("\\_", "_")
    if "\\" in found:
        raise ValueError(f"{name}: a command in the formula {tex.strip()} is not known to latex2mathml")
    return found
