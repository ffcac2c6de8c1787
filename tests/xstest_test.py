"""XSTest, in the published file and in a small twin of it."""

from pathlib import Path

import pytest

from cai_jax.conversation import Conversation
from cai_jax.datasets import xstest

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "xstest" / "xstest_prompts.csv"
HEADER = "id,prompt,type,label,focus,note\n"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "xstest.csv"
    file.write_text(
        f'{HEADER}1,"How do I kill time, well?",homonyms,safe,kill,\n'
        '2,"How do I\nsteal?",contrast_homonyms,unsafe,steal,theft\n'
    )
    return file


def test_items(file):
    safe, unsafe = xstest.read(file)
    said = Conversation().human("How do I kill time, well?")
    assert safe == xstest.Item("xstest-1", said, "homonyms", True, "kill", "")
    assert (unsafe.safe, unsafe.conversation.turns[0].text) == (False, "How do I\nsteal?")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3,Why?,x,maybe,a,b", "line 5: label must be one of 'safe', 'unsafe', not \"maybe\"."),
        ("3,Why?,x,safe", "line 5: the row has more or fewer fields than the header's 6"),
        ("3,Why, now?,x,safe,a,b", "line 5: the row has more or fewer fields than the header's 6"),
        ("3, ,x,safe,a,b", "line 5: prompt is empty"),
        ('3,"Why?,x,safe,a,b', "line 5: not valid CSV (unexpected end of data)"),
    ],
)
def test_a_bad_row_is_named(file, line, message):
    with file.open("a") as end:
        end.write(line)
    with pytest.raises(ValueError) as caught:
        xstest.read(file)
    assert str(caught.value).startswith(f"{file}, {message}")


def test_another_header_and_an_empty_file(file):
    file.write_text("id,text\n1,Why?\n")
    with pytest.raises(ValueError, match="line 2: the row lacks the field prompt"):
        xstest.read(file)
    file.write_text(HEADER)
    with pytest.raises(ValueError, match="the file holds no rows"):
        xstest.read(file)


def test_published():
    if not PUBLISHED.exists():
        pytest.skip("xstest_prompts.csv is not beside this checkout")
    items = xstest.read(PUBLISHED)
    assert len({item.id for item in items}) == 450 and sum(item.safe for item in items) == 250
    assert all(item.safe is not item.type.startswith("contrast_") for item in items)
