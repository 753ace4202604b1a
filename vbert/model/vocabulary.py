"""WordPiece vocabularies, trained on the texts of examples or taken from a BERT checkpoint, in any language."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertTokenizer

VOCABULARY, CONFIG = "vocab.txt", "tokenizer_config.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ASCII = "0123456789abcdefghijklmnopqrstuvwxyz"  # always in a trained vocabulary, so that no English word is [UNK]
ALPHABET = 1000  # characters kept of a corpus, the most frequent, as BERT's trainer
CACHED_TEXTS = 200_000


class TextRules(Settings):
    """Rules of text normalisation before the split into pieces: BERT's options, named as in `tokenizer_config.json`."""

    do_lower_case: bool = Field(True, description="whether texts are lower-cased")
    strip_accents: bool | None = Field(None, description="None: as do_lower_case")
    tokenize_chinese_chars: bool = Field(True, description="whether Chinese characters stand alone")


class VocabularySettings(TextRules):
    """size: word pieces at most (more only where the corpus has more characters)."""

    size: int = Field(8000, ge=100, description="pieces at most")
    min_frequency: int = Field(2, ge=1, description="a piece occurs at least so often")


class WordPieces(NamedTuple):
    """ids: word piece ids of a text without special tokens; words: for each piece, the word it belongs to, from 0;
    spans: for each piece, (start, end) of its characters in the text as given."""

    ids: tuple[int, ...]
    words: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class WordPieceEncoder:
    """Text -> word pieces, with a cache; pickles small and imports no transformers, so loader workers can hold one.

    A special token written out in a text ("[SEP]") is plain text here: a data set can't inject one.
    """

    def __init__(self, tokens: Iterable[str], rules: TextRules) -> None:
        """tokens: in the order of their ids; of a repeated token the later id counts, as in BERT's own loader."""
        self.tokens = tuple(tokens)
        self.rules = rules
        ids = {token: i for i, token in enumerate(self.tokens)}
        if missing := [token for token in SPECIAL if token not in ids]:
            raise UserError(f"{VOCABULARY}: no {', '.join(missing)}: this is not a BERT vocabulary")
        self.pad, self.unk, self.cls, self.sep, self.mask = (ids[token] for token in SPECIAL)
        self.special = frozenset((self.pad, self.unk, self.cls, self.sep, self.mask))

    @property
    def size(self) -> int:
        """Ids are below this number."""
        return len(self.tokens)

    def __call__(self, text: str) -> WordPieces:
        return self._cached(text)

    def text(self, ids: Iterable[int]) -> str:
        """The text of `ids`, pieces joined, special tokens kept."""
        return " ".join(self.tokens[i] for i in ids).replace(" ##", "")

    @cached_property
    def _cached(self) -> Callable[[str], WordPieces]:
        tokenizer = wordpiece({token: i for i, token in enumerate(self.tokens)}, self.rules)
        known: dict[tuple[int, int], tuple[int, int]] = {}  # texts share their spans, or the cache would double

        @lru_cache(CACHED_TEXTS)
        def encode(text: str) -> WordPieces:
            encoding = tokenizer.encode(text, add_special_tokens=False)
            spans = tuple([known.setdefault(span, span) for span in encoding.offsets])
            return WordPieces(tuple(encoding.ids), tuple(w for w in encoding.word_ids if w is not None), spans)

        return encode

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cached"}


class Vocabulary(Artifact):
    """`vocab.txt` (one piece a line, id = line number from 0) and `tokenizer_config.json` (`TextRules`)."""

    def encoder(self) -> WordPieceEncoder:
        return WordPieceEncoder(read_tokens(self.file(VOCABULARY)), read_rules(self.file(CONFIG)))

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""
        return list(self._encoder(text).ids)

    @cached_property
    def _encoder(self) -> WordPieceEncoder:
        return self.encoder()

    def tokenizer(self) -> BertTokenizer:
        """The same vocabulary as transformers' tokenizer."""
        from transformers import BertTokenizer

        # By `vocab`: transformers 5 ignores a `vocab_file` in silence.
        tokens = {token: i for i, token in enumerate(read_tokens(self.file(VOCABULARY)))}
        return BertTokenizer(vocab=tokens, **read_rules(self.file(CONFIG)).model_dump())


def read_tokens(path: Path) -> list[str]:
    """The tokens of a `vocab.txt`. Only line feeds end a line: vocabularies hold other line separators as tokens."""
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def read_rules(path: Path) -> TextRules:
    """The text rules in a `tokenizer_config.json`; missing ones are those of BERT's uncased models."""
    try:
        given = json.loads(path.read_bytes())
        known = {k: given[k] for k in TextRules.model_fields if given.get(k) is not None}
        return TextRules.model_validate(known)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a tokenizer configuration ({error})") from None


def write_vocabulary(directory: Path, tokens: Iterable[str], rules: TextRules) -> WordPieceEncoder:
    """Writes the files of a `Vocabulary`, readable by transformers too; returns its encoder."""
    encoder = WordPieceEncoder(tokens, TextRules(**rules.model_dump(include=set(TextRules.model_fields))))
    if broken := [t for t in encoder.tokens if "\n" in t]:
        raise UserError(f"{VOCABULARY}: token {broken[0]!r} holds a line feed")
    (directory / VOCABULARY).write_bytes("".join(f"{t}\n" for t in encoder.tokens).encode())
    config = {"tokenizer_class": "BertTokenizer", **encoder.rules.model_dump()}
    (directory / CONFIG).write_bytes((json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    return encoder


def wordpiece(ids: Mapping[str, int], rules: TextRules) -> Tokenizer:
    """BERT's tokenizer over the pieces `ids`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(dict(ids), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=rules.tokenize_chinese_chars,
        strip_accents=rules.strip_accents,
        lowercase=rules.do_lower_case,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def train_tokens(texts: Iterable[str], settings: VocabularySettings) -> list[str]:
    """The pieces of a WordPiece vocabulary trained on `texts`: the same in every process and order of texts.

    tokenizers' trainer numbers the characters it meets in the order of a hash map, and ties between merges go by
    these numbers. With all characters given beforehand, as special tokens in a fixed order, the result is
    deterministic.
    """
    from tokenizers import trainers

    tokenizer = wordpiece({token: i for i, token in enumerate(SPECIAL)}, settings)
    words: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        normal = tokenizer.normalizer.normalize_str(text)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            words[word] += count
    first: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    for word, count in words.items():
        first[word[0]] += count
        for character in word[1:]:
            inner[character] += count
    frequent = sorted((first + inner).items(), key=lambda item: (-item[1], item[0]))[:ALPHABET]
    kept = {character for character, _ in frequent}
    starts = sorted((kept & first.keys()) | set(ASCII))
    inside = [f"##{c}" for c in sorted((kept & inner.keys()) | set(ASCII))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.size,
        min_frequency=settings.min_frequency,
        show_progress=False,
        special_tokens=[*SPECIAL, *starts, *inside],
        limit_alphabet=ALPHABET,
    )
    tokenizer.train_from_iterator(_repeated(words), trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=lambda token: ids[token])


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    for word in sorted(words):
        for _ in range(words[word]):
            yield word


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, one field a line: same value, same bytes."""
    path.write_bytes((json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
