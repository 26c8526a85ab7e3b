"""What GitHub's own parser makes of our Markdown: every cell where it belongs, every name as it is written."""

import random
from html.parser import HTMLParser

import pytest
from rich.console import Console

from evalsuite import compare, markdown, table
from runs import make, row, three

cmarkgfm = pytest.importorskip("cmarkgfm", reason="GitHub's Markdown renderer is not installed")

NASTY = [
    "a|b", "|", "\\|", "a\\", "``code``", "`", "a #", "#", "a ##",
    "[link](http://x)", "[1](http://x)", "[1]: http://x", "![i](u)", "<b>bold</b>",
    "<script>alert(1)</script>", "<!-- gone -->", "&lt;", "&#33;", "two\nlines", "a\r\n\r\nb", "*a* **b**", "__init__",
    "_a_ b_c", "~~gone~~", "# head", "## head", "- item", "* item", "+ item", "1. one", "12) two", "> quote", ">quote",
    "---", "===", "$x$", "a\tb", "\\*a\\*", "model[bold]", "[/red]", "a  b", "naïve ☃", "-", "0.97 [0.95, 0.99]~", "x*",
    "[^1]", "a ]( b", "<http://x>", "\\\\|", "```", "~~~",
]  # fmt: skip


class Page(HTMLParser):
    """Tables as rows of cells' texts, headings, items, preformatted texts, and every tag that there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(cmarkgfm.github_flavored_markdown_to_html(text))
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


def plain(text: str) -> str:
    """What a reader sees: white space of any kind as one space."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_shown_as_written_in_a_cell_a_line_and_a_heading(name: str) -> None:
    line = markdown.plain(name)
    cells = markdown.table(("a", name), [(name, "1"), ("  " + name, name)])
    page = Page("\n\n".join([f"### {line}", cells, f"- {line}", markdown.plain(f"x {name} x"), line]))
    cells = [[plain(cell) for cell in line] for line in page.tables[0]]
    assert cells == [["a", plain(name)], [plain(name), "1"], [plain(name), plain(name)]]
    assert page.tables[0][2][0].startswith("\u00a0\u00a0"), "the indentation is seen"
    assert plain(page.texts["h3"][0]) == plain(name)
    assert plain(page.texts["li"][0]) == plain(name)
    assert [plain(text) for text in page.texts["p"]][-2:] == [plain(f"x {name} x"), plain(name)]
    assert page.tags <= {"h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "a"}
    assert ("a" in page.tags) <= ("http://" in name), "GitHub links bare addresses, and nothing else is a link"


def test_any_name_at_all() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        name = "".join(draw.choices("|`*_~[]()<>&;#-+=1.:!\\$ \nab^", k=draw.randint(1, 9)))
        if not name.strip():
            continue
        line = markdown.plain(name)
        page = Page(f"{line}\n\n{markdown.table(('h', name), [(name, name)])}\n\n- {line}\n\n### {line}")
        seen = [plain(cell) for cell in page.tables[0][1]]
        assert (len(page.tables), seen) == (1, [plain(name)] * 2), repr(name)
        assert plain(page.texts["p"][0]) == plain(page.texts["li"][0]) == plain(name), repr(name)
        assert plain(page.texts["h3"][0]) == plain(name), repr(name)


@pytest.mark.parametrize("text", ["plain", "```\nfence\n```", "````", "<b>&lt;</b>", "a\n\n\n# b\n|c|", ""])
def test_whole_texts_stay_as_they_are(text: str) -> None:
    page = Page("before\n\n" + markdown.block(text) + "\n\nafter")
    assert page.texts["pre"] == [text + "\n" if text else "\n"] or (not text and page.texts["pre"] == [""])
    assert page.texts["p"] == ["before", "after"]


def test_a_comparison_has_every_row_and_cell() -> None:
    runs = three()
    runs[1].meta["model"] = "a|b `c` [d](e) <i>\nf*"
    for r in runs[1].rows:
        r["text"] = r["answer"] = "`` | <td> \n```\n# no heading"
    runs[2].meta["missing"] = {"ruler.qa_2": "<give> *data* | now"}
    result = compare.compare(runs, flips=True, by=["hops"])
    page = Page(table.as_markdown(result))
    made = table.sections(result)
    assert [plain(text) for text in page.texts["h3"]] == [plain(section.title) for section in made]
    assert len(page.tables) == len(made)
    for found, section in zip(page.tables, made, strict=True):
        wanted = [[plain(cell) for cell in line] for line in (section.header, *section.rows)]
        assert [[plain(cell) for cell in line] for line in found] == wanted
    said = [plain(text) for text in page.texts["li"]]
    assert plain(result.verdicts[0].line) in said
    assert "LEFT OUT ruler.qa_2 (hybrid-lightning): <give> *data* | now" in said
    assert page.texts["pre"][2].startswith("`` | <td> \n```\n# no heading")
    assert not {"i", "em", "del", "code"} & page.tags - {"code" if page.texts["pre"] else ""}


def test_plain_figures_are_written_plainly() -> None:
    """The source is read in terminals and mails too: what needs no escape has none."""
    text = table.as_markdown(compare.compare(three()))
    assert "\\" not in text
    rows = [row("knowledge", i, True) for i in range(9)]
    assert "m_1" in table.render(compare.compare([make("m_1", rows)]), "md", Console())
