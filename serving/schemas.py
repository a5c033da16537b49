"""The bodies of requests, and what they hold as items for the encoder.

A string never reaches `load_image`: that would open it as a path on the server or as a URL. Images are decoded to the
bytes of their files here, so that all that a client can make the server open is what it sent.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from .batcher import Item


def readable(text: str) -> str:
    """JSON can have half of a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the text has half of a pair of surrogates in place of a character") from None
    return text


Str = Annotated[str, AfterValidator(readable)]


class Body(BaseModel):
    """Types as they are in JSON, and no unknown fields: what would be ignored in silence is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Text(Body):
    type: Literal["text"] = "text"
    text: Str


class Image(Body):
    type: Literal["image"] = "image"
    image: Str = Field(description="a data URI, base64, or an http(s) URL where the server fetches them")


class Address(Body):
    url: Str
    detail: str | None = None


class ImageURL(Body):
    """As in OpenAI's chat."""

    type: Literal["image_url"]
    image_url: Address


def form_of(given: Any) -> str | None:
    """Which form of an input somebody meant, so that errors are those of that form alone."""
    if isinstance(given, str):
        return "<string>"
    if not isinstance(given, dict):
        return None
    named = given.get("type")
    known = next((name for name in ("image_url", "image", "text") if name in (named, *given)), None)
    return known and f"<{known}>"


def one_or_many(given: Any) -> str:
    return "<many>" if isinstance(given, list) else "<one>"


# The names of forms are in brackets, by which they are told from those of fields in the places of errors.
Plain = Annotated[Str, Tag("<string>")]
Written = Annotated[Text, Tag("<text>")]
Pictured = Annotated[Image, Tag("<image>")]
Linked = Annotated[ImageURL, Tag("<image_url>")]
IMAGES = '{"image": ...} or {"type": "image_url", "image_url": {"url": ...}}'
Input = Annotated[
    Plain | Written | Pictured | Linked,
    Discriminator(form_of, custom_error_type="input", custom_error_message=f'give a text, {{"text": ...}}, {IMAGES}'),
]
Picture = Annotated[
    Plain | Pictured | Linked,
    Discriminator(form_of, custom_error_type="picture", custom_error_message=f"give a data URI, base64, {IMAGES}"),
]
ONE, MANY, SEVERAL = Tag("<one>"), Tag("<many>"), Discriminator(one_or_many)
Inputs = Annotated[Annotated[Input, ONE] | Annotated[list[Input], Field(min_length=1), MANY], SEVERAL]
Pictures = Annotated[Annotated[Picture, ONE] | Annotated[list[Picture], Field(min_length=1), MANY], SEVERAL]
Strings = Annotated[Annotated[Str, ONE] | Annotated[list[Str], Field(min_length=1), MANY], SEVERAL]


class Request(Body):
    model: Str | None = None
    user: str | None = None


class EmbeddingsRequest(Request):
    """A string is a text, or an image if it is a data URI of one."""

    input: Inputs
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"


class ClassifyRequest(Request):
    """One or many images, and the labels: here, or by the name of a registered set."""

    images: Pictures
    labels: Annotated[list[Str], Field(min_length=1)] | None = None
    label_set: Str | None = None
    templates: Strings | None = None
    function: Literal["sigmoid", "softmax"] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None


class SimilarityRequest(Request):
    """Two lists, each of texts and images."""

    queries: Inputs
    documents: Inputs


def listed(given: object) -> list:
    return given if isinstance(given, list) else [given]


def decode(text: str) -> bytes:
    """The bytes of a data URI or of base64, with or without line breaks.

    Raises:
        ValueError: it is neither.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data URI of an image must be in base64: data:image/png;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the image is neither base64 nor a data URI") from None


@dataclass(frozen=True)
class Link:
    """An image that is to be fetched."""

    url: str


def text_of(given: Input) -> str | None:
    """The text, a string that is no data URI of an image; None of an image."""
    if isinstance(given, Text):
        return given.text
    return given if isinstance(given, str) and given[:11].lower() != "data:image/" else None


def to_item(given: Input, characters: int, *, pictures: bool = False) -> Item | Link:
    """
    Args:
        characters: the most of a text.
        pictures: whether a bare string is an image.

    Raises:
        ValueError: there is no image in it, or too much of a text.
    """
    text = None if pictures and isinstance(given, str) else text_of(given)
    if text is not None:
        if len(text) > characters:
            raise ValueError(f"the text has more than {characters} characters")
        return Item("text", text)
    assert not isinstance(given, Text), "it has a text"
    source = given.image_url.url if isinstance(given, ImageURL) else given.image if isinstance(given, Image) else given
    if source[:8].lower().startswith(("http://", "https://")):
        return Link(source)
    content = decode(source)
    if not content:
        raise ValueError("the image is empty")
    return Item("image", content)
