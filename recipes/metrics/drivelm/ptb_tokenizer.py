"""The caption metrics' tokenizer (Stanford PTBTokenizer 3.4.1, lower case, punctuation dropped), without Java.

BLEU-1..4, ROUGE-L and CIDEr of the DriveLM challenge are computed on these tokens (language_evaluation and
pycocoevalcap start a Java process for them). This restates the rules that driving answers meet; where Java is
installed, a test compares it with the original. Not covered, because no driving answer has them: web and mail
addresses, smileys, tags with attributes, XML entities, and most abbreviations (ABBREVIATIONS lists the known ones).

Rules that surprise, kept as they are:
- brackets stay as tokens (`-lrb-`): the original drops only their upper-case spelling, and the text is in lower case;
- `?!` and `!!` stay, a single `?` or `!` goes;
- `<c1,CAM_BACK,1088.3,497.5>` becomes `< c1 cam_back ,1088.3,497.5 >`: a number may begin with a comma;
- no blank after a full stop (`speed.Decelerate`) leaves one token.
The original also looks past the end of a line: an answer `No.` before one that begins with a digit keeps its full
stop, as in "No. 3". Here each text is read on its own.
"""

import re
from functools import lru_cache

ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri mr mrs ms dr prof jr sr st mt "
    "inc corp co cos ltd etc vs al ave blvd rd sgt gen col capt lt gov rep sen rev hon dept est ext ft bldg univ"
).split()

# A letter or an acronym before one of these ends its sentence, and so loses its full stop ("option B. The car ...").
SENTENCE_STARTS = (
    "A About According Additionally After An As At But He Her Here However If In It Last Many More Now One Other Our "
    "She Since So Some Such That The Their Then There These They This We What When While Yet You"
).split()

# What the caption metrics drop, in the spelling of the tokens here (their double quotes and dashes are made of these).
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# Typographic signs and what the original makes of them.
PLAIN_SIGNS = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2026": "...", "\u2013": "--", "\u2014": "--"}
)

# The first alternative that fits wins, so longer kinds of token come first.
TOKEN = re.compile(
    r"""
    </?[a-z][a-z0-9_:.-]*\s*/?>                                      # <tag>
  | -(?:lrb|rrb|lsb|rsb|lcb|rcb)-
  | can(?=not\b) | (?<=can)not\b | gon(?=na\b) | got(?=ta\b) | wan(?=na\b) | (?<=gon)na\b | (?<=got)ta\b | (?<=wan)na\b
  | [a-z]+(?=n't\b) | n't\b | '(?:s|m|d|ll|re|ve)\b                  # is n't, driver 's
  | [a-z0-9][a-z0-9.,]*(?:-[a-z0-9]+)+                               # front-left, 30-40
  | [a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}     # and/or, km/h
  | [a-z](?:\.[a-z])*\.(?!\w|\s+(?-i:(?:SENTENCE_STARTS))\s)             # e.g., u.s., the letter of a choice (b.)
  | [^\W_]\w*\.(?=\s*[,;:])                                          # right.,
  | (?<!\w)(?:ABBREVIATIONS)\.(?!\w) | (?<!\w)(?:nos?|figs?)\.(?=\s*\d)  # etc., no. 3
  | [+-]?\d*(?:[.:,]\d+)+ | [+-]\d+                                  # 1,088.3 12:30 +5
  | [^\W\d]\w*(?:[.!?][^\W\d]\w*)* | \d\w*                           # words; 5km, 2nd
  | \.{2,} | -{2,} | [?!]{2,} | \S
    """.replace("ABBREVIATIONS", "|".join(ABBREVIATIONS)).replace("SENTENCE_STARTS", "|".join(SENTENCE_STARTS)),
    re.VERBOSE | re.IGNORECASE,
)


@lru_cache(maxsize=1 << 17)
def ptb_tokens(text):
    """text: str -> tuple of lower-case tokens, punctuation dropped (see the module's docstring)."""
    tokens = (token.lower() for token in TOKEN.findall(text.translate(PLAIN_SIGNS)))
    tokens = (BRACKETS.get(token) or re.sub(r"^(\.|-){2,}$", "--", token) for token in tokens)
    return tuple(token for token in tokens if token not in DROPPED)
