"""Signals to children of a test suite that may itself ignore them."""

import signal


def interruptible() -> None:
    """Give a child its handlers back, as `preexec_fn` of a process that is sent a signal.

    A suite in the background of a script, as by `nohup make test &`, ignores SIGINT and SIGHUP,
    and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
