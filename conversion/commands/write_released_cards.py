"""The cards of all released files, for `model_cards/released/`:

python -m modeling_siglip_ext.conversion.commands.write_released_cards model_cards/released
"""

import argparse
from pathlib import Path

from modeling_siglip_ext.files import write_text
from modeling_siglip_ext.hub.card import render
from modeling_siglip_ext.hub.facts import ModelFacts, facts_of_config

from ..model_folder.folder import choose_form
from ..released.cards import released_card, shown
from ..released.catalogue import Entry, entries


def released_facts(entry: Entry) -> ModelFacts:
    """The facts of what `from-jax` makes of a file without options."""
    config, stock = choose_form(entry.config(), None)
    return facts_of_config(config, stock=stock, text_length=entry.text_length if entry.bert else None)


def cards() -> dict[str, str]:
    """The cards by file name."""
    names = {shown(entry): entry for entry in entries().values()}
    return {
        f"{name}.md": render(released_card(entry, released_facts(entry), name=name)) for name, entry in names.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the cards of all released files.")
    parser.add_argument("folder", type=Path, help="model_cards/released")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted = cards()
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        write_text(folder / name, text)
    print(f"{folder}: {len(wanted)} cards")


if __name__ == "__main__":
    main()
