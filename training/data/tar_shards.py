"""WebDataset tar shards, local or behind any fsspec URL, dealt out to the workers of all processes."""

import random
from collections.abc import Iterator, Sequence

from modeling_siglip_ext.evaluation.data.sources import check_present, expand
from modeling_siglip_ext.evaluation.data.tar_shards import checked, read_shard


__all__ = ["TarShards", "expand", "read_shard"]


class TarShards:
    """A `Source` of `ImageTextStream`: rows `image` (encoded bytes), `caption`, and the fields of a `.json` member.

    With fewer shards than workers, every worker reads all shards and takes its share of the samples. Each pass goes
    through its shards in another order. A row that is no sample has the reason under `DROPPED`.

    Args:
        urls: see `expand`. Remote ones need the fsspec package of their protocol (s3fs, gcsfs, ...).
        seed: of the order of the shards.

    Raises:
        FileNotFoundError: a shard that is not there; all such are counted, the first named.
    """

    def __init__(self, urls: str | Sequence[str], seed: int = 0):
        self.shards = expand(urls)
        check_present(self.shards)
        self.seed = seed

    def rows(self, part: int, parts: int, order: int) -> Iterator[tuple[str, dict]]:
        """
        Raises:
            TooManyBadSamples: a shard of which most cannot be used.
        """
        own = self.shards[part::parts] if len(self.shards) >= parts else list(self.shards)
        random.Random(f"{self.seed}/{order}/shards").shuffle(own)
        samples = (sample for shard in own for sample in checked(shard, read_shard(shard)))
        if len(self.shards) >= parts:
            yield from samples
            return
        for number, sample in enumerate(samples):
            if number % parts == part:
                yield sample
