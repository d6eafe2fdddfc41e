"""Messages that are held back come in order, once, and only if no error leaves the block."""

import logging

import pytest

from edgedistill.common.complaints import settle
from edgedistill.common.logs import PACKAGE, WAITS, dropped, held
from edgedistill.common.progress import Handler, console

log = logging.getLogger("edgedistill.data.latents")


def test_messages_wait_until_the_end_of_the_block(said):
    with held():
        log.info("one")
        PACKAGE.warning("two %d", 2)
        assert said == []
    log.info("three")
    assert said == ["one", "two 2", "three"]


def test_a_message_about_a_wait_comes_at_once_after_those_held_back(said):
    with held():
        log.info("one")
        log.info("1/2", extra=WAITS)
        assert said == ["one", "1/2"]
        log.info("2/2", extra=WAITS)
        log.info("held again")
        assert said == ["one", "1/2", "2/2"]
    assert said == ["one", "1/2", "2/2", "held again"]


def fail(error, tell, *message, **extra):
    """Hold back a message and one more, and fail."""
    with held():
        tell(*message, **extra)
        log.info("dropped")
        raise error("in the block")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_drops_what_is_held_back(said, error):
    with pytest.raises(error):
        fail(error, log.info, "told", extra=WAITS)
    log.info("after")
    assert said == ["told", "after"]


def test_an_inner_block_speaks_through_the_outer_one(said):
    with held():
        log.info("one")
        with held():
            log.info("two")
        with pytest.raises(ValueError, match="in the block"):
            fail(ValueError, log.info, "two and a half")
        assert said == []
        with held():
            log.info("three")
            log.info("a wait", extra=WAITS)
            assert said == ["one", "two", "three", "a wait"]
            log.info("four")
        with dropped():
            log.warning("nobody hears this")
            log.info("nor this", extra=WAITS)
        assert said == ["one", "two", "three", "a wait"]
    assert said == ["one", "two", "three", "a wait", "four"]


@pytest.mark.parametrize("block", [held, dropped])
@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_come_back(block, fails):
    before, own, propagate = PACKAGE.handlers, list(PACKAGE.handlers), PACKAGE.propagate
    try:
        with block():
            assert PACKAGE.handlers is not before
            assert not PACKAGE.propagate
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert PACKAGE.handlers is before
    assert (PACKAGE.handlers, PACKAGE.propagate) == (own, propagate)


def test_a_handler_that_fails_leaves_the_block_in_order(said):
    """As a console in a pipe whose reader has gone, or one that Ctrl-C interrupts."""

    class Fails(logging.Handler):
        def emit(self, record):
            raise BrokenPipeError

    fails = Fails()
    PACKAGE.addHandler(fails)
    with pytest.raises(BrokenPipeError), held():
        log.info("one", extra=WAITS)
    assert fails in PACKAGE.handlers
    PACKAGE.removeHandler(fails)
    log.info("two")
    assert said == ["one", "two"]


def test_messages_reach_handlers_above_and_their_levels_hold(caplog):
    caplog.set_level(logging.INFO, PACKAGE.name)
    caplog.handler.setLevel(logging.WARNING)
    with held():
        log.info("too low")
        log.warning("heard")
        assert caplog.messages == []
    assert caplog.messages == ["heard"]


def test_the_command_line_prints_each_message_once(monkeypatch, capsys):
    monkeypatch.setattr(console, "_width", 40)
    settle()
    settle()
    for name in ("edgedistill", "edgedistill_export", "edgedistill_runtime"):
        logger = logging.getLogger(name)
        assert [type(handler) for handler in logger.handlers] == [Handler]
        assert not logger.propagate
    log.info("a long [bold] line of 100% " * 4)
    log.debug("not this")
    assert capsys.readouterr().err == "a long [bold] line of 100% " * 4 + "\n"
    assert capsys.readouterr().out == ""
