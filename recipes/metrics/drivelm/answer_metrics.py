"""Scores of one answer that need no corpus: exact match, closed answers, statuses, listings, object coordinates."""

import re

NUMBER = re.compile(r"\d+\.\d+")
# A copy of data_scripts.question_types.OBJECT_TAG, since this folder must load on its own; a test holds them equal.
OBJECT_TAG = re.compile(r"<\s*c\d+\s*,\s*CAM_\w+\s*,[^<>]*>", re.IGNORECASE)
MATCH_PIXELS = 16.0

# Where the counted objects are: everything from here to the end of a listed item is no part of its class.
PLACE = re.compile(
    r"\b(?:to the (?:front|back|left|right|rear|side)|in (?:the )?(?:front|back|rear|middle)|on the|behind|ahead|near"
    r"|around|(?:visible |located |present )?(?:in|at) the)\b.*"
)
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
COUNTS = {
    **{str(number): word for number, word in enumerate(NUMBER_WORDS)},
    **{word: word for word in (*NUMBER_WORDS, "many", "several", "some", "multiple")},
    **{"a": "one", "an": "one", "a few": "several", "few": "several", "a lot of": "many", "lots of": "many"},
}
COUNT = re.compile("(" + "|".join(sorted(COUNTS, key=len, reverse=True)) + r"|\d+)\s+(?=\S)")
# What a status answer says, whatever words stand around it. The first that fits wins: "not moving" is not "moving",
# and "ahead of the ego car" is a place.
STATUSES = {
    "stationary": r"(?:not|\w+n['\u2019]t) (?:currently )?moving|stationary|still",
    "reverse parking": r"reverse parking",
    "back up": r"back(?:s|ed|ing)? up|revers(?:e|es|ed|ing)|(?:go|mov|driv)\w* backwards?",
    "turn left": r"turn\w* (?:to the )?left|left turn",
    "turn right": r"turn\w* (?:to the )?right|right turn",
    "left lane": r"(?:to|into) the left lane",
    "right lane": r"(?:to|into) the right lane",
    "offset left": r"(?:offset|steer|veer|shift)\w* (?:slightly )?to the left",
    "offset right": r"(?:offset|steer|veer|shift)\w* (?:slightly )?to the right",
    "ahead": r"(?:go|keep|continu|proceed|driv|mov|head)\w*(?: going)? (?:straight|ahead|forwards?)(?! of\b)",
    "moving": r"moving|in motion",
    "stopped": r"stopped",
    "parked": r"parked",
    "standing": r"standing",
    "sitting": r"sitting|lying",
    "without rider": r"without (?:a )?riders?",
    "with rider": r"with (?:a )?riders?",
}
STATUS = re.compile("|".join(rf"\b({pattern})\b" for pattern in STATUSES.values()))

# How language models lead in to an answer: "The correct answer is ...", "Answer: ...", "the best option would be ...".
LEAD_IN = re.compile(
    r"\b(?:answer|option|choice)\s*(?:(?:is|would be|should be)\b\s*:?|:)\s*(?:(?:option|choice)\s+)?", re.I
)
OPTION = re.compile(r"(?i:(?:answer|option|choice)\s+)?\(?([A-Z])(?:\)|[.:,](?!\w)|$)")
NOTHING = re.compile(r"(?:no|not any|zero|0)\s|nothing\b|none\b|no$")


def normalise(answer):
    """Lower case, blanks squeezed, no blanks or full stops at either end: what two equal closed answers share."""
    return " ".join(answer.lower().split()).strip(". ")


def exact_match(prediction, reference):
    """1.0 where the two strings are equal character by character (the challenge's accuracy), else 0.0."""
    return float(prediction == reference)


def leading_decision(answer):
    """ "yes" or "no" where the answer begins with that word ("Yes, there is a car.", "No!"), else None."""
    found = re.match(r"(?:yes|no)\b", normalise(answer))
    return found and found.group()


def closed_answer_match(prediction, reference):
    """1.0 or 0.0. A reference that begins with the word yes or no asks for that leading word alone ("Yes, there is a
    car." is right for "Yes."); any other reference must be equal after `normalise`."""
    decision = leading_decision(reference)
    if decision is None:
        return float(normalise(prediction) == normalise(reference))
    return float(leading_decision(prediction) == decision)


def statuses(answer):
    """answer: str -> set of `STATUSES` that it says. "One of the cars is parked, and the other is moving." gives
    {"moving", "parked"}."""
    names = list(STATUSES)
    return {names[found.lastindex - 1] for found in STATUS.finditer(" ".join(answer.lower().split()))}


def status_match(prediction, reference):
    """1.0 or 0.0: both answers say the same statuses, in any words and of any number of objects ("The trailer to the
    back is parked." is right for "One trailer is parked."; how many is what counting questions ask). A reference
    without a known status, such as the letter of an option, is compared by `closed_answer_match`."""
    meant = statuses(reference)
    if not meant:
        return closed_answer_match(prediction, reference)
    return float(statuses(prediction) == meant)


