"""What the bundled dataset says of itself."""

from ..facts import DatasetFacts
from .loader import LANGUAGES
from .tasks import emoji_tasks


ABOUT = DatasetFacts(
    title="Emoji and their names (bundled with siglip-ext)",
    id="siglip-ext-emoji",
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
    tasks=emoji_tasks,
)
