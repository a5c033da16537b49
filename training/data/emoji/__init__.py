"""The bundled dataset: emoji, their names in 34 languages, a split that asks for generalisation, zero-shot tasks."""

from ..bundled_dataset import BundledDataset
from .loader import LANGUAGES, load_emoji, load_split
from .tasks import emoji_tasks


EMOJI = BundledDataset(
    name="emoji",
    id="siglip-ext-emoji",
    title="Emoji and their names (bundled with siglip-ext)",
    summary=(
        'The held-out names recombine words of the training names ("woman scientist: medium-dark skin tone"), so the '
        "figures below measure generalisation to unseen combinations."
    ),
    limits=(
        "A demonstration: it has seen 3139 drawings of one emoji font and their Unicode names, and knows nothing of "
        "photographs. Categories of people, such as gender and skin tone, are those of the Unicode names. The "
        "drawings are Noto Color Emoji (SIL Open Font License 1.1), the names Unicode CLDR (Unicode licence)."
    ),
    languages=LANGUAGES,
    load=lambda split: load_split(split, languages="all"),
    tasks=emoji_tasks,
)

__all__ = ["EMOJI", "LANGUAGES", "load_emoji"]
