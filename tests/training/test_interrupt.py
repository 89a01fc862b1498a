"""Signals are noted, a second SIGINT is not waited for, and the handlers that were there come back."""

import signal
import threading

import pytest

from compressor.errors import CompressorError
from compressor.training.interrupt import Interrupted, deferred_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted(number):
    before = signal.getsignal(number)
    with deferred_signals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_second_sigint_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_note_nothing():
    seen = []

    def work() -> None:
        with deferred_signals() as signals:
            seen.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_code_is_the_shells(number, code):
    error = Interrupted(number, "stopped")
    assert isinstance(error, CompressorError)
    assert error.exit_code == code
