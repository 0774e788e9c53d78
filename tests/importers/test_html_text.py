"""HTML and shortcodes as text; what only looks like HTML stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfusion.importers.html_text import html_to_text, wordpress_to_text


@pytest.mark.parametrize(
    "text", ["a < b & c > d", "R&D", "5 <6 and 7> 3", "<3 love", "<your name>", "two\nlines", "T&copy shirt", "M&M;s"]
)
def test_plain_text_stays(text: str) -> None:
    assert html_to_text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Of wool.</p><p>Warm<br/>and soft</p>", "Of wool. Warm and soft"),
        ("<ul><li>one</li><li>two</li></ul>", "one two"),
        ("<b>S</b>oft <STRONG>and</STRONG> <span class='x'>warm</span>", "Soft and warm"),
        ("30&deg;&nbsp;wash &amp; dry &#8364;5 &#x41;", "30° wash & dry €5 A"),
        ("<style>p{color:red}</style>a<script>alert('<p>')</script>b<!-- <p>c</p> -->d", "a b d"),
        ("a<style>never closed", "a"),
        ("a <!-- never closed", "a"),
        ("&lt;p&gt;Twice &amp;amp; more&lt;/p&gt;", "Twice & more"),
        ('<a title="x > y" href="#">link</a>', "link"),
        ('<p class="x>no end of quote</p><p class="y>two</p>', "no end of quote two"),
        ("<o:p></o:p><custom-tag a=1>text</custom-tag>", "text"),
        ("soft\u00adhyphen &amp; zero\u200bwidth", "softhyphen & zerowidth"),
        ("<p>a < b</p>", "a < b"),
    ],
)
def test_html_becomes_text(text: str, expected: str) -> None:
    assert html_to_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<p>One.</p>\n<p>Two [gallery ids=" "1,2" "] three</p>", "One. Two three"),
        ("[vc_row][vc_column]Text[/vc_column][/vc_row]", "Text"),
        ("[caption id='a']Photo[/caption] [M] and [New in]", "Photo [M] and [New in]"),
        (r"C:\\new", r"C:\\new"),
    ],
)
def test_wordpress(text: str, expected: str) -> None:
    assert wordpress_to_text(text) == expected


@given(st.text(alphabet="<>&;/!-ab \"'=p", max_size=200))
def test_any_text_is_read(text: str) -> None:
    assert isinstance(html_to_text(text), str)
