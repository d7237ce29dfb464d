"""Pieces of text that are nearly personal data, to be joined at random: input that a gate could get wrong."""

_WORDS = """username login u: password pw p: at dot skype born birth dob d.o.b. DOB Born twitter admin com org root ext
int anexo extension x one two hundred and thousand St street Ave Road Rd Freeway Suite New York NEW YORK Texas TX NY
DC Ohio district of
columbia Main Springfield a b é ß jo lkjhgf_98 hunter2 okay tim Zürich my is in on"""

_SIGNS = [
    "@",
    ".",
    ":",
    "-",
    "_",
    "+",
    "＋",
    "/",
    "//",
    ",",
    "(",
    ")",
    "#",
    "'",
    "*",
    "~",
    "=",
    "?",
    "&",
    "%",
    "–",
    "‑",
]

_SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\x1c", "\x85", "\u200b", "\x00"]

# Letters and digits that patterns equate with ASCII ones, and some that they do not.
_FOLDS = ["ſ", "ı", "İ", "K", "uſername", "paſſword", "logİn", "logın", "sKype", "ſKYPE", "bİrth", "ΑΣ", "ﬁ", "ǅ", "Å"]

_DIGITS = ["0", "1", "19", "1984", "12345", "٣", "٣٤٥", "５", "１２３", "²", "Ⅷ", "011", "+49", "+1", "+44", "+683"]

_WHOLE = """jo@example.com jane|at|gmail.com jo|at|x|dot|com www.a-b.com http://x.y https://www.example.org/~j?x=1#y
4242424242424242 4111111111111111 078-05-1120 078|05|1120 @jane_doe @jo +1|201-555-0123 (201)|555-0123 2015550123
+49|30|12345 +6834000 07700|900123 201-555-0123|ext.|44 310-1234 3101234
10-Nov-1988 05/06/1979 3|March|1990 5/6/99 twenty|years|ago
225|E.|John|Carpenter|Freeway,|Suite|1500|Irving,|Texas|75062 12|Main|St,|Albany,|NY|12207 One|Hundred|Main|St,|Ohio
12|Main|Street|Springfield|New|York skype:|lkjhgf_98 username:|root|password:|x login|password|y"""

FRAGMENTS = [
    *_WORDS.split(),
    *_SIGNS,
    *_SPACES,
    *_FOLDS,
    *_DIGITS,
    *(each.replace("|", " ") for each in _WHOLE.split()),
]
