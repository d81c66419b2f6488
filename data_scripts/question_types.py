"""The kind of a driving question, told from its text alone.

A DriveLM question comes from a few dozen templates. Results are reported by type because a closed question ("Are there
barriers to the front of the ego car?") and a free one ("Please describe the current scene.") are not comparable. The
answer is never looked at: a model that is asked the question knows exactly as much as this function.

Example: `question_type("Are there moving cars to the back of the ego car?", "perception")` is `"yes_no"`.
"""

import re

QUESTION_TYPES = (
    "yes_no",
    "status",
    "listing",
    "counting",
    "description",
    "planning",
    "coordinates",
    "behavior",
    "other",
)

# <c1,CAM_FRONT,1043.2,82.2>: x and y in pixels of a 1600 x 900 picture. Other data sets and language models write it
# with blanks, in lower case, or with another camera (<c1, CAM_F0, 10.5, 20.5>).
OBJECT_TAG = re.compile(r"<\s*c\d+\s*,\s*CAM_\w+\s*,[^<>]*>", re.IGNORECASE)

# The first pattern that is found decides, so the narrow ones stand first.
# - Coordinates are questions whose answer names objects by their tags. "Which object is most likely to be occluded by
#   <c1,..>?" and "What object would consider <c1,..>?" are not: DriveLM answers "None, no, none." and "None.".
# - "Are <c1,..> and <c2,..> traffic signs?" looks closed and is not: DriveLM answers "Only one of the boxes is a
#   traffic sign.".
# - Planning is what the ego vehicle does or should do. The probability of a collision ("Low."), the action of another
#   object and a comment on the scene are asked under that task too.
_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("behavior", r"predict the behavior of the ego vehicle"),
        (
            "coordinates",
            r"important objects|notice first|\bpriority of\b|relative positioning|which lanes|bounding box",
        ),
        (
            "other",
            r"what object (would|is most likely to) consider|most relevant to its decision"
            r"|which object is most likely to be occluded|\bprobability of (a )?colli"
            r"|^are .+ and .+ traffic signs\b|what actions (may|might|could|can) <[^<>]*> (take|do)\b",
        ),
        ("counting", r"^how many\b"),
        ("listing", r"^what are (the )?objects (that are )?to the\b"),
        ("status", r"^what(?:'s| is| are) the (?:(?:moving|observed|current|future) )?(?:status|state)s? of\b"),
        (
            "description",
            r"describe the current scene|visual description of|comment on (this|the) scene|affect driving judge?ment",
        ),
        ("yes_no", r"^(is|are|will|would|does|do|can|was|were)\b"),
    )
)


def question_type(question: str, task: str) -> str:
    """Type of a question, one of `QUESTION_TYPES`.

    Args:
        question: the question as it is asked. Answer options that follow the stem ("Please select the correct answer
            from the following options: A. ...") and object tags `<c1,CAM_FRONT,x,y>` may be part of it.
        task: DriveLM's task of the question (`perception`, `prediction`, `planning` or `behavior`); `planning` decides
            where the text alone does not.
    """
    stem = re.split(r"\bplease select the correct answer\b", question.strip(), maxsplit=1, flags=re.IGNORECASE)[0]
    for kind, pattern in _PATTERNS:
        if pattern.search(stem):
            return kind
    return "planning" if task == "planning" else "other"


def names_object_tag(text: str) -> bool:
    """Whether the text holds an object tag `<cN,CAM_X,x,y>`, with or without blanks."""
    return OBJECT_TAG.search(text) is not None
