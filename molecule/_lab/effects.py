"""Counting what tasks did: from the effects that they left, not from what anybody says of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

HEAD = (
    "Fault",
    "Planned",
    "Sent",
    "Done",
    "Lost",
    "Duplicates",
    "Longest pause, s",
    "Units restarted",
)


@dataclasses.dataclass(frozen=True)
class Counted:
    """The effects of one load: how many tasks were sent, done, lost and done more than once.

    `pause` is the longest time in seconds between two effects of the measured tasks, one after the
    other; `restarted` how many units have another invocation than before.
    """

    sent: int
    done: int
    duplicates: int
    pause: float
    restarted: int = 0

    @property
    def lost(self) -> int:
        """Tasks that were sent and have left no effect."""
        return self.sent - self.done


def count(lines: Iterable[str], sent: int, measured: range, begun: float) -> Counted:
    """Count effects, each a line of the number, the moment in seconds, and a name.

    :param sent: tasks are numbered from 0 to one below this.
    :param measured: the numbers whose pauses count, while any of them is to be done.
    :param begun: the moment at which the load began.
    :raises ValueError: for the effect of a task that was not sent.
    """
    effects = [(int(number), float(moment)) for number, moment, _ in map(str.split, lines)]
    times = Counter(number for number, _ in effects)
    strangers = sorted(number for number in times if not 0 <= number < sent)
    if strangers:
        raise ValueError(f"effects of tasks that were not sent: {strangers[:5]}")
    moments = sorted(moment for number, moment in effects if number in measured)
    gaps = (later - one for one, later in itertools.pairwise([begun, *moments]))
    return Counted(sent, len(times), len(effects) - len(times), max(gaps, default=0.0))


def together(runs: Sequence[Counted]) -> Counted:
    """Several runs of one fault: the tasks of all, the pause and the restarts of the worst."""
    return Counted(
        sent=sum(one.sent for one in runs),
        done=sum(one.done for one in runs),
        duplicates=sum(one.duplicates for one in runs),
        pause=max(one.pause for one in runs),
        restarted=max(one.restarted for one in runs),
    )


def table(rows: Mapping[str, tuple[bool, Counted]]) -> list[str]:
    """Rows of a Markdown table: the fault's name to whether it is planned, and what was counted."""
    cells = [
        (
            name,
            "yes" if planned else "no",
            str(one.sent),
            str(one.done),
            str(one.lost),
            str(one.duplicates),
            f"{one.pause:.1f}",
            str(one.restarted),
        )
        for name, (planned, one) in rows.items()
    ]
    line = "|---|---" + "|--:" * (len(HEAD) - 2) + "|"
    return [f"| {' | '.join(HEAD)} |", line, *(f"| {' | '.join(row)} |" for row in cells)]
