"""Build the bundled emoji dataset from a colour font and Unicode's data.

    python -m modeling_siglip_ext.training.data.emoji.build --output emoji.parquet

Sources (Debian: ``apt-get install fonts-noto-color-emoji unicode-cldr-core unicode-data``): Noto Color Emoji draws
the images, emoji-test.txt lists the emoji with their groups, CLDR names them in many languages. Pillow must have been
built with raqm, which joins the code points of a sequence to one glyph (its wheels are). The same sources, Pillow and
pyarrow give the same bytes.
"""

import argparse
import io
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFont, features
from tqdm import tqdm

from modeling_siglip_ext.files import new_file

from .loader import LANGUAGES, PARQUET
from .split import attributes, held_out_kinds, words


IMAGE_SIZE = 64
_WEBP_QUALITY = 90
# The one size at which the bitmap font has its 136 x 128 glyphs.
_FONT_SIZE = 109
_GLYPH_SIZE = (136, 128)
_VARIATION_SELECTOR = "\ufe0f"
# CLDR writes this where a language takes the name of its parent.
_INHERITED = "↑↑↑"
# Direction marks are layout, not language; joiners (ZWJ, ZWNJ) belong to the spelling and stay.
_BIDI_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Of emoji drawn alike the first is kept, except where another name is the one by which people know the picture.
_PREFERRED_FLAGS = ("Australia", "Norway", "France", "British Indian Ocean Territory", "Spain", "United States")
_PREFERRED = {f"flag: {country}" for country in _PREFERRED_FLAGS}


class Emoji(NamedTuple):
    text: str
    name: str
    group: str
    subgroup: str

    @property
    def key(self) -> str:
        """The code points without variation selectors, as CLDR indexes them."""
        return self.text.replace(_VARIATION_SELECTOR, "")


def read_emoji_list(path: Path) -> list[Emoji]:
    """The fully-qualified emoji of emoji-test.txt in its order; raises ValueError where it holds none."""
    found, group, subgroup = [], "", ""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("# group:"):
                group = line.split(":", 1)[1].strip()
            elif line.startswith("# subgroup:"):
                subgroup = line.split(":", 1)[1].strip()
            elif match := re.match(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)", line):
                text = "".join(chr(int(code, 16)) for code in match[1].split())
                found.append(Emoji(text, match[2].strip(), group, subgroup))
    if not found:
        raise ValueError(f"{path} lists no fully-qualified emoji; expected Unicode's emoji-test.txt")
    return found


