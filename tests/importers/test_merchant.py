"""Feeds of Google Merchant: RSS, Atom, tables, and what is wrong with them."""

import gzip
import json
from pathlib import Path

import pytest
from importer_reading import Read, read, write

from mmfusion.data.catalogue_schema import CatalogueError

GOOGLE = 'xmlns:g="http://base.google.com/ns/1.0"'


def item(item_id: str, more: str = "", title: str = "Pan") -> str:
    photo = f"<g:image_link>https://a.b/{item_id}.jpg</g:image_link>"
    return f"<item>\n<g:id>{item_id}</g:id><g:title>{title}</g:title>{photo}{more}</item>\n"


def feed(folder: Path, *items: str, head: str = "", namespace: str = GOOGLE, **how: object) -> Read:
    text = f"{head}<rss {namespace}><channel><title>Shop</title>\n{''.join(items)}</channel></rss>"
    return read(write(folder, "feed.xml", text), **how)


def test_fields_of_an_item(tmp_path: Path) -> None:
    more = (
        "<g:description><![CDATA[<p>Of iron</p> & <b>wood</b>]]></g:description>"
        "<g:additional_image_link>https://a.b/2.jpg</g:additional_image_link>"
        "<g:additional_image_link> https://a.b/3,w_2.jpg,https://a.b/4.jpg </g:additional_image_link>"
        "<g:availability>Out of Stock</g:availability>"
        "<g:price>1.299,00 EUR</g:price><g:sale_price>999 EUR</g:sale_price>"
        "<g:shipping><g:country>DE</g:country><g:price>4.90 EUR</g:price></g:shipping>"
        "<g:item_group_id>P</g:item_group_id><g:google_product_category>632</g:google_product_category>"
        "<g:product_type>Kitchen &gt; Pans</g:product_type><g:color>Black</g:color><c:weight>3</c:weight>"
    )
    found = feed(tmp_path, item("0071", more))
    assert found.format == "merchant" and found.imported.variants == "item"
    pan = found.products["0071"]
    assert (pan.title, pan.description, pan.group_id) == ("Pan", "Of iron & wood", "P")
    assert pan.photos == ["https://a.b/0071.jpg", "https://a.b/2.jpg", "https://a.b/3,w_2.jpg", "https://a.b/4.jpg"]
    assert pan.metadata == {
        "price": 1299.0,
        "currency": "EUR",
        "sale_price": 999.0,
        "availability": "out_of_stock",
        "category": "Kitchen > Pans",
        "google_product_category": "632",
        "product_type": "Kitchen > Pans",
        "color": "Black",
        "weight": "3",
    }
    assert pan.place.endswith("feed.xml, line 2")


@pytest.mark.parametrize("namespace", [GOOGLE, "", 'xmlns:g="http://other.example"'])
def test_prefixes_need_not_be_declared(tmp_path: Path, namespace: str) -> None:
    assert feed(tmp_path, item("1"), namespace=namespace).titles() == {"1": "Pan"}


def test_other_prefixes_and_none(tmp_path: Path) -> None:
    text = item("1").replace("g:", "google:") + item("2").replace("g:", "")
    assert list(feed(tmp_path, text).products) == ["1", "2"]


def test_atom(tmp_path: Path) -> None:
    entry = (
        "<entry><id>tag:shop,1</id><g:id>1E5</g:id><title>Pan</title><link href='https://a.b/p?x=1&amp;y=2'/>"
        "<summary type='html'>&lt;p&gt;Iron&lt;/p&gt;</summary><g:image_link>https://a.b/1.jpg</g:image_link></entry>"
    )
    found = read(
        write(
            tmp_path, "feed", f'<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom" {GOOGLE}>{entry}</feed>'
        )
    )
    (pan,) = found.products.values()
    assert (pan.item_id, pan.title, pan.description) == ("1E5", "Pan", "Iron")
    assert pan.metadata["link"] == "https://a.b/p?x=1&y=2"


