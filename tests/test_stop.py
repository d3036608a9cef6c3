"""A first signal asks, a second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from git_scale.stop import (
    STOP_SIGNALS,
    Stopped,
    StopRequest,
    check_stop,
    listening,
    request_stop,
    stop_requested,
)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_the_process_goes_on(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop


def test_no_other_signal_is_taken() -> None:
    before = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGHUP)
    with StopRequest():
        assert (signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGHUP)) == before


def test_handlers_are_restored_even_after_a_signal_and_an_error() -> None:
    heard: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        before = [signal.getsignal(number) for number in STOP_SIGNALS]
        with pytest.raises(RuntimeError), StopRequest():
            assert signal.getsignal(signal.SIGTERM) != before[0]
            os.kill(os.getpid(), signal.SIGUSR1)
            raise RuntimeError
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
        assert heard == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, previous)


def run_sending(*numbers: signal.Signals) -> subprocess.CompletedProcess[str]:
    """A process that sends itself these signals under a StopRequest, then says whether it was stopped."""
    code = textwrap.dedent(
        f"""
        import os
        from git_scale.stop import StopRequest
        with StopRequest() as stop:
            for number in {[int(number) for number in numbers]}:
                os.kill(os.getpid(), number)
            print(bool(stop), flush=True)
        """
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    once, twice = run_sending(number), run_sending(number, number)
    assert (once.returncode, once.stdout) == (0, "True\n")
    assert (twice.returncode, twice.stdout) == (-number, "")


def test_slurms_warning_followed_by_its_sigterm_does_not_cut_the_saving_short() -> None:
    """SIGUSR1 comes ahead of the time limit, SIGTERM at it: two different signals are one request."""
    result = run_sending(signal.SIGUSR1, signal.SIGTERM)
    assert (result.returncode, result.stdout) == (0, "True\n")


def test_work_that_looks_at_the_request_is_cut_off_between_two_units() -> None:
    check_stop()  # nobody listens: nothing to hear
    with StopRequest():
        check_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
        with pytest.raises(Stopped):
            check_stop()
    assert not stop_requested()


def test_work_that_cannot_look_is_left_as_soon_as_a_stop_is_asked_for() -> None:
    hung = threading.Event()
    with StopRequest(), pytest.raises(Stopped):
        listening(lambda: hung.wait(60) if request_stop() is None else None)
    assert listening(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        listening(lambda: 1 / 0)
    request_stop()  # nobody listens
    assert not stop_requested()


def test_what_was_asked_for_before_a_piece_of_work_began_cuts_it_off() -> None:
    with StopRequest():
        request_stop()
        with StopRequest() as inner:
            assert inner
