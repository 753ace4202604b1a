"""Errors that a user can resolve, in one line with the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from heapq import nlargest
from os.path import commonprefix


class UserError(Exception):
    """A mistake in the user's input: a recipe, a spec, an argument, a file.

    `message` is one line (what, where, what to do next); `details` follow it.
    The command prints both without a traceback and exits with 2.

    >>> try:
    ...     vbert.run("dmeo")
    ... except vbert.UserError as error:
    ...     print(error.message)
    no recipe 'dmeo'; did you mean 'demo'?, or give a .yaml file
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message, details)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.message}\n{self.details}" if self.details else self.message


class BuildError(Exception):
    """A stage could not make its artifact; the message states why and where to look. Exit code 1.

    >>> try:
    ...     vbert.Shards.at("store").table()
    ... except vbert.BuildError as error:
    ...     print(error)
    store holds no file 'offsets.parquet': is it a Shards?
    """


class Damaged(BuildError):
    """Bytes of a finished artifact are not those its manifest names.

    `stage` and `fingerprint` name the artifact, `file` the file in it.
    """

    def __init__(self, stage: str, fingerprint: str, file: str, reason: str) -> None:
        super().__init__(stage, fingerprint, file, reason)
        self.stage, self.fingerprint, self.file, self.reason = stage, fingerprint, file, reason

    def __str__(self) -> str:
        return f"{self.stage}/{self.fingerprint[:8]}/{self.file} is damaged: {self.reason}"


class NotAccepted(BuildError):
    """An artifact is whole and stays in the store, but the acceptance settings refuse it."""


