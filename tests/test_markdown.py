"""Text of others is shown as it is."""

import html
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from torch.optim import SGD

from eva_utils import main as engine
from eva_utils.utils.markdown import escape
from eva_utils.utils.report import write_report
from reporting import Sign


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1)  # Cn: viewers replace some
    | st.text("<>|`*_[]()!#~\\&$:/w.ab1 -+")
)
def test_escaped_text_is_shown_as_it_is(name):
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    paragraph = renderer.render(escape(name))
    plain = re.sub(r"\s+", " ", name).strip()
    shown = renderer.render(f"| {escape(name)} | x |\n| --- | --- |\n| {escape(name)} | y |\n")
    cells = re.findall(r"<t[hd]>(.*?)</t[hd]>", shown, re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == [plain, "x", plain, "y"]
    assert html.unescape(paragraph) == (f"<p>{plain}</p>\n" if plain else "")
    assert not re.search(r"<(?!/?(table|thead|tbody|tr|th|td)>)", shown)


NASTY = "<script>alert(1)</script>|[x](http://a.b)\n# `*_$"


def test_class_names_inject_nothing(tmp_path, own_data, undrawn):
    own_data.classes = [NASTY, "$x$ **bold**"]
    model = Sign()
    fit = {"epochs": 1, "optimizer": SGD(model.parameters(), lr=1e-9), "checkpoint": tmp_path / "run", "log": None}
    engine.fit(model, own_data.train, own_data.test, **fit)
    text = write_report(tmp_path / "run", model, own_data).path.read_text(encoding="utf-8")
    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in text and "http://a.b" not in text
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;|[x](http://a.b) # `*_$</td>" in shown
    assert "<strong>bold" not in shown
