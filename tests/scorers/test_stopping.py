"""Requests to stop, at any point and whatever happens to the exception that is raised."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from scorers.errors import IncompleteError, StoppedError
from scorers.stopping import SIGNALS, StopRequest, asking, check, stoppable
from tests.interrupting import interrupt_in_class_creation


class Closing:
    """Raises a signal in a destructor, in which Python drops all exceptions."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def swallowed_by_an_except_clause(number):
    """Swallow the exception, as libraries do around an optional import."""
    with contextlib.suppress(Exception):
        signal.raise_signal(number)


def raises_another_error_later(number):
    """Raise an unrelated error after the signal, as an interrupted import does."""
    Closing(number)
    raise AttributeError("partially initialized module")


@pytest.fixture(autouse=True)
def restored_handlers():
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "interrupted",
    [signal.raise_signal, interrupt_in_class_creation, swallowed_by_an_except_clause, raises_another_error_later],
)
def test_a_signal_stops_the_work_whatever_the_interrupted_code_raises(interrupted, number):
    message = f"received {number.name} there. Do it again."
    with pytest.raises(StoppedError, match=message), stoppable("Do it again.", when=" there"):
        interrupted(number)
        pytest.fail("It went on.")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("wait", [check, lambda: asking(lambda _: None).__enter__()])
def test_a_swallowed_signal_stops_the_next_wait(wait):
    with pytest.raises(StoppedError, match="SIGTERM"), stoppable():
        Closing(signal.SIGTERM)
        wait()
        pytest.fail("It went on.")


def test_other_errors_pass_through():
    with pytest.raises(ValueError, match="other"), stoppable():
        raise ValueError("other")
    with stoppable():
        check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_inner_of_nested_blocks_decides():
    with pytest.raises(SystemExit), stoppable():
        try:
            with stoppable("Inside."):
                signal.raise_signal(signal.SIGTERM)
        except StoppedError:
            # Another rank prints the message.
            raise SystemExit(75) from None


@pytest.mark.parametrize("number", SIGNALS)
def test_in_an_asking_block_the_second_signal_is_raised(number):
    asked = []
    with pytest.raises(StoppedError, match=number.name), stoppable(), asking(asked.append, once_s=0.0):
        signal.raise_signal(number)
        assert asked == [number]
        signal.raise_signal(number)
    assert asked == [number]


def test_an_error_after_the_first_signal_is_raised_as_it_is():
    with pytest.raises(IncompleteError, match="disk"), stoppable(), asking(lambda _: None):
        signal.raise_signal(signal.SIGTERM)
        raise IncompleteError("The disk is full.")


def test_signals_in_quick_succession_count_as_one():
    asked = []
    with stoppable(), asking(asked.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert asked == [signal.SIGINT]
    with pytest.raises(StopRequest, match="SIGINT"), asking(asked.append, once_s=0.0):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


# A minimal command; `native` blocks the main thread for minutes, as an import or a collective in C++ does.
PROGRAM = """
import atexit, hashlib, os, signal, sys, time
import typer
from scorers import stopping
from scorers.console import command
from scorers.stopping import asking, leave, stoppable

stopping.GRACE_S, stopping.LEAVING_S, stopping.AGAIN_S = 1.0, 2.0, 0.5
stopping.ONCE_S = 0.2

def ready():
    print("ready", flush=True)

def native():
    ready()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)

def run(command):
    try:
        command()
    except typer.Exit as left:
        sys.exit(left.exit_code)

stopping.take_signals()
"""


@contextlib.contextmanager
def program(body, *, before=None):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def end_of(process, within=20):
    """Return status, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=within)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_a_command_begins_ends_it_at_once(number):
    with program("native()") as process:
        # The handler cannot run, and the thread waits for the grace period.
        process.send_signal(number)
        assert end_of(process) == (75, "", f"Stopped: received {number.name}. The same command continues.\n")
    with program("ready(); time.sleep(60)") as process:
        process.send_signal(number)
        assert end_of(process) == (75, "", f"Stopped: received {number.name}. The same command continues.\n")


def test_a_process_blocked_in_native_code_is_ended_in_time():
    with program("run(command(native, changes=True))") as process:
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == (75, "", "Stopped: received SIGTERM. The same command continues.\n")


def test_a_signal_in_an_import_ends_the_process_without_raising(tmp_path):
    (tmp_path / "slow.py").write_text("try:\n    ready()\n    time.sleep(60)\nexcept BaseException: print('raised')\n")
    body = f"""
import builtins
builtins.ready, builtins.time = ready, time
sys.path.append({str(tmp_path)!r})
run(command(lambda: __import__("slow"), changes=True))
"""
    with program(body) as process:
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == (75, "", "Stopped: received SIGTERM. The same command continues.\n")


def test_the_notice_is_printed_at_once_and_a_second_signal_ends_the_process():
    body = "with stoppable(), asking(lambda _: None, notice='Stopping after this step.\\n'): native()"
    with program(body) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == "Stopping after this step.\n"
        time.sleep(0.5)
        # A supervisor's second one is the same request: it would end the process 0.5 s later.
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert end_of(process) == (75, "", "Stopped: received SIGTERM. The same command continues.\n")


DONE = """
def work():
    with stoppable():
        pass
    ready()
    time.sleep(0.5)
    print("the summary")
"""


def test_a_signal_after_the_work_does_not_change_the_status():
    for work in ("run(command(work, changes=True))", "run(command(work, changes=True)); leave(3); sys.exit(3)"):
        with program(DONE + work) as process:
            process.send_signal(signal.SIGTERM)
            assert end_of(process) == (3 if "3" in work else 0, "the summary\n", "")


def test_a_process_that_does_not_exit_is_ended_with_its_status():
    with program("atexit.register(native); leave(3)") as process:
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == (3, "", "")


def test_a_signalled_process_runs_its_exit_functions_and_nothing_else():
    body = """
class Slow:
    def __del__(self):
        print("cleared")

kept = Slow()
atexit.register(print, "registered")
ready()
time.sleep(0.5)
stopping.end_process(3)
"""
    with program("leave(3)" + body) as process:
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == (3, "registered\n", "")
    with program(body) as process:
        assert end_of(process) == (3, "registered\ncleared\n", "")


def test_a_process_that_was_asked_once_also_exits_in_time():
    body = """
def work():
    with asking(lambda _: None):
        ready()
        time.sleep(1)
    atexit.register(native)

run(command(work, changes=True))
"""
    with program(body) as process:
        process.send_signal(signal.SIGTERM)
        assert end_of(process)[0] == 75


@pytest.mark.parametrize("work", ["native", "lambda: (ready(), time.sleep(60))"])
def test_a_command_that_only_reads_is_interrupted(work):
    with program(f"run(command({work}))") as process:
        process.send_signal(signal.SIGINT)
        assert end_of(process)[0] == 130
    with program(f"run(command({work}))") as process:
        process.send_signal(signal.SIGTERM)
        assert end_of(process)[0] == -signal.SIGTERM


def test_a_forked_process_has_default_signal_handlers():
    body = """
child = os.fork()
if child == 0:
    ready()
    time.sleep(60)
time.sleep(0.5)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
time.sleep(1.5)
print(os.WTERMSIG(status))
"""
    with program(body) as process:
        assert end_of(process) == (0, f"{int(signal.SIGTERM)}\n", "")


def test_nohup_is_respected():
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with program("ready(); time.sleep(1); print('on')", before=ignore) as process:
        process.send_signal(signal.SIGHUP)
        assert end_of(process) == (0, "on\n", "")
