"""The model card of an exported folder, README.md: for people, with the Hugging Face hub's front matter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbert.export.facts import SPLITS, DataUsed, Facts, Figure, Result
from vbert.export.int8 import Int8Figures
from vbert.export.usage import TRANSFORMERS, USAGE, Usage
from vbert.model.config import VisualBertConfig
from vbert.regions.contract import Contract

LISTED = 30  # labels and classes that are named
LOSSES = ("loss", "mlm", "itm")  # figures of a training that are of its training split
SETTINGS = ("steps", "batch_size", "learning_rate", "seed", "share", "loss")


@dataclass(frozen=True)
class Card:
    """What the card is written from. reproduce: lines for a shell that build the model; architecture and conventions:
    of a folder for transformers; classes: of the detector, None where the features were imported; licence: the hub's
    word for that of the folder; int8: what was measured of a model in int8."""

    facts: Facts
    config: VisualBertConfig
    head: Mapping[str, Any]
    contract: Contract
    parameters: int
    classes: Sequence[str] | None
    reproduce: str = ""
    architecture: str = ""
    conventions: str = ""
    licence: str = "other"
    int8: Int8Figures | None = None

    @property
    def main(self) -> str:
        """The metric that counts, by the objective."""
        from vbert.objectives import OBJECTIVES, load

        known = self.facts.objective in OBJECTIVES
        return str(self.head.get("selects") or (load(self.facts.objective).SELECTS if known else ""))

    @property
    def usage(self) -> Usage:
        return USAGE.get(self.facts.objective, USAGE["mlm_itm"])

    def text(self) -> str:
        """README.md."""
        parts = [
            front_matter(self),
            f"# {self.facts.title}: VisualBERT that {self.usage.does}",
            _about(self),
            _use_transformers(self) if self.architecture else _use(self),
            _trained_on(self),
            _figures(self.facts, self.main),
            self.int8.card() if self.int8 else "",
            _made(self),
            _contract(self),
            _limits(self),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: Card) -> str:
    """YAML as the hub reads it, evaluations included."""
    from huggingface_hub import EvalResult, ModelCardData

    facts, usage = card.facts, card.usage
    task = usage.pipeline or facts.objective
    titles = {one.name: one.title or one.name for one in facts.data}
    evaluated = [
        EvalResult(
            task_type=task,
            dataset_type=result.data or "unknown",
            dataset_name=titles.get(result.data, result.data) or "unknown",
            dataset_split=result.split,
            metric_type=name,
            metric_value=figure.value,
        )
        for result in facts.results
        for name, figure in result.figures.items()
        if not result.control and "/" not in name
    ]
    data = ModelCardData(
        license=card.licence,
        license_name=None if card.licence != "other" else "see-what-it-was-trained-on",
        library_name="transformers" if card.architecture else "vbert",
        pipeline_tag=usage.pipeline,
        tags=list(dict.fromkeys(["visualbert", "vision-and-language", facts.objective, "vbert"])),
        datasets=[one.name for one in facts.data] or None,
        metrics=list(dict.fromkeys(result.metric_type for result in evaluated)) or None,
        model_name=facts.title,
        eval_results=evaluated or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _about(card: Card) -> str:
    config, labels = card.config, card.head.get("labels", ())
    size = f"{card.parameters / 1e6:.1f} million" if card.parameters >= 1e5 else f"{card.parameters:,}"
    said = f" It answers with one of {len(labels):,} labels." if labels else ""
    return (
        f"A VisualBERT ([Li et al. 2019](https://arxiv.org/abs/1908.03557)) that {card.usage.does}: {config.layers} "
        f"layers of {config.hidden_size} numbers a token, {config.heads} heads, {size} parameters, a vocabulary of "
        f"{config.vocab_size:,} word pieces.{said}"
    )


def _use(card: Card) -> str:
    call, options = card.usage.call, card.usage.options
    regions = ", regions=regions" if card.classes is None else ""
    if regions:  # behind the last argument, before the comment
        at = call.rindex(")", 0, call.index("  #")) if "  #" in call else call.rindex(")")
        call = call[:at] + regions + call[at:]
    lines = ["from vbert import VisualBert", "", 'model = VisualBert.load("path/to/this/folder")', f"model.{call}"]
    text = f"## Use it\n\n```python\n{chr(10).join(lines)}\n```"
    if card.classes is None:
        return (
            f"{text}\n\nIts region features were imported: the detector that made them is not in this folder. "
            '`regions` is an entry of `vbert.Shards.at("features")`, made as "Features" says.'
        )
    return f"{text}\n\nor `vbert predict path/to/this/folder {options}`"


def _use_transformers(card: Card) -> str:
    reads, ask, give = TRANSFORMERS[card.architecture]
    append = card.config.box_input == "append6"
    rows = "regions.features.astype(np.float32)"
    if append:
        rows = f"np.hstack([{rows}, append6(regions.boxes, regions.width, regions.height)])"
    lines = [
        "import numpy as np, torch, vbert",
        f"from transformers import AutoTokenizer, {card.architecture}",
        *(["from vbert.model.visualbert import append6"] if append else []),
        "",
        'folder = "path/to/this/folder"',
        f"tokenizer, model = AutoTokenizer.from_pretrained(folder), {card.architecture}.from_pretrained(folder)",
        'regions = vbert.Shards.at("features")["photo"]  # of photo.jpg',
        f"embeds = torch.from_numpy({rows})[None]",
        "segment = torch." + ("ones" if card.conventions == "hf" else "zeros") + "(embeds.shape[:2], dtype=torch.long)",
        'visual = {"visual_embeds": embeds, "visual_token_type_ids": segment, "visual_attention_mask": '
        "torch.ones(embeds.shape[:2])}",
        ask,
        "with torch.no_grad():",
        *(f"    {line}" for line in give.splitlines()),
    ]
    first, second = (1, 0) if card.conventions == "hf" else (0, 1)
    pair = (
        f"; `seq_relationship_logits[:, {second}]` is that of a pair that belongs together"
        if card.architecture == "VisualBertForPreTraining"
        else ""
    )
    text = f"## Use it\n\n```python\n{chr(10).join(lines)}\n```\n\nText: {reads}."
    text += (
        f" Conventions: `{card.conventions}`: regions have the visual segment {first}, those of a second image {second}"
        f"{pair}. The statistics that standardised the visual input are folded into `visual_projection`: it takes raw "
        "features" + (", each with the six numbers x1/W, y1/H, x2/W, y2/H, w/W, h/H of its box." if append else ".")
    )
    if card.classes is not None:
        rules = {"boxes": card.contract.boxes, "nms": card.contract.nms}
        changed = " ".join(
            f"--set 'regions.{name}={json.dumps(rule.model_dump(mode='json'))}'" for name, rule in rules.items() if rule
        )
        text += (
            "\n\nFeatures of your own images:\n\n```\n"
            f"vbert preprocess photos --detector {card.contract.detector} --weights path/to/this/folder/detector "
            f"{changed} --out features\n```"
        )
    return text


def _trained_on(card: Card) -> str:
    facts = card.facts
    rows = [
        [_named(one), "; ".join(one.uses), _counts(one.images), _counts(one.texts), _cell(one.licence)]
        for one in facts.data
    ]
    rows += [[one.name, one.what, "", "", _cell(one.licence)] for one in facts.weights]
    if not rows:
        return (
            "## What it was trained on\n\nNot known here: the folder was not exported from the store that trained it."
        )
    heads = ["data set or weights", "used for", "images", "texts", "licence"]
    return (
        f"## What it was trained on\n\n{_table(heads, rows)}\n\nCounts: {', '.join(SPLITS)}. Training reads `train`, "
        "and `val` chooses. The licences bind what you do with the model and with the detector's weights in `detector/`"
        + (": pass the folder on only where all of them allow it." if facts.weights else ".")
    )


def _named(one: DataUsed) -> str:
    title = f"{_cell(one.title)} (`{one.name}`)" if one.title and one.title != one.name else f"`{one.name}`"
    return f"[{title}]({one.homepage})" if one.homepage else title


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(split, 0):,}" for split in SPLITS) if counts else ""


def _figures(facts: Facts, main: str) -> str:
    parts = []
    for result in (own for own in facts.results if not own.control):
        controls = [
            one for one in facts.results if one.control and (one.data, one.split) == (result.data, result.split)
        ]
        names = sorted(result.figures, key=lambda name: ("/" in name, name != main))
        heads = ["metric", "this model", "95 % interval", "examples", *(f"control: {one.control}" for one in controls)]
        rows = [[name, *_values(result.figures[name]), *_controls(name, controls)] for name in names]
        how = next((one.interval for one in result.figures.values() if one.interval), "")
        on = f"{result.split} of {result.data}" if result.data else result.split
        parts.append(
            f"### {on}\n\n{_table(heads, rows)}"
            + (f"\n\nInterval of {names[0]}: {how}." if how else "")
            + _said(controls)
        )
    rows = [[n, _number(value)] for n, value in facts.validation.items() if n not in LOSSES and "/" not in n]
    if rows:
        parts.append(f"### While it was trained, on val\n\n{_table(['figure', 'value'], rows)}")
    return "## Figures\n\n" + ("\n\n".join(parts) or "None is known: the store has no evaluation of it.")


def _beside(own: Result, control: Result) -> bool:
    return (own.data, own.split) == (control.data, control.split)


def _said(controls: Iterable[Result]) -> str:
    names = " and ".join(one.control for one in controls)
    return (
        f" A control was trained and evaluated with {names}: what it reaches needs no looking at both." if names else ""
    )


def _number(value: float) -> str:
    """Shares to four places; of what is none, such as a median rank, two."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def _values(figure: Figure) -> list[str]:
    low, high = figure.low, figure.high
    bounds = "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
    return [_number(figure.value), bounds, "" if figure.count is None else f"{figure.count:,}"]


