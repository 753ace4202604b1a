"""Captions within reach, and odd texts made from them, for the tokenizers' comparison."""
# ruff: noqa: RUF100, SIM905

from __future__ import annotations

import json
import random
from pathlib import Path

DATA = Path(__file__).parents[2].parent / "shared" / "data"
ODD = (
    """
don't can't won't isn't o'clock 'tis 'twas 'em rock'n'roll y'all I'm we've they'll she'd d'Avignon
O'Malley ma'am 'n' '90s '70 cannot gonna gotta wanna lemme gimme dogs' James's c'est l'eau Cap'n
Hallowe'en shouldn't've n't 's 'll N'T DON'T Mr. Mrs. Dr. St. Ave. etc. e.g. i.e. U.S. U.K. a.m.
p.m. Jan. Inc. Co. vs. No. 5 fig. 3 Ph.D. J. I. A. B.C. approx. pp. 12 $5 $3.50 US$10 €20 £7 ¥100 5¢
#1 10% 1,000 3.14 .5 -5 +7 12:30 1/2 3/4 5 1/2 ½ 2¼ 1⁄2 7-8 10-20-2010 9/11/2001 x² H₂O 2x4 4x4
(555) 123-4567 555-123-4567 +1 555 123 4567 http://www.example.com/a?b=c https://x.org. www.cnn.com
example.com/path. foo.org someone@example.com <a@b.co> @user #hashtag #tag2 #1st file.txt image.jpg
index.html a.b.c C# c++ F# AT&T R&B Q&A &amp; &lt; &gt; &quot;hi&quot; &apos;s &nbsp; &mdash; <b>
</b> <br/> <img src="a.jpg" alt='x'> <!-- c --> << >> < > [sic] {x} (a) (b (c)) "quoted" 'quoted'
``tex'' “curly” ‘single’ «guillemets» „low” ‚low’ ’tis don’t ‹x› -- --- ---- - – — ― ‐ ‑ a-b a—b ...
.... . . . …. !! ?! ?? !? ;) :-) :( :D <3 ^_^ (^_^) =) ;; :: ,, * ** \\* @@ ## __ = == / \\ and/or
his/her 24/7 | ~ ` ^ ° % café naïve Zoë Ångström résumé straße İstanbul ſeven ﬁsh 你好 一只猫 日本語の犬 한국어
кошка γάτα קול كلب ไทย हिन्दी 😀 👩‍👩‍👧 🇩🇪 ♥ ★ → © ® ™ § co-ed ex-wife pro-am anti-war 3-year-old
well-known- -dash semi- T-shirt x-ray S&P-500 -LRB- -RRB- Yahoo! Jeopardy! OK! \u00ad
soft\u00adhyphen zero\u200bwidth nb\u00a0space thin\u2009space tab\there \x00 \x7f \x85 \x92
\x93x\x94 \ufeff ﹣ ＃ ＠ ，。！ ﾃ ٣٤ １２
""".replace("\n", " ")
    .strip()
    .split(" ")
)


def captions(real: bool = True) -> list[str]:
    """Those of 60 scenes of `shapes`, and with `real` those of COCO and Flickr30k Entities."""
    from vbert.data.entities import sentences
    from vbert.data.shapes.language import facts
    from vbert.data.shapes.scenes import ShapesSettings, scene
    from vbert.data.shapes.write import texts

    settings = ShapesSettings(images=60, held_out_every=4)
    rows, _ = texts(settings, [facts(scene(settings, i)) for i in range(settings.images)])
    found = [str(row["text"]) for row in rows if row["kind"] == "caption"]
    if not real:
        return found
    for path in sorted((DATA / "coco" / "annotations").glob("captions_*.json")):
        found += [row["caption"] for row in json.loads(path.read_bytes())["annotations"]]
    for path in sorted((DATA / "flickr30k_entities" / "sentences").glob("*.txt")):
        found += [sentence.text for sentence in sentences(path.read_text("utf-8"), path.name)]
    return found


def odd(texts: list[str], count: int, seed: int = 0) -> list[str]:
    """Texts of words, odd ones among them, joined by blanks, nothing or signs; some empty, some of signs alone."""
    rng, made = random.Random(seed), list[str]()
    while len(made) < count:
        words = rng.choice(texts).split() if texts else []
        for _ in range(rng.randrange(1, 6)):
            words.insert(rng.randrange(len(words) + 1), rng.choice(ODD))
        if rng.random() < 0.2:
            words = [rng.choice(ODD) for _ in range(rng.randrange(5))]
        text = ""
        for word in words:
            if rng.random() < 0.1:
                word = rng.choice((word.upper(), word.capitalize(), word + rng.choice("s.,'\"!?;:-)(")))
            text += word + rng.choices((" ", "", "\n", "  ", "-", "'", "/", ". "), (80, 8, 2, 2, 3, 2, 2, 1))[0]
        made.append(text if rng.random() < 0.3 else text.strip())
    return made