def test_structured_titles(tmp_path: Path) -> None:
    written = "<g:digital_source_type>trained</g:digital_source_type><g:content>Pan {}</g:content>"
    more = f"<g:structured_title>{written.format(1)}</g:structured_title>"
    more += f"<g:structured_description>{written.format(2)}</g:structured_description>"
    pan = feed(tmp_path, f"<item><g:id>1</g:id><g:image_link>p.jpg</g:image_link>{more}</item>").products["1"]
    assert (pan.title, pan.description) == ("Pan 1", "Pan 2")


def test_what_calls_itself_latin_1(tmp_path: Path) -> None:
    head = '<?xml version="1.0" encoding="ISO-8859-1"?>'
    text = f"{head}<rss {GOOGLE}><channel>{item('1', title='Kännchen – 5 €')}</channel></rss>"
    (tmp_path / "feed.xml").write_bytes(text.encode("cp1252"))
    assert read(tmp_path / "feed.xml").titles() == {"1": "Kännchen – 5 €"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("R&D & co", "R&D & co"),
        ("30&nbsp;cm &eacute;t&eacute; &custom;", "30 cm été &custom;"),
        ("a <!-- comment --> b", "a b"),
        ("<p>one<br>two</p>", "one two"),
        ('<a href=https://a.b/c class="x">link</a>', "link"),
        ("5 < 6", "5 < 6"),
        ("bell \x07 rings", "bell rings"),
        ("<![CDATA[</item> is no end]]>", "</item> is no end"),
        ("&lt;ul&gt;&lt;li&gt;one&lt;/li&gt;&lt;/ul&gt;", "one"),
    ],
)
def test_what_is_not_quite_xml(tmp_path: Path, more: str, expected: str) -> None:
    found = feed(tmp_path, item("1", f"<g:description>{more}</g:description>"), item("2"))
    assert list(found.products) == ["1", "2"]
    assert " ".join(found.products["1"].description.split()) == expected


def test_a_broken_item_costs_itself_alone(tmp_path: Path) -> None:
    found = feed(
        tmp_path, item("1"), item("2", "<g:brand>open"), item("3"), "<item><g:id>4</g:id>\n", item("5"), item("")
    )
    assert list(found.products) == ["1", "3", "5"]
    assert [(line, reason.split(":")[0]) for _, line, reason in found.log.rejected] == [
        (4, "not XML"),
        (8, "not XML"),
        (11, "no id"),
    ]


def test_a_feed_cut_in_an_item(tmp_path: Path) -> None:
    text = f"<rss {GOOGLE}><channel>\n{item('1')}{item('2')}"
    found = read(write(tmp_path, "feed.xml", text[:-30]))
    assert list(found.products) == ["1"]
    assert [(line, reason) for _, line, reason in found.log.rejected] == [
        (4, "not XML: the file ends in the middle of an item")
    ]


def test_entities_of_a_document_type_are_not_expanded(tmp_path: Path) -> None:
    head = '<!DOCTYPE rss [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/hostname">]>\n'
    found = feed(tmp_path, item("1", "<g:description>&a;&b;</g:description>"), head=head)
    assert found.products["1"].description == "&a;&b;"


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_items_across_chunks(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.importers.xml_items._CHUNK", size)
    items = [
        item(str(n), f"<g:description><![CDATA[{'<item>x</item>' * n}]]></g:description><!-- </item> -->")
        for n in range(6)
    ]
    found = feed(tmp_path, *items)
    assert list(found.products) == [str(n) for n in range(6)]
    assert [one.place.rsplit(" ", 1)[1] for one in found.products.values()] == [str(2 + 2 * n) for n in range(6)]


def test_an_item_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmfusion.importers.xml_items.MAX_ROW", 1000)
    monkeypatch.setattr("mmfusion.importers.xml_items._CHUNK", 100)
    found = feed(tmp_path, item("1"), item("2", "<g:description>" + "x" * 5000 + "</g:description>"), item("3"))
    assert list(found.products) == ["1", "3"]
    assert [line for _, line, _ in found.log.rejected] == [4]


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16", "windows-1251", "no-such"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    title = "Шапка" if encoding == "windows-1251" else "Größe"
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<rss {GOOGLE}><channel>{item("1", title=title)}</channel></rss>'
    )
    content = text.encode("utf-8" if encoding == "no-such" else encoding)
    assert read(write(tmp_path, "feed.xml", content)).titles() == {"1": title}
    assert read(write(tmp_path, "feed.xml.gz", gzip.compress(content))).titles() == {"1": title}