class UnknownImage(KeyError):
    """There is no image of this id; the message names the nearest ones."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows its message in quotes


# Other systems' field names → ours; the first that is valid at its place counts.
FIRST_GUESSES: dict[str, tuple[str, ...]] = {
    # rows of examples and boxes
    **dict.fromkeys(("question", "sentence", "caption", "statement", "prompt", "query", "sent"), ("text",)),
    **dict.fromkeys(("text2", "sentence2", "premise", "hypothesis"), ("text_b",)),
    **dict.fromkeys(("image_id", "img", "img_id", "image_path", "file_name", "filename", "photo"), ("image", "images")),
    "image": ("image_ids", "images"),
    "images": ("image_ids",),
    **dict.fromkeys(("label", "labels", "target", "gt"), ("answer", "answers", "class")),
    **dict.fromkeys(("multiple_choice_answer", "ground_truth"), ("answer",)),
    **dict.fromkeys(("id", "uid", "qid", "question_id"), ("example_id", "name")),
    **dict.fromkeys(("bbox", "bounding_box", "xyxy"), ("box",)),
    **dict.fromkeys(("category", "class_name", "object"), ("class",)),
    "type": ("question_type", "kind"),
    "sentid": ("example_id",),
    # specs
    **dict.fromkeys(("annotations", "questions", "texts", "captions"), ("examples",)),
    **dict.fromkeys(("photos", "pictures"), ("images",)),
    **dict.fromkeys(("val", "validation_split", "dev"), ("validation",)),
    **dict.fromkeys(("format", "loader"), ("reader", "format")),
    **dict.fromkeys(("file", "dir", "root", "directory", "location"), ("path", "folder")),
    **dict.fromkeys(("description", "display_name"), ("title",)),
    "link": ("url",),
    "checksum": ("sha256",),
    # recipes
    **dict.fromkeys(("lr", "rate"), ("learning_rate",)),
    **dict.fromkeys(("epochs", "max_steps", "iterations", "num_steps", "num_train_epochs"), ("steps",)),
    **dict.fromkeys(("bs", "batch", "per_device_train_batch_size"), ("batch_size", "batch")),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum"), ("accumulate",)),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), ("warmup",)),
    **dict.fromkeys(("wd", "decay"), ("weight_decay",)),
    **dict.fromkeys(("max_grad_norm", "grad_clip"), ("clip",)),
    **dict.fromkeys(("lr_scheduler", "scheduler"), ("schedule",)),
    **dict.fromkeys(("optim", "optimiser"), ("optimizer",)),
    **dict.fromkeys(("eval_steps", "eval_every"), ("validate_every",)),
    **dict.fromkeys(("dataset", "datasets"), ("data",)),
    **dict.fromkeys(("task", "head"), ("objective",)),
    **dict.fromkeys(("tasks", "finetune", "fine_tune", "finetuning"), ("downstream",)),
    **dict.fromkeys(("pretraining", "pre_train"), ("pretrain",)),
    **dict.fromkeys(("features", "extraction"), ("regions",)),
    **dict.fromkeys(("checkpoint", "pretrained", "from_pretrained", "initialize_from"), ("init", "weights", "start")),
    **dict.fromkeys(("num_layers", "num_hidden_layers", "depth"), ("layers",)),
    **dict.fromkeys(("hidden", "dim", "d_model", "width"), ("hidden_size",)),
    **dict.fromkeys(("num_heads", "num_attention_heads"), ("heads",)),
    **dict.fromkeys(("dropout", "hidden_dropout_prob"), ("hidden_dropout",)),
    "attention_probs_dropout_prob": ("attention_dropout",),
    **dict.fromkeys(("max_length", "max_seq_length", "max_position_embeddings"), ("max_text", "max_positions")),
    **dict.fromkeys(("max_boxes", "num_boxes"), ("count", "maximum", "cap")),
    **dict.fromkeys(("min_boxes",), ("minimum",)),
    **dict.fromkeys(("threshold", "conf_threshold", "confidence"), ("score",)),
    **dict.fromkeys(("fp16", "bf16", "amp", "dtype"), ("precision",)),
    **dict.fromkeys(("random_seed", "random_state"), ("seed",)),
    # --machine
    **dict.fromkeys(("workers", "num_workers", "dataloader_num_workers"), ("loader_workers",)),
    **dict.fromkeys(("units", "jobs", "parallel", "num_proc"), ("units_at_once", "processes")),
    **dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), ("device",)),
    **dict.fromkeys(("save_steps", "checkpoint_every"), ("checkpoint_steps",)),
    "dask": ("units_on",),
}


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error that refuses `name`: the nearest valid name, or all of them."""
    choices = sorted(set(valid))
    meant = [choice for choice in FIRST_GUESSES.get(name.lower(), ()) if choice in choices]
    close = meant or get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(choices) or 'none'}"


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
NEAR = 3  # ids that are listed
LOOKED_AT = 500  # of the ids with the most common beginnings and ends


def near(name: str, ids: Iterable[str]) -> str:
    """The end of an error for an unknown id `name` among very many: the most similar ids."""
    wanted, turned, number = name.lower(), name.lower()[::-1], _number(name)

    def likeness(other: str) -> int:
        """Similarity: the number of common characters at the beginning and end; the same number in another spelling
        counts most."""
        folded = other.lower()
        ends = len(commonprefix((wanted, folded))) + len(commonprefix((turned, folded[::-1])))  # noqa: RUF071  characters
        return ends + 100 * (number == _number(folded))

    alike = nlargest(LOOKED_AT, ids, key=likeness)
    same = [other for other in alike[:NEAR] if _number(other) == number]
    names = list(dict.fromkeys([*same, *get_close_matches(name, alike, n=NEAR, cutoff=0.5)]))[:NEAR]
    return f"near: {', '.join(map(repr, names))}" if names else f"one is {min(alike)!r}" if alike else "there is none"


def _number(name: str) -> str:
    """`train/COCO_000017.JPG` → `17`; the whole name where it holds no number."""
    digits = name.rstrip(LETTERS).rpartition(".")[0] or name
    number = digits[len(digits.rstrip("0123456789")) :].lstrip("0")
    return number or name.lower()
