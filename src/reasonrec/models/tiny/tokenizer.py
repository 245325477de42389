"""A tokenizer trained on the catalogue, with one token of its own for every item title.

A title token is written `` [Title]``, with its leading space, so that text is readable, decodes to
exactly what was encoded, and a history of 20 titles is 20 tokens rather than 200.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reasonrec.traces.prompts import ANSWER, THINK, as_data

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL = (PAD, BOS, EOS, THINK, ANSWER)


def unique_titles(titles: Sequence[str]) -> list[str]:
    """Return the titles as `as_data` writes them, with `` #2``, `` #3`` after repeats."""
    seen: Counter[str] = Counter()
    taken = set()
    unique = []
    for title in titles:
        name = as_data(title) or "Untitled"
        seen[name] += 1
        candidate = name if seen[name] == 1 else f"{name} #{seen[name]}"
        while candidate in taken:  # a title that itself ends in " #2"
            seen[name] += 1
            candidate = f"{name} #{seen[name]}"
        taken.add(candidate)
        unique.append(candidate)
    return unique


@lru_cache(maxsize=4)
def numbered_titles(titles: tuple[str, ...]) -> tuple[str, ...]:
    """Return the titles as the data set has them, with the numbers that thoughts put after repeats.

    A server asks for them with every answer, so they are kept.
    """
    names = zip(titles, unique_titles(titles))
    return tuple(title + name.removeprefix(as_data(title) or "Untitled") for title, name in names)


def train_tokenizer(
    titles: Sequence[str],
    texts: Iterable[str],
    *,
    vocab_size: int = 1024,
    words: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a token for each of the (unique) titles.

    Args:
        titles: Unique item titles, in ``item_index`` order.
        texts: What sub-word tokens are learned from: descriptions, categories.
        vocab_size: Sub-word tokens, special ones included, before words and titles are added.
        words: Each is one token too, with the space that it starts with. A word that a model must
            spell takes several steps to write, and a short log does not teach it the spelling.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = [*words, *(f" [{title}]" for title in titles)]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in whole])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS, eos_token=EOS, pad_token=PAD,
        extra_special_tokens=[THINK, ANSWER],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
