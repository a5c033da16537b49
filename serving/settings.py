"""What a server is told at its start."""

from dataclasses import dataclass, field, replace

from modeling_siglip_ext.dual_models import ModelSettings


MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class EncoderSettings(ModelSettings):
    """How a worker loads and runs the model.

    Args:
        threads: on the CPU, of torch, too; None for its own choice.
        batch_images: of a NaFlex model, in place of `batch_tokens`: as many as so many of its largest images have.
        max_pixels: of an image; larger ones are refused before they are decoded.
    """

    batch_images: int = 32
    max_pixels: int = 50_000_000

    def on(self, device: str | None) -> "EncoderSettings":
        """The same on another device."""
        return replace(self, device=device)


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Args:
        body: bytes of a request.
        held: bytes of all requests that are being read or answered.
        body_seconds: for a client to send its request.
        items: texts and images of a request, in one list.
        labels: of a request, times templates; registered sets may be larger.
        characters: of a text.
        queue: items that wait for a worker.
    """

    body: int = 16 * MIB
    held: int = 512 * MIB
    body_seconds: float = 60.0
    items: int = 256
    labels: int = 1000
    characters: int = 10_000
    queue: int = 512


@dataclass(frozen=True)
class ServerSettings:
    """The whole of a server.

    Args:
        encoders: one a worker process.
        name: of the model, as clients give it.
        host, port: where to listen; port 0 takes a free one.
        max_batch: images in a batch; texts come twice as many.
        linger: seconds that an idle worker waits for more of a batch, each time that more has come.
        keys: one of which every request must have, if there are any.
        label_sets: labels and templates by name, embedded at the start.
        allow_urls: whether images are fetched from public addresses.
        shutdown_seconds: to finish what was accepted when told to stop.
    """

    encoders: tuple[EncoderSettings, ...]
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 32
    linger: float = 0.005
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    label_sets: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    allow_urls: bool = False
    shutdown_seconds: int = 300
    limits: Limits = Limits()

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Items in a batch by kind.

        Where small NaFlex images keep their size, a batch takes more of them; the worker splits it by tokens.
        """
        images = self.max_batch if self.encoders[0].upscale else 4 * self.max_batch
        return {"image": images, "text": 2 * self.max_batch}
