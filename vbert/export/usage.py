"""How an exported model is asked, by its objective: for its card."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """does: what the model does, after "that …". call: the method of `vbert.VisualBert`, with arguments; options: of
    `vbert predict`. pipeline: the Hugging Face hub's name of the task, where it has one."""

    does: str
    call: str
    options: str
    pipeline: str | None = None


USAGE = {
    "vqa": Usage(
        "answers questions about an image",
        'answer("photo.jpg", "What colour is the cat?")  # [Answer(text, score), …], best first',
        '--image photo.jpg --question "What colour is the cat?"',
        "visual-question-answering",
    ),
    "nlvr2": Usage(
        "says whether a statement about two images is true",
        'true("left.jpg", "right.jpg", "both are dogs")  # Verdict(true, score)',
        '--image left.jpg --image-2 right.jpg --statement "both are dogs"',
    ),
    "classification": Usage(
        "gives the class of a text beside an image",
        'classify("photo.jpg", "so happy")  # [Answer(text, score), …], best first',
        '--image photo.jpg --text "so happy"',
    ),
    "visual_entailment": Usage(
        "says whether an image entails a sentence, is neutral to it or contradicts it",
        'classify("photo.jpg", "two dogs play")  # [Answer(text, score), …], best first',
        '--image photo.jpg --text "two dogs play"',
    ),
    "choice": Usage(
        "chooses one of several texts",
        'choose("photo.jpg", "Why does she smile?", ["It rains.", "She won."])  # [Answer(text, score), …], best first',
        '--image photo.jpg --question "Why does she smile?" --choice "It rains." --choice "She won."',
    ),
    "grounding": Usage(
        "finds the region that a phrase means",
        'ground("photo.jpg", "the cat on the left", phrase="the cat")  # [GroundedRegion(box, score, …), …]',
        '--image photo.jpg --text "the cat on the left" --phrase "the cat"',
    ),
    "retrieval": Usage(
        "finds images by a text, and texts by an image",
        'match("photo.jpg", "a cat")  # Match(score, logit)',
        '--image photo.jpg --text "a cat"',
    ),
    "captioning": Usage(
        "writes a sentence about an image",
        'caption("photo.jpg")  # Caption(text, score)',
        "--image photo.jpg",
        "image-to-text",
    ),
    "mlm_itm": Usage(
        "was pre-trained on images and texts, to be trained for a task",
        'encode("photo.jpg", "a cat").last_hidden_state',
        '--image photo.jpg --text "a cat" --ask match',
        "feature-extraction",
    ),
}

# Of a class of transformers: how its text is made, what it gives, and the lines that ask it.
TRANSFORMERS = {
    "VisualBertForQuestionAnswering": (
        "the question with one question mark, then [MASK], where the answer is read",
        'text = tokenizer("What colour is the cat? [MASK]", return_tensors="pt")',
        "logits = model(**text, **visual).logits\nprint(model.config.id2label[int(logits.argmax())])",
    ),
    "VisualBertForVisualReasoning": (
        "the text (a second one behind it, as the tokenizer's pair); of two images the regions of both one behind the "
        "other, told apart by `visual_token_type_ids`",
        'text = tokenizer("both are dogs", return_tensors="pt")',
        "logits = model(**text, **visual).logits\nprint(model.config.id2label[int(logits.argmax())])",
    ),
    "VisualBertForMultipleChoice": (
        "each choice behind the question, as the tokenizer's pair; every tensor is [1, choices, …]",
        'choices = ["It rains.", "She won."]\n'
        'text = tokenizer(["Why does she smile?"] * 2, choices, padding=True, return_tensors="pt")\n'
        "text = {name: tensor[None] for name, tensor in text.items()}\n"
        "visual = {name: tensor[None].repeat(1, 2, *[1] * (tensor.dim() - 1)) for name, tensor in visual.items()}",
        "logits = model(**text, **visual).logits\nprint(choices[int(logits.argmax())])",
    ),
    "VisualBertForRegionToPhraseAlignment": (
        "the text; `region_to_phrase_position` has the place of the last word piece of each phrase",
        'text = tokenizer("the cat on the left", return_tensors="pt")\n'
        'visual |= {"region_to_phrase_position": torch.tensor([[2]]), '
        '"labels": torch.ones(1, 1, len(regions.features))}',
        "scores = model(**text, **visual).logits[0, 0]\nprint(regions.boxes[int(scores.argmax())])",
    ),
    "VisualBertForPreTraining": (
        "the text, with [MASK] where a word is asked for",
        'text = tokenizer("a [MASK] cat", return_tensors="pt")',
        "out = model(**text, **visual)\nprint(out.seq_relationship_logits.softmax(-1))",
    ),
}
