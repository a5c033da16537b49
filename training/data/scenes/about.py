"""What the scenes say of themselves."""

from ..facts import DatasetFacts


ABOUT = DatasetFacts(
    title="scenes of emoji (made from the emoji bundled with siglip-ext)",
    id="siglip-ext-scenes",
    summary="Its images are one to four emoji on a drawn background, its captions say which, and how they stand.",
    limits=(
        "A demonstration: it has seen some names of emoji, pasted on colors and patterns, and knows nothing of "
        "photographs. The drawings are Noto Color Emoji (SIL Open Font License 1.1), the names Unicode CLDR (Unicode "
        "licence)."
    ),
)
