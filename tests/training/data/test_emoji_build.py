"""Parts of the dataset's build that need no font: reading the sources and dropping lookalikes."""

import pytest
from PIL import Image

from modeling_siglip_ext.training.data.emoji.build import Emoji, drop_lookalikes, read_emoji_list, read_names


def test_emoji_list_keeps_fully_qualified_rows_with_their_groups(tmp_path):
    path = tmp_path / "emoji-test.txt"
    path.write_text(
        "# group: Smileys & Emotion\n# subgroup: face-smiling\n"
        "263A FE0F ; fully-qualified # ☺️ E0.6 smiling face\n"
        "263A ; unqualified # ☺ E0.6 smiling face\n"
        "# subgroup: hands: open\n"
        "1F44B 1F3FB ; fully-qualified # 👋🏻 E1.0 waving hand: light skin tone\n",
        encoding="utf-8",
    )
    first, second = read_emoji_list(path)
    assert first == Emoji("\u263a\ufe0f", "smiling face", "Smileys & Emotion", "face-smiling")
    assert first.key == "\u263a"
    assert (second.name, second.subgroup) == ("waving hand: light skin tone", "hands: open")


def test_a_file_that_is_not_the_emoji_list_is_refused(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="lists no fully-qualified emoji"):
        read_emoji_list(path)


def test_names_lose_direction_marks_and_inherited_ones_are_missing(tmp_path):
    for folder, rows in {
        "annotations": '<annotation cp="☺️" type="tts">\u200fפרצוף\u200f</annotation>'
        '<annotation cp="☺">a | b</annotation>',
        "annotationsDerived": '<annotation cp="👋🏻" type="tts">↑↑↑</annotation>',
    }.items():
        (tmp_path / folder).mkdir()
        text = f"<ldml><annotations>{rows}</annotations></ldml>"
        (tmp_path / folder / "he.xml").write_text(text, encoding="utf-8")
    assert read_names(tmp_path, "he") == {"☺": "פרצוף"}


def test_of_lookalikes_the_first_stays_unless_a_better_known_one_follows():
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    emoji = [
        Emoji(str(i), name, "", "") for i, name in enumerate(["one", "two", "flag: Bouvet Island", "flag: Norway"])
    ]
    kept, images = drop_lookalikes(emoji, [red, red, blue, blue])
    assert [one.name for one in kept] == ["one", "flag: Norway"]
    assert images == [red, blue]
