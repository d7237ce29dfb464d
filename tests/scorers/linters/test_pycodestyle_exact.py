"""The scorer finds what the library's own `Checker` finds, without its quadratic time."""

import ast
import time

import pycodestyle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorers.linters.lines import line_of_syntax_error, normalised_lines
from scorers.linters.pycodestyle import LONGEST_BROKEN_LINE
from scorers.linters.pycodestyle_checker import LONGEST_LOGICAL_LINE
from scorers.registry import ScorerSpec, build
from tests.benchmarks.references import pep8
from tests.scorers.linters.test_pycodestyle import SOURCE

# Most of these parse, and every check finds something in at least one.
LINES = r'''
x = 1
x=1
x  =	1
x = a  and	b
x = [1,2 , 3]
f (x)
f(a = 1)
f(x)[ 0]
x = y [1]
def f(a: int=1, *, b=2): pass
def f(self):
async  def f(): await(x)
class A (B):
class l:
@ decorated
@decorated
pass
if x == None: y
if True != x:
if not x in y:
if not x.y is z:
if type(a) == type(b):
else:
try:
except:
except (A, B) as l:
import os, sys
import os
from a import b
__all__ = ['a']
f = lambda x: 2*x
f = lambda: (lambda: 1)
x = 1; y = 2
x = 1;
x = '\d'
x = r'\d' '\d'
x = """a↵\d\q↵ b ↵"""
x = """  # noqa↵   ↵	"""
"""Doc."""
x = f'{a}\d{b!r:>{c}}'
x = (1 +↵    2)
x = (1↵     + 2)
x = f(a,↵  b)
x = [↵    1,↵    ]
x = 1 + \↵    2
x = (1, \↵     2)
x = f(a, b(c,↵      d),↵  e)
if (a and↵    b):
assert(x)
x = a if(b)else c
x = -1*+2**-3
x = a<b>c
print >>x
l = 1
for l in O:
global I
# comment
#comment
### comment
#!x
x = 1 # c
x = 1  #c
x = 1  # noqa
# http://aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
x = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaa'  # NOQA: E501
x = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaa'

   
	

x = é
x = a[b:c, d :e]
x = {a:b}
def g[T = int](): pass
x: int=1
x = (y:=1)
with a as b, c as l:
return(x)
yield
in  not
while x :
x = a if b  else	None==c
x = None  ==  None
x = a@b
x = a%b|c
x = 1  \
x = ... [0]
'''  # noqa: W293

INDENTS = ["", "", "", "    ", "    ", "        ", "  ", "\t"]
STATEMENT = st.tuples(st.sampled_from(INDENTS), st.sampled_from(LINES.split("\n"))).map("".join)
ENDS = ["\n", "\n", "\n", "\r\n", "\r", "\n\n", "\n\n\n"]


def _joined(parts):
    lines, end, ended = parts
    return (end.join(lines) + end * ended).replace("↵", end if end == "\r\n" else end[0])


CODE = st.tuples(st.lists(STATEMENT, max_size=14), st.sampled_from(ENDS), st.booleans()).map(_joined)


@pytest.fixture(scope="module")
def scorer():
    return build("pep8", ScorerSpec(kind="pycodestyle"))


@pytest.fixture(scope="module")
def strict():
    """A scorer with every check except line length, including those that are off by default."""
    return build("pep8", ScorerSpec(kind="pycodestyle", ignore=["E501"]))


def _agree(scorer, text, ignore=None):
    try:
        expected = pep8.violations(text, ignore)
    except IndexError:
        assert scorer.violations(text)[-1][1] == "E9"
        return
    found = scorer.violations(text)
    if found and found[-1][1] == "E9":
        found.pop()
        expected = [each for each in expected if not each[1].startswith("E9")]
    assert found == expected


@settings(max_examples=1_000)
@given(text=SOURCE | CODE | CODE)
def test_every_violation_of_the_library_is_found_and_no_other(scorer, text):
    _agree(scorer, text)


@settings(max_examples=500)
@given(text=CODE)
def test_checks_that_are_off_by_default_find_the_same_too(strict, text):
    _agree(strict, text, ["E501"])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=500)
@given(text=SOURCE | CODE)
def test_a_file_is_parsed_as_python_parses_it(text):
    source = "".join(normalised_lines(text)).removeprefix("\ufeff")
    expected = None
    if "\0" in source:
        # Python reports no line for it.
        expected = source.partition("\0")[0].count("\n") + 1
    else:
        try:
            compile(source, "<text>", "exec", flags=ast.PyCF_ONLY_AST)
        except SyntaxError as error:
            expected = error.lineno or 1
    assert line_of_syntax_error(source) == expected


LONG = {
    "list": ("x = [", "a, ", "]\n"),
    "spaces": ("x = 1", " ", "+ 1 == None\n"),
    "escapes": ("x = '", "\\q", "'\n"),
    "rows of escapes": ("x = '''", "\\q\n", "'''\n"),
    "colons": ("x", "a:", "\n"),
    "lambdas": ("x = [", "lambda: 1, ", "]\n"),
    "statements": ("", "a = 1;", "\n"),
    "continued": ("x = ", "a+", "\\\n  1\n"),
    "unicode": ("x = '", "é\u2028😀", "'\n"),
    "comment": ("#", "a ", "\n"),
    "methods": ("class A:\n", "    def f(self):\n        x\n", ""),
    "unterminated": ("x = '", "\\'", "\n"),
}


@pytest.mark.parametrize("name", LONG)
def test_long_lines_have_the_violations_of_the_library(scorer, name):
    start, middle, end = LONG[name]
    _agree(scorer, start + middle * (2_000 // len(middle)) + end)


@pytest.mark.parametrize("name", LONG)
def test_time_does_not_grow_with_the_square_of_a_line(scorer, name):
    start, middle, end = LONG[name]

    def seconds(characters):
        text = start + middle * (characters // len(middle)) + end
        began = time.process_time()
        scorer.violations(text)
        return time.process_time() - began

    seconds(10_000)
    # Sixteen times the text; quadratic time would be 256 times as long, whatever else the machine does.
    assert any(seconds(160_000) < 80 * max(seconds(10_000), 0.005) for _ in range(3))


def test_a_logical_line_beyond_the_limit_skips_three_checks(scorer):
    def codes(elements):
        text = "x = [not a in b ,\n  " + "a," * elements + "]\n"
        return {code for _, code in scorer.violations(text)}

    half = LONGEST_LOGICAL_LINE // 2
    assert codes(half - 100) - codes(half + 100) == {"E128", "E713"}


def test_a_long_line_that_does_not_parse_has_only_its_syntax_error(scorer):
    broken = "x=1\ny = '" + "\\'" * LONGEST_BROKEN_LINE + "\n"
    assert scorer.violations(broken) == [(2, "E9")]
    assert scorer.violations("x=1\ny = '\\'\n") == [(1, "E225"), (2, "E9")]


def test_the_library_keeps_no_lines(scorer):
    scorer.violations("x = 1  # a line\n")
    assert pycodestyle.noqa.cache_info().currsize == 0
