# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import subprocess
import sys

import pytest

from predict2_runtime.server import cli

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(100)"


class _Signals:
    def __init__(self, second):
        self.now = lambda: second


@pytest.mark.parametrize(("program", "second"), [("input()", False), (STUBBORN, True)])
def test_a_command_ends_with_the_server_and_by_a_second_signal_at_once(program, second):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as command:
        if second:
            command.stdout.readline()  # it ignores SIGTERM from here on
        cli._end(command, _Signals(second))
        assert command.poll() is not None


def test_what_a_server_works_in_is_locked_against_cleaners_and_gone_afterwards():
    with cli._work_folder() as folder:
        handle = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(monkeypatch, capsys, tmp_path):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(cli, "_Signals", lambda: None)
    monkeypatch.setattr(cli.checks, "check_repository", refuse)
    assert cli.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"predict2-serve: {tmp_path}: can't be written")
