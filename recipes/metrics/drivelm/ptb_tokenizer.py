"""The caption metrics' tokenizer (Stanford PTBTokenizer 3.4.1, lower case, punctuation dropped), without Java.

BLEU-1..4, ROUGE-L and CIDEr of the DriveLM challenge are computed on these tokens (language_evaluation and
pycocoevalcap start a Java process for them). This module restates the rules that driving answers and the Markdown of
today's language models meet. Where Java is installed, tests compare it with the original on real answers and on
generated ones.

Not covered: web and mail addresses, tags with attributes, XML entities, most abbreviations (ABBREVIATIONS lists the
known ones), three or more quotation marks in a row, `'tis` and `'n'`, a word that follows a curly `\u2019s` without a
blank, and raised letters.

Rules that surprise, kept as they are:
- brackets stay as tokens (`-lrb-`): the original drops only their upper-case spelling, and the text is in lower case;
- `?!` and `!!` stay, a single `?` or `!` goes;
- `<c1,CAM_BACK,1088.3,497.5>` becomes `< c1 cam_back ,1088.3,497.5 >`: a number may begin with a comma;
- no blank after a full stop (`speed.Decelerate`) leaves one token;
- a run of asterisks, number signs or underscores is one token (`**`), and emoji are dropped;
- a hyphen of any kind joins words (`slow\u2011moving`), and so does a slash, up to twice (`car/truck`).
The original also looks past the end of a line: an answer `No.` before one that begins with a digit keeps its full
stop, as in "No. 3". Here each text is read on its own.
"""

import re
from functools import lru_cache

ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri mr mrs ms dr prof jr sr st mt "
    "inc corp co cos ltd etc vs al ave blvd rd sgt gen col capt lt gov rep sen rev hon dept est ext ft bldg univ"
).split()

# A letter before one of these ends its sentence, and so loses its full stop ("option B. The car ...").
SENTENCE_STARTS = (
    "A About According Additionally After An As At But He Her Here However If In It Last Many More Now One Other Our "
    "She Since So Some Such That The Their Then There These They This We What When While Yet You"
).split()

# What the caption metrics drop, in the spelling of the tokens here (their double quotes and dashes are made of these).
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "\u2010", "\u2011", "--", "...", ";", '"'])

BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})

# Typographic signs and what the original makes of them. It knows few currencies, and no soft hyphen.
PLAIN_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2012\u2013\u2014\u2015", "--"),
        **dict.fromkeys("\u00a4\u20a0\u20ac", "$"),
        **{"\u2026": " ... ", "\u00ad": None, "\u00a2": " cents ", "\u00a3": "#"},
        **{"\u00bc": " 1/4 ", "\u00bd": " 1/2 ", "\u00be": " 3/4 ", "\u2153": " 1/3 ", "\u2154": " 2/3 "},
    }
)

# Signs that the original does not know (emoji, zero-width characters, ...) or drops (angle quotes): they end a word.
UNKNOWN = re.compile(
    "[\u00ab\u00bb\u2000-\u200f\u2024\u2025\u2027-\u202f\u2039\u203a\u203c\u203d\u2043\u2045-\u206f\u20a1-\u20a3\u20a5-\u20ab"
    "\u20ad-\u20f0\u2150-\u2152\u215f-\u2182\u2185-\u218f\ufe00-\ufe6f\U00010000-\U0010ffff]"
)
# Raised and lowered digits, fractions, digits in circles: each is a token of its own.
SMALL_DIGIT = re.compile("([\u00b2\u00b3\u00b9\u2070-\u209c\u2155-\u215e\u2460-\u249b\u24ea-\u24ff\u2776-\u2793])")

# The first alternative that fits wins, so longer kinds of token come first.
TOKEN = re.compile(
    r"""
    </?[a-z][a-z0-9_:.-]*\s*/?>                                      # <tag>
  | -(?:lrb|rrb|lsb|rsb|lcb|rcb)-
  | can(?=not\b) | (?<=can)not\b | gon(?=na\b) | got(?=ta\b) | wan(?=na\b) | (?<=gon)na\b | (?<=got)ta\b | (?<=wan)na\b
  | [a-z]+(?=n't(?![^\W_])) | (?:n't|'(?:s|m|d|ll|re|ve|[2-9]0s))(?![^\W_])  # is n't, driver 's, '90s
  | [a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}     # and/or, km/h, front-left/right
  | [a-z0-9][a-z0-9.,]*(?:-[a-z0-9]+)+                               # front-left, 30-40
  | (?-i:[A-Z]+(?:[+&][A-Z]+)+)                                      # R&D
  | [a-z](?:\.[a-z])+\.(?![^\W_])                                    # e.g., u.s.
  | [a-z]\.(?![^\W_]|\s+(?-i:(?:SENTENCE_STARTS))\s)                 # the letter of a choice (b.)
  | [^\W_]+\.(?=\s*[,;:])                                            # right.,
  | (?<![^\W_])(?:(?:ABBREVIATIONS)\.(?![^\W_]) | (?:nos?|figs?)\.(?=\s*\d))  # etc., no. 3
  | [+-]?\d*(?:[.:,]\d+)+ | [+-]\d+                                  # 1,088.3 12:30 +5
  | [^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)+                         # speed.Decelerate
  | (?:[dol]'[^\W\d_]{2})?[^\W_]+(?:[-_\u2010\u2011][^\W_]+)*        # words; 5km, cam_front, o'clock
  | [@\#][a-z]\w* | [<>]?[:;=][-o*']?[()DPO\\{@|\[\]](?![a-z0-9])                   # @name, #name, smileys
  | \.{2,} | -{2,} | [?!]{2,} | \*+ | _+ | \#+ | @+ | << | >> | \S
    """.replace("ABBREVIATIONS", "|".join(ABBREVIATIONS)).replace("SENTENCE_STARTS", "|".join(SENTENCE_STARTS)),
    re.VERBOSE | re.IGNORECASE,
)


@lru_cache(maxsize=1 << 17)
def ptb_tokens(text):
    """text: str -> tuple of lower-case tokens, punctuation dropped (see the module's docstring)."""
    text = SMALL_DIGIT.sub(r" \1 ", UNKNOWN.sub(" ", text.translate(PLAIN_SIGNS)))
    tokens = (token.lower() for token in TOKEN.findall(text))
    tokens = (re.sub(r"^(\.|-){2,}$", "--", token.translate(BRACKETS)) for token in tokens)
    return tuple(token for token in tokens if token not in DROPPED)
