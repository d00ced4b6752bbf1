# SPDX-License-Identifier: Apache-2.0
import errno
import os

import pytest

from predict2_spec.errors import InvalidRequestError, in_words


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk or your share of it is full; make room"),
        (errno.EDQUOT, "the disk or your share of it is full; make room"),
        (errno.EACCES, "can't be written or read (Permission denied); mend the permissions"),
        (errno.EEXIST, "a file is where a folder should be; move it or name another place"),
        (errno.ENOTDIR, "a file is where a folder should be; move it or name another place"),
        (errno.EISDIR, "a folder is where a file should be; name another place"),
        (errno.EFBIG, "your limits (ulimit -f) allow no file so large"),
        (errno.EROFS, "can't be written or read (Read-only file system); mend"),
    ],
)
def test_errors_of_the_disk_say_the_way_out_and_the_path_if_the_system_names_it(number, said):
    plain = OSError(number, os.strerror(number))
    named = OSError(number, os.strerror(number), "/data/clip.mp4")
    assert said in in_words(plain)
    assert in_words(named).startswith("/data/clip.mp4: ")
    assert said in in_words(named)


def test_other_errors_keep_their_words():
    assert in_words(InvalidRequestError("seed -1 must be")) == "seed -1 must be"
    assert in_words(OSError(errno.EIO, "Input/output error")) == "[Errno 5] Input/output error"
