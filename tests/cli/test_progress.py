import io

import pytest

from deqreg.cli import progress as module
from deqreg.cli.progress import ProgressLines
from deqreg.registration import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is told the time."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def steps(show, stage, count, clock, seconds):
    for step in range(1, count + 1):
        show(Progress(stage, step, count, 0.5**step, 0.1 * step, (8, 9, 10)))
        clock[0] += seconds


def test_a_file_gets_a_line_a_second_and_the_last_of_each_stage(clock):
    stream = io.StringIO()
    with ProgressLines(stream) as show:
        steps(show, "level 1/2", 9, clock, 0.25)
        steps(show, "level 2/2", 2, clock, 0.25)
    lines = stream.getvalue().splitlines()
    assert [line.split("step")[1].split()[0] for line in lines] == ["1/9", "5/9", "9/9", "1/2", "2/2"]
    assert lines[2].split() == ["level", "1/2", "8x9x10", "step", "9/9", "residual", "2.0e-03", "similarity", "0.9000"]


def test_a_terminal_gets_one_updating_line_a_stage(clock):
    stream = Terminal()
    with ProgressLines(stream) as show:
        steps(show, "level 1/2", 3, clock, 0.0)
        steps(show, "level 2/2", 2, clock, 0.0)
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3
    assert lines[-1] == ""
    assert lines[0].count("\r\x1b[K") == 3
    assert lines[0].split("\r\x1b[K")[-1].startswith("level 1/2")


def test_what_is_not_known_is_not_shown(clock):
    stream = io.StringIO()
    with ProgressLines(stream) as show:
        show(Progress("affine: rigid", 1, 1, None, 0.3, (8, 8)))
    assert stream.getvalue().split() == ["affine:", "rigid", "8x8", "step", "1/1", "similarity", "0.3000"]


def test_nothing_is_written_where_nothing_happened():
    stream = Terminal()
    with ProgressLines(stream):
        pass
    assert stream.getvalue() == ""
