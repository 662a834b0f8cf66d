"""What the site does to a page: drops the tests' marks, and links to files outside of docs/."""

import re

FENCE = re.compile(r"^```(\w+) [^\n]*$", flags=re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((?:\.\./)+(?!images|docs/)[^)]*\)")


def on_page_markdown(markdown: str, page, **_: object) -> str:
    """Return the page's Markdown as the site shows it."""
    markdown = FENCE.sub(r"```\1", markdown)
    inside = page.file.src_uri.count("/")

    def link(match: re.Match[str]) -> str:
        target = match.group().rsplit("](", 1)[1]
        return match.group(1) if target.count("../") > inside else match.group()

    return OUTSIDE.sub(link, markdown)