def _controls(name: str, controls: Iterable[Result]) -> list[str]:
    cells = []
    for one in controls:
        figure = one.figures.get(name)
        value, bounds, _ = _values(figure) if figure else ("", "", "")
        cells.append(f"{value} ({bounds})" if bounds else value)
    return cells


def _made(card: Card) -> str:
    facts = card.facts
    if not facts.stage:
        return ""
    settings = {**facts.settings, "seed": facts.seed}
    told = [f"{name} {settings[name]}" for name in SETTINGS if settings.get(name) not in (None, 1.0)]
    libraries = facts.environment.get("libraries", {})
    versions = ", ".join(f"{name} {libraries[name]}" for name in ("torch", "transformers") if name in libraries)
    commit = facts.environment.get("commit")
    where = [f"vbert at commit {commit[:12]}" if commit else "vbert", versions, facts.environment.get("processor", "")]
    text = f"## How it was made\n\nStage `{facts.title}`, fingerprint `{facts.fingerprint[:16]}…`"
    text += (f" of the recipe `{facts.recipe}`" if facts.recipe else "") + (f": {', '.join(told)}." if told else ".")
    text += f" Made with {', '.join(part for part in where if part)}."
    return text + (f"\n\n```\n{card.reproduce}\n```" if card.reproduce else "")


