"""The child process of `compiling`: `python -m training.evaluation.compiling_child`.

It reads samples from stdin (a byte that is 1 if the sample ended by itself, the characters of its prompt, the size of
its UTF-8 text, the text with the prompt), and writes a byte for each to stdout.
"""

import resource
import sys
import warnings

COMPILES, FAILS, UNDECIDED = b"c", b"f", b"u"
SIZE_BYTES = 8
_MEMORY = 2 << 30
_CPU_S = 600  # ends a child whose parent was killed meanwhile
# The flag by which the interactive prompt finds out whether to ask for another line (`codeop`).
_ALLOW_INCOMPLETE = 0x4000


def main() -> None:
    """Answer until stdin ends."""
    for limit, most in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CPU, _CPU_S), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    warnings.simplefilter("ignore")
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(1):
        prompt, size = (int.from_bytes(source.read(SIZE_BYTES), "little") for _ in range(2))
        text = source.read(size).decode("utf-8", "surrogatepass")
        sink.write(judge(text, ended=head == b"\1", prompt=prompt))
        sink.flush()


def judge(text: str, *, ended: bool, prompt: int = 0) -> bytes:
    """Whether a text compiles as a module; for whole lines of one that was cut, up to its last whole statement.

    Undecided if nothing but white space is left after the first `prompt` characters.
    """
    if text.startswith("\ufeff"):
        text, prompt = text[1:], max(0, prompt - 1)
    while text[prompt:].strip():
        if not _error(text):
            return COMPILES
        if ended or "incomplete input" not in _error(text, _ALLOW_INCOMPLETE):
            return FAILS
        text = text[: max(text.rfind("\n", 0, -1), text.rfind("\r", 0, -1)) + 1]
    return UNDECIDED


def _error(text: str, flags: int = 0) -> str:
    """The error of the compiler, which may be of syntax, values, recursion or memory; empty for none."""
    try:
        compile(text, "<sample>", "exec", flags, dont_inherit=True)
    except Exception as error:  # noqa: BLE001 - see above
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main()
