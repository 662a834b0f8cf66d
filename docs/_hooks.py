"""What the site does to a page: drops the tests' marks, and links to files outside of docs/.

The list of formats is written by the code, where the page has its mark.
"""

import re

FENCE = re.compile(r"^```(\w+) [^\n]*$", flags=re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((?:\.\./)+(?!images|docs/)[^)]*\)")


FORMATS = "<!-- formats -->"


def on_page_markdown(markdown: str, page, **_: object) -> str:
    """Return the page's Markdown as the site shows it."""
    if FORMATS in markdown:
        markdown = markdown.replace(FORMATS, formats())
    markdown = FENCE.sub(r"```\1", markdown)
    inside = page.file.src_uri.count("/")

    def link(match: re.Match[str]) -> str:
        target = match.group().rsplit("](", 1)[1]
        return match.group(1) if target.count("../") > inside else match.group()

    return OUTSIDE.sub(link, markdown)


def formats() -> str:
    """Return the list of all formats as Markdown."""
    from triptych.cli.data_list import markdown_lines
    from triptych.data import formats as table

    known = table.FORMATS.entries().values()
    return "\n".join(line for one in known for line in markdown_lines(one))