def _contract(card: Card) -> str:
    contract = card.contract
    boxes = contract.boxes.model_dump(mode="json") if contract.boxes else None
    nms = contract.nms.model_dump(mode="json") if contract.nms else None
    rows = [
        ["detector", contract.detector],
        ["sha256 of its weights", contract.weights or "not stated"],
        ["layer", f"{contract.layer or 'not stated'}, {contract.dim} numbers, {contract.dtype}"],
        ["box rule", _words(boxes)],
        ["non-maximum suppression", _words(nms)],
        ["features of", contract.features_of or "not stated"],
        ["preprocessing", _words(contract.preprocessing.model_dump(mode="json") if contract.preprocessing else None)],
        ["box numbers", contract.box_input or "none"],
    ]
    found = f" Its detector is in `detector/` and knows {_some(card.classes)}." if card.classes else ""
    return (
        f"## Features\n\nThe regions that it reads were made so; others are refused by name (`contract.json`).{found}"
        f"\n\n{_table(['field', 'value'], rows)}"
    )


def _words(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "not stated"
    return ", ".join(f"{key} {item}" for key, item in value.items() if key != "version" and item is not None)


def _limits(card: Card) -> str:
    labels, longest = list(card.head.get("labels", ())), card.head.get("max_text")
    lines = []
    if labels:
        lines.append(f"It can say nothing but {_some(labels)}.")
    if longest:
        lines.append(
            f"Of a text it reads {longest} word pieces, special ones included; what its vocabulary lacks is `[UNK]`."
        )
    lines.append("Regions of another detector, layer or box rule mean nothing to it, and are refused.")
    if card.classes:
        lines.append(f"What its detector doesn't find it can't see: that knows {len(card.classes):,} classes.")
    results = card.facts.results
    measured = [result for result in results if not result.control]
    if measured:
        on = ", ".join(dict.fromkeys(result.data for result in measured if result.data))
        lines.append(
            f"Its figures are those of {on or 'its data'}: images and texts of another kind were not measured."
        )
        lines += [
            _reached(own, one, card.main) for own in measured for one in results if one.control and _beside(own, one)
        ]
    else:
        lines.append("No evaluation of it is recorded.")
    lines.append("It has the leanings of its training data; nobody examined it for them.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _reached(own: Result, control: Result, main: str) -> str:
    if main not in own.figures or main not in control.figures:
        return f"A control was trained with {control.control}: compare it in the table."
    return (
        f"Of its {main} of {_number(own.figures[main].value)}, {_number(control.figures[main].value)} is reached with "
        f"{control.control}."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{_cell(name)}`" for name in names[:LISTED])
    return shown + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


def _cell(text: str) -> str:
    """Of strangers' texts, what stays in its cell."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").replace("<", "&lt;").split())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
