"""Tokens of captions as COCO's evaluation takes them, without Java.

They are those of CoreNLP 3.4.1's `PTBTokenizer -preserveLines -lowerCase`. Each rule names what becomes of its match;
the rules accept what CoreNLP's automaton accepts, quirks included (`(` is no longer dropped
once it is `-lrb-`; the class `,-_` of a URL is a range).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

from vbert.metrics.scanner import Rule, Scanner, ranges

# What coco-caption drops of the tokens (tylin/coco-caption `ptbtokenizer.py`).
DROPPED = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}

# Letters and digits are those of Unicode 6.0: of today's without the later ones, and with two that are none any more.
LATER = """
037f 0528-052f 0560 0588 05ef 0860-089f 08a1 08ad-08ff 0978 0980 09fc 0af9 0c34 0c5a-0c5f 0c80 0cdc-0cdd 0d04 0d54-0d56
0d5f 0de6-0def 0e86 0e89 0e8c 0e8e-0e93 0e98 0ea0 0ea8-0ea9 0eac 13f5-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0
19c8-19c9 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f
a7ab-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9ff aa7e-aa7f ab30-abbf
"""
FORMER = (0x1885, 0x1886)
MARKS = """
00ad 02c2-02c5 02d2-02df 02e5-02eb 02ed 02ef-036f 0375 0378-0379 0384-0385 03f6 0483-0487 055a-055f 0591-05bd 05bf
05c1-05c2 05c4-05c5 05c7 0615-061a 064b-065e 0670 06d6-06e4 06e7-06ed 06fd-06fe 070f 0711 0730-074c 07a6-07b0 07eb-07f3
0900-0903 093c 093e-094e 0951-0955 0962-0963 0981-0983 09bc 09be-09c4 09c7-09c8 09cb-09cd 09d7 09e2-09e3 0a01-0a03 0a3c
0a3e-0a4f 0a81-0a83 0abc 0abe-0acf 0b82 0bbe-0bc2 0bc6-0bc8 0bca-0bcd 0c01-0c03 0c3e-0c56 0d3e-0d44 0d46-0d48 0e31
0e34-0e3a 0e47-0e4e 0eb1 0eb4-0ebc 0ec8-0ecd
"""  # beside letters in words
SYMBOLS = """
0025-0026 002b 005c 005e 007c 007e 00a1 00a6-00a9 00ac 00ae-00b1 00b2-00b4 00b5-00ba 00bf 00d7 00f7 0387 05be 05c0 05c3
05c6 05f3-05f4 0600-0603 0606-060a 060c 0614 061b 061e 066a 066d 0703-070d 07f6-07f8 0964-0965 0e4f 1fbd 2016-2017
2020-2023 2030-2038 203b 203e-2042 2044 207a-207f 208a-208e 2100-214f 2190-2bff 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40
ff5b-ff65
"""


def _words(text: str) -> str:
    return "|".join(text.split())


def _capital(text: str) -> str:
    """In upper case alone: a class is of its very letters."""
    return "|".join(f"[{word[0]}]{word[1:]}" for word in text.split())


NAMES = {
    "BLANK": r"[ \t\u00A0\u2000-\u200A\u3000]",
    "LINE": r"(\r|\r?\n|\u2028|\u2029|\u000B|\u000C|\u0085)",
    "GAP": "({BLANK}|{LINE})",
    "ATTRIBUTE": r"[A-Za-z][A-Za-z0-9_:.\-]*",
    "ATTRIBUTES": """([ ]+({ATTRIBUTE}|{ATTRIBUTE}[ ]*=[ ]*('[^']*'|"[^"]*")))*""",
    "TAG": r"<([!?][A-Za-z\-][^>\r\n]*|{ATTRIBUTE}{ATTRIBUTES}[ ]*/?|/{ATTRIBUTE})[ ]*>",
    "AMPERSAND": "(&|&amp;)",
    "LETTER": "([[:letter:][:mark:]]|&[aeiouAEIOU](acute|grave|uml);)",
    "DIGIT": "[[:digit:]]",
    "PLAIN": "[[:letter:][:digit:]]",
    "WORDLIKE": "({LETTER}|{DIGIT})",
    "WORD": "{LETTER}{WORDLIKE}*([.!?]{LETTER}{WORDLIKE}*)*",
    "APOSTROPHE": r"(['\u0092\u2019]|&apos;)",
    "QUOTE": r"({APOSTROPHE}|[`\u0091\u2018\u201B])",
    "CLITIC": "{APOSTROPHE}([msdMSD]|re|ve|ll)",
    "NEGATED": r"[A-Za-z\u00AD]*[A-MO-Za-mo-z]\u00AD*",  # what n't may follow
    "NOT": "n{QUOTE}t",
    "ELISION": (
        "{APOSTROPHE}n{APOSTROPHE}?|[lLdDjJ]{APOSTROPHE}|(Dunkin|somethin|ol){APOSTROPHE}|{APOSTROPHE}(em|till?|cause)"
        "|[A-HJ-XZn]{QUOTE}[[:letter:]]{2}[[:letter:]]*|{APOSTROPHE}[2-9]0s|O{QUOTE}o"
        "|[[:letter:]]+[aeiouyAEIOUY]{QUOTE}[aeiouA-Z][[:letter:]]*"
        r"|cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l"
    ),
    "URL": r"""https?://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-]""",
    "HOST": (
        r"""(www\.([^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"""
        r"""|([^ \t\n\f\r"`'<>|.!?(){},-_$]+\.)+(com|net|org|edu))"""
    ),
    "PATH": r"""(/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-])""",
    "MAIL": (
        r"""(&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|()\u00A0{}]*@([^ \t\n\f\r"<>|(){}.\u00A0]+\.)*"""
        r"""[^ \t\n\f\r"<>|(){}.\u00A0]+(&gt;|>)?"""
    ),
    "FILE": (
        r"{WORDLIKE}+(\.{WORDLIKE}+)*\.("
        + _words(
            "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt "
            "ps py sql tar txt wav x xml zip"
        )
        + ")"
    ),
    "NUMBER": r"({DIGIT}+|{DIGIT}*([.:,\u00AD\u066B\u066C]{DIGIT}+)+)",
    "FRACTION": r"({DIGIT}{1,4}[\- \u00A0])?{DIGIT}{1,4}(\\?/|\u2044){DIGIT}{1,4}",
    "DATE": r"{DIGIT}{1,2}[\-/]{DIGIT}{1,2}[\-/]{DIGIT}{2,4}",
    "PHONE": (
        r"(\([0-9]{2,3}\)[ \u00A0]?|(\+\+?)?([0-9]{2,4}[\- \u00A0])?[0-9]{2,4}[\- \u00A0])[0-9]{3,4}"
        r"[\- \u00A0]?[0-9]{3,5}|((\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
    ),
    "COUNTRY": r"(Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(U\.K|U\.S\.S\.R)",
    "INITIALS": r"([A-Za-z](\.[A-Za-z])*|{COUNTRY})",
    "TWO_INITIALS": r"([A-Za-z](\.[A-Za-z])+|{COUNTRY})",
    "BEFORE_LOWER": (
        "("
        + _words(
            "Jan Feb Mar Apr Jun Jul Aug Sept? Oct Nov Dec Mon Tues? Wed Thu Thurs Fri Ala Ariz Calif Colo "
            "Conn Ct Dak Fla Ga Ind Kans? Ky Md Mich Minn Mo Mont Neb Nev Okla Penn Tenn Va Vt Wisc? Wyo Inc Cos? Corp "
            r"Pp?t[ye]s? Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys tel est ext sq Jr Sr Bros Blvd Rd "
            r"(Ed|Ph)\.D Esq etc al seq Bldg"
        )
        + "|"
        + _capital("Az Ark Del Ill La Mass Miss Ore Pa Tex Wash")
        + r")\."
    ),
    "BEFORE_UPPER": (
        "("
        + _words(
            "Mr Mrs Ms Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt Cpl Pvt Capt Ste? Ave "
            "Pres Lieut Hon Brig Co?mdr Pfc Spc Supts? Det Mt Ft Adj Adv Asst Assoc Ens Insp Mlle Mme Msgr Sfc vs Alex "
            r"Wm Jos Cie a\.k\.a cf TREAS Ph Invt Elec Natl M[ft]g Dept"
        )
        + "|[v]|[M]iss|{INITIALS})"
    ),
    "BEFORE_NUMBER": r"(ca|figs?|prop|nos?|art|bldg|pp|op)\.",
    "OPENING": _capital(  # words that open a sentence behind initials
        "About According Additionally After A An As At But Earlier He Her Here However If In It Last Many More "
        r"Mr\. Ms\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We When "
        "While What Yet You"
    ),
    "PART": "([dDoOlL]{QUOTE}{PLAIN})?{PLAIN}+",
    "HYPHENED": r"{PART}([\-_\u058A\u2010\u2011]{PART})*",
    "COMPOUND": r"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(-([A-Za-z0-9\u00AD]+|{TWO_INITIALS}\.))+",
    "SLASHED": r"[A-Za-z0-9]+(-[A-Za-z]+){0,2}(\\?/[A-Za-z0-9]+(-[A-Za-z]+){0,2}){1,2}",
    "JOINED": "[A-Z]+(([+&]|&amp;)[A-Z]+)+",
    "DOTS": r"(\.{3,5}|(\.[ \u00A0]){2,4}\.|[\u0085\u2026])",
    "INNER": r"[,;:\u3001]",
    "QUOTES": r"({APOSTROPHE}|''|[`\u2018-\u201F\u0091-\u0094\u2039\u203A\u00AB\u00BB]{1,2})",
    "DOUBLE": '("|&quot;)',
    "SMILEY": r"[<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]]",
    "FACE": (
        r"[\^x=~<>]\.\[\^x=[^<]*<>\]|[\-\^x=~<>']_[\-\^x=~<>']|\([\-\^x=~<>'][_.]?[\-\^x=~<>']\)"
        r"|\([\^x=~<>']-[\^x=~<>'`]\)"
    ),
}
RULES = (
    Rule("but three", "cannot|'twas"),
    Rule("but two", "'tis|gonna|gotta|lemme|gimme|wanna"),
    Rule("solid", "{TAG}"),
    Rule("dash", r"&(MD|mdash|ndash);|[\u0096\u0097\u2013-\u2015]"),
    Rule("ampersand", "&amp;"),
    Rule("same", "&(HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),
    Rule("soft", "{WORD}", "{CLITIC}"),
    Rule("soft", "{NEGATED}", "{NOT}"),
    Rule("soft", "{WORD}"),
    Rule("same", "{ELISION}"),
    Rule("same", "y{APOSTROPHE}", "[[:letter:]]"),
    Rule("same", "{URL}|{HOST}{PATH}?|{MAIL}|@[a-zA-Z_][a-zA-Z_0-9]*|#{LETTER}+"),
    Rule("right", "{CLITIC}|{NOT}", "[^A-Za-z]"),
    Rule("same", "{DATE}"),
    Rule("soft", r"[+\-]?{NUMBER}"),
    Rule("same", r"[\u207A\u207B\u208A\u208B]?([\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u2080-\u2089]+)"),
    Rule("solid", "{FRACTION}"),
    Rule("fraction", r"[\u00BC-\u00BE\u2153-\u215E]"),
    Rule("ampersand", r"-(L|R)(R|C|S)B-|C\.D\.s|pro-|anti-|S{AMPERSAND}(P-500|Ls)|(Cap{APOSTROPHE}n|c{APOSTROPHE}est)"),
    Rule("same", r"[cf]#|[CF]#|c\+\+|{SLASHED}|[A-Z]*\$|#"),
    Rule("currency", r"[\u0080\u00A2-\u00A5\u060B\u0E3F\u20A0\u20A4\u20AC\uFFE0\uFFE1\uFFE5\uFFE6]"),
    Rule("initials", r"{INITIALS}\.", "{GAP}+({OPENING}|{TAG}){GAP}"),
    Rule("same", "{BEFORE_NUMBER}", "{GAP}?[[:digit:]]"),
    Rule("same", r"(pt[eyEY]|co)\.", "{BLANK}(ltd|lim)"),
    Rule("same", "{BEFORE_LOWER}", r"[\u0000-\uFFFF]{2}"),
    Rule("but one", "{BEFORE_LOWER}"),  # at the end of the file
    Rule("same", r"{BEFORE_UPPER}\."),
    Rule("same", "{BEFORE_UPPER}", "{BLANK}"),
    Rule("same", "{INITIALS}|{APOSTROPHE}[0-9][0-9]", "{GAP}"),
    Rule("same", "{FILE}", "({GAP}|[.?!,])"),
    Rule("soft", r"{WORD}\.", "{INNER}"),
    Rule("brackets", "{PHONE}"),
    Rule("left", "{DOUBLE}", "[A-Za-z0-9$]"),
    Rule("right", "{DOUBLE}"),
    Rule("nothing", r"\u007F"),
    Rule("less", "<|&lt;"),
    Rule("greater", ">|&gt;"),
    Rule("brackets", "{SMILEY}", "[^A-Za-z0-9]"),
    Rule("brackets", r"{FACE}|[(){}\[\]]"),
    Rule("hyphens", r"-+"),
    Rule("dots", "{DOTS}"),
    Rule(
        "same",
        r"@+|#+|_+|\*+|(\\\*){1,3}|{INNER}|[?!]+|[.\u00A1\u00BF\u037E\u0589\u061F\u06D4\u0700-\u0702\u07FA\u3002]|=|/",
    ),
    Rule("soft", r"{COMPOUND}\.", "{INNER}"),
    Rule("soft", "{COMPOUND}"),
    Rule("same", r"{HYPHENED}\.", "{INNER}"),
    Rule("same", "{HYPHENED}"),
    Rule("ampersand", r"{JOINED}\.", "{INNER}"),
    Rule("ampersand", "{JOINED}"),
    Rule("left", "'", r"[A-Za-z][^ \t\n\r\u00A0]"),
    Rule("right", "{CLITIC}|{NOT}|{QUOTES}"),
    Rule("same", "<<|>>|[[:symbol:]]"),
    Rule("nothing", r"\u0000|{BLANK}+|[\u200B\u200E\u200F\uFEFF]|&nbsp;"),
    Rule("line", "{LINE}"),
)
BACK = {"but one": 1, "but two": 2, "but three": 3}  # characters of a match that are read again
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
ROUND = str.maketrans({" ": "\u00a0", "(": "-LRB-", ")": "-RRB-"})
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "₠": "$", "€": "$"}
QUOTED = str.maketrans(
    dict.fromkeys("\u0091‘‛‹", "`")
    | dict.fromkeys("\u0092’›", "'")
    | dict.fromkeys("\u0093“«", "``")
    | dict.fromkeys("\u0094”»", "''")
)
BREAKS = re.compile("[\r\n\x0b\x0c\u2028\u2029]")


def tokenized(captions: Sequence[str]) -> list[str]:
    """The tokens of each caption in lower case, without the dropped ones, joined by blanks.

    As in the official code the captions are read as lines of one text, so that what follows the last word of one is the
    next. Line ends within a caption are blanks; of ones beside `\\n` CoreNLP would part the caption, and every later
    caption would take the tokens of the one before.
    """
    text = _units("\n".join(BREAKS.sub(" ", caption) for caption in captions))
    lines: list[list[str]] = [[]]
    at, scanner = 0, _scanner()
    while at < len(text):
        found = scanner.match(text, at)
        if found is None:  # a character that no rule knows
            at += 1
            continue
        (kind, end), begin = found, at
        at = end - BACK.get(kind, 0)
        if kind == "line":
            lines.append([])
        elif kind != "nothing":
            token, at = (text[begin:at], at) if kind in ("but two", "but three") else _token(kind, text[begin:end], at)
            first, *further = token.split("\n")  # a tag may go on over lines
            lines[-1].append(first)
            lines += [[part] for part in further]
    kept = ([token for token in map(_lower, line) if token and token not in DROPPED] for line in lines)
    return [" ".join(tokens) for tokens in kept][: len(captions)]


def _token(kind: str, text: str, at: int) -> tuple[str, int]:
    """What a match becomes, and where reading goes on."""
    if kind == "initials":  # the full stop is read again; of a single letter it is no part
        return (text if len(text) > 2 else text[:1]), at - 1
    if kind == "soft":
        text = text.replace("\u00ad", "")
    elif kind == "solid":
        text = text.replace(" ", "\u00a0")
    elif kind == "ampersand":
        text = re.sub("&amp;", "&", text, flags=re.IGNORECASE | re.ASCII)
    elif kind in ("left", "right"):
        text = _latex(text, kind == "left")
    elif kind == "brackets":
        text = BRACKETS.get(text) or text.translate(ROUND)
    elif kind == "fraction":
        text = FRACTIONS.get(text, text)
    elif kind == "currency":
        text = CURRENCIES.get(text, text)
    elif kind == "hyphens":
        text = "--" if 3 <= len(text) <= 4 else text
    return {"dash": "--", "dots": "...", "less": "<", "greater": ">"}.get(kind, text), at


def _latex(text: str, left: bool) -> str:
    """Quotation marks as in TeX."""
    text = re.sub("&apos;|'", "`" if left else "'", text)
    return re.sub('"|&quot;', "``" if left else "''", text).translate(QUOTED)


def _lower(token: str) -> str:
    return token.encode("utf-16", "surrogatepass").decode("utf-16", "replace").lower()


def _units(text: str) -> str:
    """Text as UTF-16, a character each unit, as Java reads it."""
    if text.isascii() or max(text) <= "\uffff":
        return text
    data = text.encode("utf-16-le", "surrogatepass")
    return (
        "".join(map(chr, memoryview(data).cast("H")))
        if sys.byteorder == "little"
        else "".join(chr(data[i] | data[i + 1] << 8) for i in range(0, len(data), 2))
    )


def _codes(text: str) -> set[int]:
    pairs = (part.partition("-") for part in text.split())
    return {code for low, _, high in pairs for code in range(int(low, 16), int(high or low, 16) + 1)}


@cache
def _scanner() -> Scanner:
    def among(*categories: str) -> Iterable[int]:
        return (code for code in range(0x10000) if unicodedata.category(chr(code)) in categories)

    later = _codes(LATER)
    letters = {*among("Lu", "Ll", "Lt", "Lm", "Lo"), *FORMER} - later
    sets = {
        "[:letter:]": letters,
        "[:digit:]": set(among("Nd")) - later,
        "[:mark:]": _codes(MARKS),
        "[:symbol:]": _codes(SYMBOLS),
    }
    return Scanner(RULES, NAMES, {name: ranges((code, code) for code in codes) for name, codes in sets.items()})
