"""Stage `vocabulary`: a WordPiece vocabulary trained on the training texts of one or several sets of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.data.examples import Examples
from vbert.errors import BuildError
from vbert.model.bert import BertWeights
from vbert.model.vocabulary import Vocabulary, VocabularySettings, train_tokens, write_vocabulary


@stage("vocabulary", makes=Vocabulary, version=1)
def vocabulary(build: Build, examples: Mapping[str, Examples], settings: VocabularySettings) -> Figures:
    """Texts, second texts, answers, negatives and choices of the split `train`; the other splits stay unseen."""
    texts = [text for name in sorted(examples) for text in training_texts(examples[name])]
    if not texts:
        raise BuildError(f"no training texts in {', '.join(sorted(examples)) or 'no data set'}: nothing to learn from")
    encoder = write_vocabulary(build.directory, train_tokens(texts, settings), settings)
    pieces = sum(len(encoder(text).ids) for text in set(texts))
    unknown = sum(encoder(text).ids.count(encoder.unk) for text in set(texts))
    return {"pieces": encoder.size, "texts": len(texts), "unknown_share": unknown / pieces if pieces else 0.0}


def training_texts(examples: Examples) -> Iterator[str]:
    """Every text of the split `train` that a model may read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = examples.table()
    columns = [c for c in ("text", "text_b", "answers", "negatives", "choices") if c in table.column_names]
    rows = table.filter(pc.equal(table["split"], pa.scalar("train"))).select(columns)
    for row in rows.to_pylist():
        yield from (row[c] for c in ("text", "text_b") if row.get(c))
        yield from (answer["answer"] for answer in row.get("answers") or ())
        yield from row.get("negatives") or ()
        yield from (choice["text"] for choice in row.get("choices") or ())


@stage("bert_vocabulary", makes=Vocabulary, version=1)
def bert_vocabulary(build: Build, bert: BertWeights) -> Figures:
    """The vocabulary of a BERT checkpoint, with its text rules."""
    encoder = bert.vocabulary().encoder()
    return {"pieces": write_vocabulary(build.directory, encoder.tokens, encoder.rules).size}