def read_names(cldr: Path, language: str) -> dict[str, str]:
    """Short names of one language by emoji key, from CLDR's annotations and annotationsDerived."""
    names = {}
    for folder in ("annotations", "annotationsDerived"):
        path = cldr / folder / f"{language}.xml"
        for annotation in ElementTree.parse(path).getroot().iter("annotation"):
            name = (annotation.text or "").strip()
            if annotation.get("type") == "tts" and name and name != _INHERITED:
                key = annotation.attrib["cp"].replace(_VARIATION_SELECTOR, "")
                names[key] = unicodedata.normalize("NFC", _BIDI_MARKS.sub("", name))
    return names


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji on white, RGB, IMAGE_SIZE square; raises ValueError unless the font draws it as a single glyph."""
    left, top, right, bottom = font.getbbox(text)
    if (right - left, bottom - top) != _GLYPH_SIZE:
        raise ValueError(f"the font draws {text!r} as {right - left} x {bottom - top} pixels, not as one glyph")
    side = max(_GLYPH_SIZE)
    canvas = Image.new("RGBA", (side, side), "white")
    offset = ((side - _GLYPH_SIZE[0]) // 2 - left, (side - _GLYPH_SIZE[1]) // 2 - top)
    ImageDraw.Draw(canvas).text(offset, text, font=font, embedded_color=True)
    return canvas.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=6)
    return buffer.getvalue()


def drop_lookalikes(emoji: list[Emoji], images: list[Image.Image]) -> tuple[list[Emoji], list[Image.Image]]:
    """One emoji a picture: two captions for one image would each be a false negative of the other."""
    kept: dict[bytes, int] = {}
    for i, (one, image) in enumerate(zip(emoji, images)):
        pixels = image.tobytes()
        if pixels not in kept or one.name in _PREFERRED:
            kept[pixels] = i
    order = sorted(kept.values())
    return [emoji[i] for i in order], [images[i] for i in order]


def build(font_path: Path, cldr: Path, emoji_test: Path, output: Path) -> pa.Table:
    """Write the dataset to `output` and return it.

    Raises RuntimeError where Pillow lacks raqm or WebP, ValueError where a source is not what it should be.
    """
    for feature in ("raqm", "webp"):
        if not features.check(feature):
            raise RuntimeError(f"this Pillow has no {feature}; install the wheel from PyPI")
    font = ImageFont.truetype(str(font_path), _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    emoji = read_emoji_list(emoji_test)
    images = [render(one.text, font) for one in tqdm(emoji, desc="drawing", unit="emoji")]
    emoji, images = drop_lookalikes(emoji, images)

    # English comes from emoji-test.txt: it is CLDR's own name, and complete where CLDR is a release behind.
    captions = {"en": [one.name for one in emoji]}
    for language in LANGUAGES:
        if language != "en":
            names = read_names(cldr, language)
            captions[language] = [names.get(one.key) for one in emoji]
    for language, column in captions.items():
        present = [name for name in column if name is not None]
        if len(set(present)) != len(present):
            raise ValueError(f"two emoji share a name in {language!r}: captions would not identify images")

    kinds = held_out_kinds(captions["en"], [one.group for one in emoji])
    seen = {word for name, kind in zip(captions["en"], kinds) if kind is None for word in words(name)}
    unseen = {word for name in captions["en"] for word in words(name)} - seen
    if unseen:
        raise ValueError(f"held-out names contain words without training support: {sorted(unseen)}")

    facts = attributes(captions["en"])
    columns = {
        "image": [{"bytes": _webp(image), "path": None} for image in tqdm(images, desc="encoding", unit="emoji")],
        **{language: captions[language] for language in LANGUAGES},
        "emoji": [one.text for one in emoji],
        "group": [one.group for one in emoji],
        "subgroup": [one.subgroup for one in emoji],
        "split": ["train" if kind is None else "test" for kind in kinds],
        "held_out": kinds,
        **{name: [fact[name] for fact in facts] for name in ("tone", "gender", "role")},
    }
    image_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({name: image_type if name == "image" else pa.string() for name in columns})
    # The feature is named in the file's metadata, so that load_dataset("parquet", ...) decodes the images too.
    hub_features = Features.from_arrow_schema(schema)
    hub_features["image"] = ImageFeature()
    table = pa.table(columns, schema=hub_features.arrow_schema)
    with new_file(output, replace=True) as draft:
        pq.write_table(table, draft, compression="zstd", compression_level=19, row_group_size=512)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "--font": Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
        "--cldr": Path("/usr/share/unicode/cldr/common"),
        "--emoji-test": Path("/usr/share/unicode/emoji/emoji-test.txt"),
    }
    for option, default in defaults.items():
        parser.add_argument(option, type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=PARQUET, help="default: the bundled file")
    args = parser.parse_args()
    for path in (args.font, args.cldr, args.emoji_test):
        if not path.exists():
            parser.error(
                f"{path} does not exist; on Debian: "
                "apt-get install fonts-noto-color-emoji unicode-cldr-core unicode-data, elsewhere give the paths"
            )
    table = build(args.font, args.cldr, args.emoji_test, args.output)
    train = table.column("split").to_pylist().count("train")
    print(
        f"{args.output}: {train} training and {len(table) - train} held-out images, {args.output.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main()
