"""When a task counts as sent behind Sentinels: when no Redis that may be elected lacks it.

A primary that stood still and goes on during an election lacks the replica that has just been
elected; another replica still follows it, and confirms what will be gone. To a sender it looks as
if a replica were down. So a task counts as sent when all replicas have it. For one that is missing
the sender waits longer than an election takes: by then the others follow the new primary, and the
earlier one has no replica that confirms.
"""

from collections.abc import Hashable, Sequence
from time import monotonic

# A replica answers within milliseconds. Shorter than the timeout of a connection.
CONFIRM_MILLISECONDS = 2000
# So often: 8 s. A Sentinel looks each second whether the one that it has chosen is a primary, and
# then has the others follow it.
TIMES = 4
# A sender that goes on without a replica looks for it so often, and for so long.
LOOK_SECONDS, LOOK_MILLISECONDS = 1.0, 50
# Without a task for so long it waits for it again.
FORGET_SECONDS = 60.0
# One that another has followed is the primary again when it was not used for so long.
BACK_SECONDS = 10.0


class Confirmation:
    """How many replicas have to confirm a task; one for each primary and process.

    :param left: how many there are, where it is known that others are missing: of a primary that
        has just been elected the earlier one, which cannot be elected before it follows.
    """

    def __init__(self, left: int | None = None) -> None:
        #: How many there are without those that were missing for longer than an election takes.
        self.left = left
        self.looked_at, self.used_at = 0.0, monotonic()

    def waits(self, required: int, known: int) -> list[tuple[int, int]]:
        """What to ask after a task: replicas and milliseconds of each WAIT, one after the other.

        Those that follow one that is met end at once.

        :param required: the option ``replicas``.
        :param known: how many replicas the Sentinels know, also those that are down.
        """
        now = monotonic()
        if now - self.used_at > FORGET_SECONDS:
            self.left = None
        self.used_at = now
        if required >= known:
            return [(required, CONFIRM_MILLISECONDS)]
        if self.left is None:
            return [(known, CONFIRM_MILLISECONDS)] * TIMES
        looks = []
        if now - self.looked_at > LOOK_SECONDS:
            self.looked_at, looks = now, [(known, LOOK_MILLISECONDS)]
        return [*looks, *[(self.left, CONFIRM_MILLISECONDS)] * TIMES]

    def is_sent(self, required: int, known: int, confirmed: Sequence[int]) -> bool:
        """Whether the task counts as sent.

        :param confirmed: the answer to each WAIT: how many replicas have the task.
        """
        if max(confirmed) >= max(required, known):
            self.left = None
            return True
        if confirmed[-1] >= required:
            self.left = confirmed[-1]
            self.looked_at = monotonic()
        return confirmed[-1] >= required


class Confirmations:
    """What confirms at each primary that this process has had; connections may be to several."""

    def __init__(self) -> None:
        self._all: dict[tuple[Hashable, Hashable], Confirmation] = {}

    def of(self, site: Hashable, primary: Hashable, required: int, known: int) -> Confirmation:
        """Return that of a primary; one that follows another does not wait for the earlier one.

        :param site: what elects it.
        :param primary: its address.
        :param required: as for ``Confirmation.waits``, as ``known``.
        """
        others = [
            one.used_at
            for (other, address), one in list(self._all.items())
            if other == site and address != primary
        ]
        own = self._all.get((site, primary))
        is_back = own and others and max(others) > own.used_at + BACK_SECONDS
        if own is None or is_back:
            left = known - 1 if others and known > required else None
            own = self._all[site, primary] = Confirmation(left)
        return own
