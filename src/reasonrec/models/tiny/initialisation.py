"""Title embeddings that start near those of items with similar text.

Each word of an item's title and categories gets a random direction; an item starts at the mean of
its words' directions, rare words counting more (TF-IDF, a random projection), mixed with noise of
its own. Items of one series, maker or genre then share what one of them learns.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from reasonrec.rng import stream

_WORD = re.compile(r"[^\W_]+")


@torch.no_grad()
def start_from_text(
    embeddings: Tensor,
    title_token_ids: np.ndarray,
    texts: Sequence[str],
    *,
    std: float,
    share: float,
    seed: int,
) -> None:
    """Overwrite the title rows of ``embeddings`` (V, D), in place.

    Args:
        texts: What describes each item. N strings.
        std: Standard deviation of an entry, as for all other embeddings.
        share: Of the variance that comes from the text; the rest is noise. In [0, 1].
    """
    rng = stream(seed, "title-embeddings")
    weighted, num_words = weighted_words(texts)
    directions = rng.standard_normal((num_words, embeddings.shape[1]), dtype=np.float32)
    mean = weighted @ directions
    norm = np.sqrt((weighted * weighted).sum(1))[:, None]
    from_text = np.where(norm > 0, mean / np.maximum(norm, 1e-9), 0.0)  # entries of variance 1
    noise = rng.standard_normal(from_text.shape, dtype=np.float32)
    mixed = std * (np.sqrt(share) * from_text + np.sqrt(1 - share) * noise)
    embeddings[torch.from_numpy(title_token_ids)] = torch.from_numpy(mixed.astype(np.float32))


def weighted_words(texts: Sequence[str]) -> tuple[sparse.csr_array, int]:
    """Return which words each text holds (N, W), rare ones weighing more (log N / texts), and W."""
    words: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(texts):
        found = {words.setdefault(word, len(words)) for word in _WORD.findall(text.lower())}
        rows += [row] * len(found)
        columns += sorted(found)
    num_words = max(1, len(words))
    counts = sparse.csr_array(
        (np.ones(len(rows), np.float32), (rows, columns)), shape=(len(texts), num_words)
    )
    rarity = np.log(len(texts) / np.maximum(1, counts.sum(0)))
    return (counts * rarity).tocsr(), num_words
