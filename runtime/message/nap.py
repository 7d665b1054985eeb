"""How long a rank may sleep between two looks at MPI: a pure function of how quiet it has been.

MPI moves a non-blocking operation only while somebody is inside MPI, so a rank that waits must
look again and again. Looking costs CPU (a nap and a test together about 20 us of it), sleeping costs latency.
The rule: *a nap is a twentieth of the quiet so far*, so that no wait grows by more than about a twentieth,
between a shortest and a longest nap that depend on what is outstanding.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NapPolicy:
    """The lengths, in seconds, with their reasons."""

    # A peer that is awake answers within 5 to 20 us: while something just happened, look without
    # sleeping. Longer than this and the wait is no longer one for an awake peer.
    spin_s: float = 100e-6
    # Below 50 us the kernel's timer slack (50 us) makes shorter naps no shorter.
    shortest_s: float = 50e-6
    # With a tenth, 64 MB (4 ms) reached 90 to 96% of the raw bandwidth.
    share: float = 0.05
    # Something is awaited: naps of 1 ms cost about 2% of a core.
    awaited_s: float = 1e-3
    # A lane that waits for an operation has its core free, so spin through the few rounds of a small
    # all-reduce (288 KB on 2 ranks: 0.6 ms) instead of napping between them. Not where ranks share
    # cores: there the peer that is waited for needs this one.
    awaited_spin_s: float = 1e-3
    # Nor does who waits for an answer fall asleep before a peer could give one that need not compute: asking
    # rank 0 for a model that does nothing took 540 us with a nap here, 400 without.
    expecting_spin_s: float = 500e-6
    crowded: bool = False
    # A kernel runs on the same core: naps of 0.1 ms made a training step 20% slower than 1 ms,
    # 4 ms starved a 1 Gbit/s link (portions of 1 MB, 4 in flight, take 33 ms together). What was just
    # posted is often small and soon done, hence shorter naps at first: they took the digits on 2 ranks from
    # 19,000 to 28,000 samples a second. Not where operations take long anyway: over a 1 Gbit/s link portions
    # of 1 MB end every 9 ms, and 18 naps between two of them took 39 ms of CPU a step, 9 of them 35.
    computing_s: float = 1e-3
    computing_shortest_s: float = 200e-6
    computing_share: float = 0.25
    # Only standing receives: nobody here waits, but a peer that wants an answer does.
    idle_s: float = 4e-3
    # All such peers can ring this rank's doorbell. Not longer, for the rare ring that is missed.
    rung_s: float = 20e-3

    def nap(
        self,
        quiet_s: float,
        *,
        awaited: bool,
        expecting: bool,
        computing: bool,
        rung: bool,
        watched: bool = False,
        pace_s: float = 0.0,
    ) -> float:
        """Seconds to sleep before the next look; 0 means look again at once.

        `quiet_s` is the time since the last completion or posting, `awaited` whether MPI operations
        other than standing receives are outstanding, `expecting` whether somebody waits for what a
        standing receive brings, `computing` whether a kernel runs on this rank now, `rung` whether
        whoever sends to a standing receive rings this rank's doorbell, `watched` whether counters in
        shared memory are awaited, whose writers ring it too, `pace_s` how long operations took lately.
        """
        if computing:
            if not awaited:
                return self.rung_s if rung else self.awaited_s if expecting else self.idle_s
            due_s = self.computing_share * max(quiet_s, pace_s)
            return min(self.computing_s, max(self.computing_shortest_s, due_s))
        if watched and not awaited and rung and self.crowded:
            return self.rung_s  # whoever is to publish needs this core, and rings
        if quiet_s < self._spin_s(awaited or watched, expecting):
            return 0.0
        if awaited or (expecting and not rung):
            longest = self.awaited_s
        else:
            longest = self.rung_s if rung else self.idle_s
        return min(longest, max(self.shortest_s, self.share * quiet_s))

    def _spin_s(self, awaited: bool, expecting: bool) -> float:
        if self.crowded or not (awaited or expecting):
            return self.spin_s
        return self.awaited_spin_s if awaited else self.expecting_spin_s
