"""What sends a signal to a child gives the child its handlers back first."""

import re
from pathlib import Path

HERE = Path(__file__).parent
SENDS = re.compile(r"(send_signal|killpg|os\.kill)\([^)]*SIG(INT|HUP)")


def forgetful(text: str) -> bool:
    """Whether a test's source sends SIGINT or SIGHUP to a child that may ignore it."""
    return bool(SENDS.search(text)) and "preexec_fn=interruptible" not in text


def test_a_child_that_is_sent_a_signal_can_be_interrupted():
    texts = {file: file.read_text("utf-8") for file in HERE.rglob("*.py")}
    senders = [file for file, text in texts.items() if SENDS.search(text)]
    assert {file.name for file in senders} >= {"test_interruption.py", "test_methods.py"}
    assert [file.name for file in senders if forgetful(texts[file])] == []


def test_a_sender_that_forgets_it_is_found():
    assert forgetful("process.send_signal(signal.SIGINT)")
    assert forgetful("os.killpg(process.pid, signal.SIGHUP)")
    assert not forgetful("process.kill()")