def closed_match(prediction, reference, kind):
    """`status_match` for questions of the type "status", else `closed_answer_match`."""
    return (status_match if kind == "status" else closed_answer_match)(prediction, reference)


def extract_answer(prediction, reference):
    """The part of a language model's sentence that answers a closed question; the whole text where nothing leads in.

    "The correct answer is (B) Turn left." gives "B" where the reference is the letter of an option, else
    "(B) Turn left."; "**Answer:** Yes, there is." gives "Yes, there is."; "D. Turn left." gives "D" for a letter.
    What an answer begins with counts first: "No. The answer is yes." stays a no.
    """
    text = re.sub(r"[*_`$]|\\boxed|</?answer>", "", prediction).replace("{", "").replace("}", "").strip()
    is_letter = re.fullmatch(r"\(?[A-Z]\)?\.?", reference.strip()) is not None
    if (OPTION.match(text) if is_letter else leading_decision(text)) is None:
        lead_in = LEAD_IN.search(text)
        text = text[lead_in.end() :] if lead_in else text
    option = OPTION.match(text) if is_letter else None
    return option.group(1) if option else text


def extracted_match(prediction, reference, kind):
    """`closed_match` of `extract_answer`."""
    return closed_match(extract_answer(prediction, reference), reference, kind)


def _singular(word):
    if word == "people":
        return "person"
    if re.search(r"(?:ss|ch|sh|x|us)es$", word):
        return word[:-2]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if re.search(r"[^sui]s$", word) else word


def listed_objects(answer):
    """answer: str -> set of (count word or None, class in the singular).

    "There are many trucks, one car, and two barriers to the back left of the ego car." gives
    {("many", "truck"), ("one", "car"), ("two", "barrier")}; "There are no objects ..." gives the empty set.
    A digit counts as its word, a and an as one; an item without a count ("trucks") has the count None.
    """
    objects = set()
    for item in re.split(r"[.,;:]|\band\b|\n", answer.lower()):
        item = re.sub(r"^\s*(?:yes\s+)?(?:there\s*(?:is|are|'s|'re)\s+)?(?:also\s+)?(?:the\s+)?", "", item)
        item = PLACE.sub("", item).strip()
        if not item or NOTHING.match(item):
            continue
        count = COUNT.match(item)
        name = " ".join(_singular(word) for word in item[count.end() if count else 0 :].split())
        objects.add((COUNTS.get(count.group(1), count.group(1)) if count else None, name))
    return objects


def listing_f1(prediction, reference):
    """F1 (0..1) between the sets of (count, class) that the two answers list. Two empty lists agree; an answer
    without a word ("", ".") scores 0."""
    if not re.search(r"\w", prediction):
        return 0.0
    said, meant = listed_objects(prediction), listed_objects(reference)
    if not said and not meant:
        return 1.0
    return 2 * len(said & meant) / (len(said) + len(meant))


def points(text):
    """The (x, y) pairs in a text: its numbers with a decimal point, two by two, in pixels of the 1600x900 picture.
    Whole numbers do not count and an unpaired last number is dropped, as in the challenge's evaluation."""
    numbers = [float(number) for number in NUMBER.findall(text)]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def match_points(prediction, reference):
    """-> (matched, f1): the reference's points that the prediction found, and the F1 of finding them (0..1).

    The challenge's greedy match: each predicted point, in the order of the text, takes the nearest point left (L1),
    and counts when that is less than 16 pixels away. The challenge adds 1e-8 to each denominator: F1 of a perfect
    answer is 1 - 1.5e-8 or so, kept here.
    """
    left = points(reference)
    predicted, wanted = points(prediction), len(left)
    matched = []
    for x, y in predicted:
        distances = [abs(x - rx) + abs(y - ry) for rx, ry in left]
        if distances and min(distances) < MATCH_PIXELS:
            matched.append(left.pop(distances.index(min(distances))))
    precision = len(matched) / (len(predicted) + 1e-8)
    recall = len(matched) / (wanted + 1e-8)
    return matched, 2 * precision * recall / (precision + recall + 1e-8)


def skipped_by_graph(questions, predictions, references, frames):
    """-> list of bool: the questions that the challenge leaves out, silently, because of an earlier answer.

    The first question of a frame asks for the important objects; the reference points that its prediction found are
    the frame's graph. A later question of that frame that names a point outside the graph is left out altogether: not
    scored 0, just missing from every mean. So a model that finds no object is scored on fewer, easier questions.

    frames: one hashable key a question; the questions of a frame stand in the official file's order.
    """
    graphs = {}
    skipped = []
    for question, prediction, reference, frame in zip(questions, predictions, references, frames, strict=True):
        if frame not in graphs:
            graphs[frame] = set(match_points(prediction, reference)[0])
            skipped.append(False)
        else:
            skipped.append(not set(points(question)) <= graphs[frame])
    return skipped