def test_tables(tmp_path: Path) -> None:
    photos = "g:image link\tg:additional image link\tg:additional image link"
    text = f"g:id\tg:title\t{photos}\tg:availability\tg:item group id\n"
    text += '01\t"Pan 12"" wide"\ta.jpg\tb.jpg,c.jpg\td.jpg\tpreorder\tP\n01\tAgain\ta.jpg\t\t\t\t\n'
    found = read(write(tmp_path, "feed.txt", text))
    assert found.format == "merchant" and found.log.left_out.total() == 1
    (pan,) = found.products.values()
    assert (pan.title, pan.photos, pan.group_id) == ('Pan 12" wide', ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "P")
    assert pan.metadata == {"availability": "preorder"}


def test_variants(tmp_path: Path) -> None:
    items = [
        item("1", "<g:item_group_id>G</g:item_group_id>"),
        item("2", "<g:item_group_id>G</g:item_group_id>").replace("2.jpg", "1.jpg"),
        item("3", "<g:item_group_id>G</g:item_group_id>"),
        item("4"),
    ]
    assert list(feed(tmp_path, *items).products) == ["1", "2", "3", "4"]
    assert list(feed(tmp_path, *items, variants="product").products) == ["G", "4"]
    assert list(feed(tmp_path, *items, variants="photo").products) == ["1", "3", "4"]


def test_fields_that_the_user_names(tmp_path: Path) -> None:
    more = "<g:mpn>A-1</g:mpn><g:short_title>Short</g:short_title>"
    found = feed(tmp_path, item("1", more), columns={"title": "short_title"}, id_column="mpn")
    assert found.titles() == {"A-1": "Short"}
    with pytest.raises(CatalogueError, match="there is no column 'nom'"):
        feed(tmp_path, item("1"), columns={"title": "nom"})


def test_feeds_without_items_or_ids(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"feed\.xml: no item can be read"):
        feed(tmp_path, "<item><g:id>1</g:id>")
    with pytest.raises(CatalogueError, match=r"its items have no id.*--id_column"):
        feed(tmp_path, "<item><g:mpn>1</g:mpn></item>")


@pytest.mark.parametrize("name", ["feed.xml", "feed_unbound_prefix.xml", "feed.tsv"])
def test_samples(samples: Path, name: str) -> None:
    expected = json.loads((samples / "merchant" / "expected.json").read_text())["files"][name]
    found = read(samples / "merchant" / name)
    assert list(found.products) == expected["product_ids"]
    assert {one: len(found.products[one].photos) for one in found.products} == expected["photos_listed"]
    for attribute in ("title", "description"):
        for product, text in expected.get(attribute, {}).items():
            assert getattr(found.products[product], attribute) == text
    for column in ("price", "currency", "availability"):
        for product, value in expected.get(column, {}).items():
            assert found.products[product].metadata[column] == value
    assert found.log.left_out.total() == len(expected.get("duplicates", {}))
    if name == "feed.xml":
        by_photo = expected["grouped_by_item_group_id_and_photo"]
        assert list(read(samples / "merchant" / name, variants="photo").products) == by_photo["product_ids"]
        by_group = expected["grouped_by_item_group_id"]
        grouped = read(samples / "merchant" / name, variants="product").products
        assert len(grouped) == by_group["num_products"]
        assert len(grouped["HD-100"].photos) == by_group["photos_listed"]["HD-100"]
