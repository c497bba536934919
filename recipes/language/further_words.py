"""Words that the embedded model's tokenizer takes apart, as tokens of their own.

A word is a pre-token of the byte-level BPE, with the space before it. Merges stay as they are: a word that has a token
is that token (`ignore_merges`), any other text is tokenised as before. Knows nothing of the weights.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from recipes.pictures.captions import Captioner
from recipes.pictures.geometry import opening, wrap_tokenizer
from recipes.pictures.short_forms import plural
from recipes.pictures.taxonomy import Taxonomy


def pre_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """The words of a text at the start of a message, as the vocabulary writes them."""
    split = tokenizer.backend_tokenizer.pre_tokenizer
    return [word for word, _ in split.pre_tokenize_str(opening(text))]


def plurals(taxonomy: Taxonomy) -> dict[str, str]:
    """The plurals of harmless English nouns that differ from them, by noun."""
    harmless = (noun for noun in taxonomy.nouns if noun not in taxonomy.harmful_nouns)
    return {noun: plural(noun) for noun in harmless if plural(noun) != noun}


def further_words(tokenizer: PreTrainedTokenizerFast, captioner: Captioner) -> dict[str, list[str]]:
    """The English terms that each new token stands for, by token.

    Words of nouns, patterns and colours in the other languages, and plurals of harmless English nouns. Words that any
    English prompt of ours holds are left as they are.
    """
    pairs = [(text, term) for text, term in captioner.translations() if text.lower() != term]
    pairs += [(text.split()[-1], noun) for noun, text in plurals(captioner.taxonomy).items()]
    english = {word for text in captioner.english() for word in pre_tokens(tokenizer, text)}
    known = english | tokenizer.get_vocab().keys()
    terms: dict[str, list[str]] = defaultdict(list)
    for text, term in pairs:
        for word in pre_tokens(tokenizer, text):
            if word not in known and len(word) > 2:
                terms[word].append(term)
    return dict(terms)


def with_words(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer with further tokens at the end of its vocabulary, in the order of `words`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({word: len(vocabulary) + i for i, word in enumerate(words)})
    state["model"]["ignore_merges"] = True
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(state)))
